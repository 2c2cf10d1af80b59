"""Which draft heads a model has: one that was named, those that the user trained, or that came along."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from stoker.api.errors import ModelFormatError, StokerError
from stoker.kernels.native import NativeInterpreter
from stoker.sampling.sampler import Sampler
from stoker.speculation import Drafters, drafter_names
from stoker.speculation.eagle import EagleDrafters
from stoker.speculation.head import DraftHead
from stoker.speculation.head_file import FoundHead, find_head, load_head
from stoker.speculation.head_format import EAGLE, KINDS
from stoker.speculation.medusa import MedusaDrafters
from stoker.weights.digest import weights_digest
from stoker.weights.gguf import GGUFFile
from stoker.weights.places import home_folder, own_folder

SHIPPED: Final = Path(__file__).parent.parent / "speculation" / "heads"
_DIGEST_CHARS: Final = 16  # of a target's digest, at the end of the file name of its head


class ChosenHeads(NamedTuple):
    """Files by kind, the first that can be used to be taken; what is to be said of those that could not."""

    target_digest: str
    found: Mapping[str, list[FoundHead]]
    notes: tuple[str, ...]

    @property
    def layers(self) -> tuple[int, ...]:
        """Of the target, whose inputs a head reads."""
        return next((files[0].layers for files in self.found.values() if files[0].layers), ())


class Heads(NamedTuple):
    """Drafters by name, and what is to be said of those that could not be had."""

    drafters: Mapping[str, Drafters]
    notes: tuple[str, ...] = ()


def choose_heads(target: GGUFFile, speculation: str, named: str | None) -> ChosenHeads:
    """For an open model that is yet to be loaded: of each kind that the option wants the first that there is.

    A head that cannot be used is no error, as answers do not depend on it: a note says why.
    """
    wanted = [kind for kind in drafter_names(speculation) if kind in KINDS]
    if not wanted:
        return ChosenHeads("", {}, ())
    found: dict[str, list[FoundHead]] = {}
    notes: list[str] = []
    try:
        digest = _digest(target)
    except (StokerError, OSError) as error:
        return ChosenHeads("", {}, (f"no drafts by a head: {error}",))
    paths = (Path(named),) if named is not None else tuple(_heads_for(digest))
    for path in paths:
        try:
            one = find_head(path, target, digest, kinds=wanted)
        except (StokerError, OSError) as error:
            if len(found) < len(wanted):
                notes.append(f"no drafts by a head: {error}")
            continue
        if one is not None:
            found.setdefault(one.kind, []).append(one)
    missing = [kind for kind in wanted if kind not in found]
    if missing and not notes and speculation != "auto":
        where = named or ", ".join(map(str, head_folders()))
        kinds = " or ".join(missing)
        notes.append(
            f"no drafts by a head: there is no {kinds} head for this model in {where}; "
            f"stoker train-draft --kind {missing[0]}"
        )
    return ChosenHeads(digest, found, tuple(notes))


def load_heads(
    chosen: ChosenHeads, target: GGUFFile, interpreter: NativeInterpreter, sampler: Sampler
) -> Heads:
    """The heads' numbers, bound to their target, which was loaded with the layers they read. Again a note
    says why one cannot be used."""
    drafters: dict[str, Drafters] = {}
    notes = list(chosen.notes)
    for kind, files in chosen.found.items():
        for one in files:
            try:
                drafters[kind] = _loaded(one, chosen, target, interpreter, sampler)
                break
            except (StokerError, OSError) as error:
                notes.append(f"no drafts by a head: {error}")
    return Heads(drafters, tuple(notes))


def _loaded(
    one: FoundHead, chosen: ChosenHeads, target: GGUFFile, interpreter: NativeInterpreter, sampler: Sampler
) -> Drafters:
    assert interpreter.embedding is not None
    head = load_head(
        one.path,
        target,
        interpreter.embedding,
        interpreter.pool,
        target_digest=chosen.target_digest,
        context_tokens=interpreter.context_tokens,
    )
    if not isinstance(head, DraftHead):
        return MedusaDrafters(head, sampler)
    if head.layers and head.layers != chosen.layers:
        raise ModelFormatError(
            f"{one.path} reads layers {head.layers} of its model; allowed: {chosen.layers}, those of the "
            "first head that was found, which the model was loaded with"
        )
    return EagleDrafters(head, sampler)


def head_folders() -> tuple[Path, ...]:
    """Where heads are looked for: the user's own first."""
    own = own_folder(os.environ, home_folder())
    return (SHIPPED,) if own is None else (own / "heads", SHIPPED)


def head_name(model: str, target_digest: str, kind: str = EAGLE) -> str:
    """The file name by which `find_heads` finds it."""
    of_kind = "" if kind == EAGLE else f"-{kind}"
    return f"{model}{of_kind}-{target_digest[:_DIGEST_CHARS]}.gguf"


def find_heads(folder: Path, target_digest: str) -> tuple[Path, ...]:
    """The heads for a target in a folder; whether they are, and of which kind, is seen when they are read."""
    return tuple(sorted(folder.glob(f"*-{target_digest[:_DIGEST_CHARS]}.gguf")))


def _heads_for(digest: str) -> Iterator[Path]:
    for folder in head_folders():
        yield from find_heads(folder, digest)


def _digest(target: GGUFFile) -> str:
    own = own_folder(os.environ, home_folder())
    return weights_digest(target.paths, remembered_in=None if own is None else own / "digests")
