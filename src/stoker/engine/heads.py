"""Which draft head a model has: one that was named, one that the user trained, or one that came along."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final, NamedTuple

from stoker.api.errors import StokerError
from stoker.kernels.native import NativeInterpreter
from stoker.sampling.sampler import Sampler
from stoker.speculation import Drafters, drafter_names
from stoker.speculation.eagle import EagleDrafters
from stoker.speculation.head import load_head
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
    """The draft head for an open model, if the option wants one and there is one.

    A head that cannot be used is no error, as answers do not depend on it: a note says why.
    """
    wanted = drafter_names(speculation)
    if "eagle" not in wanted:
        return Heads({})
    try:
        path, digest = None if named is None else Path(named), _digest(target)
        if path is None:
            path = next(
                (p for folder in head_folders() if (p := find_head(folder, digest)) is not None), None
            )
        if path is None:
            if speculation == "auto":
                return Heads({})
            where = ", ".join(map(str, head_folders()))
            return Heads(
                {}, (f"no drafts by a head: there is none for this model in {where}; stoker train-draft",)
            )
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
        return Heads({}, (f"no drafts by a head: {error}",))
    return Heads({"eagle": EagleDrafters(head, sampler)})


def head_folders() -> tuple[Path, ...]:
    """Where heads are looked for: the user's own first."""
    own = own_folder(os.environ, home_folder())
    return (SHIPPED,) if own is None else (own / "heads", SHIPPED)


def head_name(model: str, target_digest: str) -> str:
    """The file name by which `find_head` finds it."""
    return f"{model}-{target_digest[:_DIGEST_CHARS]}.gguf"


def find_head(folder: Path, target_digest: str) -> Path | None:
    """The head for a target in a folder; whether it is one is seen when it is read."""
    return next(iter(sorted(folder.glob(f"*-{target_digest[:_DIGEST_CHARS]}.gguf"))), None)


def _digest(target: GGUFFile) -> str:
    own = own_folder(os.environ, home_folder())
    return weights_digest(target.paths, remembered_in=None if own is None else own / "digests")
