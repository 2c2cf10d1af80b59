"""Which draft heads a model has: one that was named, those that the user trained, or that came along."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Final, NamedTuple

from stoker.api.errors import StokerError
from stoker.kernels.native import NativeInterpreter
from stoker.sampling.sampler import Sampler
from stoker.speculation import Drafters, drafter_names
from stoker.speculation.eagle import EagleDrafters
from stoker.speculation.head import DraftHead
from stoker.speculation.head_file import head_kind, load_head
from stoker.speculation.head_format import EAGLE, KINDS
from stoker.speculation.medusa import MedusaDrafters
from stoker.weights.digest import weights_digest
from stoker.weights.gguf import GGUFFile
from stoker.weights.places import home_folder, own_folder

SHIPPED: Final = Path(__file__).parent.parent / "speculation" / "heads"
_DIGEST_CHARS: Final = 16  # of a target's digest, at the end of the file name of its head


class Heads(NamedTuple):
    """Drafters by name, and what is to be said of those that could not be had."""

    drafters: Mapping[str, Drafters]
    notes: tuple[str, ...] = ()


def load_heads(
    target: GGUFFile, interpreter: NativeInterpreter, sampler: Sampler, speculation: str, named: str | None
) -> Heads:
    """The draft heads for an open model, of each kind that the option wants the first that there is.

    A head that cannot be used is no error, as answers do not depend on it: a note says why.
    """
    wanted = [kind for kind in drafter_names(speculation) if kind in KINDS]
    if not wanted:
        return Heads({})
    drafters: dict[str, Drafters] = {}
    notes: list[str] = []
    try:
        digest = _digest(target)
    except (StokerError, OSError) as error:
        return Heads({}, (f"no drafts by a head: {error}",))
    paths = (Path(named),) if named is not None else tuple(_heads_for(digest))
    for path in paths:
        try:
            kind = head_kind(path)
            if kind not in wanted or kind in drafters:
                continue
            assert interpreter.embedding is not None
            head = load_head(
                path,
                target,
                interpreter.embedding,
                interpreter.pool,
                target_digest=digest,
                context_tokens=interpreter.context_tokens,
            )
        except (StokerError, OSError) as error:
            notes.append(f"no drafts by a head: {error}")
            continue
        if isinstance(head, DraftHead):
            drafters[kind] = EagleDrafters(head, sampler)
        else:
            drafters[kind] = MedusaDrafters(head, sampler)
    missing = [kind for kind in wanted if kind not in drafters]
    if missing and not notes and speculation != "auto":
        where = named or ", ".join(map(str, head_folders()))
        kinds = " or ".join(missing)
        notes.append(
            f"no drafts by a head: there is no {kinds} head for this model in {where}; "
            f"stoker train-draft --kind {missing[0]}"
        )
    return Heads(drafters, tuple(notes))


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
