"""SHA-256 of a model's files, remembered by what the file system says of them."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from threading import get_ident

from stoker.weights.gguf import GGUFFile
from stoker.weights.places import home_folder, own_folder

_READ_BYTES = 1 << 20


def weights_digest(paths: Sequence[Path], *, remembered_in: Path | None = None) -> str:
    """SHA-256 over the bytes of all files, in order, in hex: names weights and metadata alike.

    Hashing takes 65 ms per 100 MB, so the answer is kept in the folder `remembered_in` under the files'
    paths, sizes, devices, inodes and times of change: a file that is written to is hashed again, also where
    the time of its content was set back (`ctime` cannot be). Raises OSError if a file cannot be read; a
    folder that cannot be written is no error.
    """
    facts = []
    for path in paths:
        found = path.stat()
        place = [str(path.resolve()), found.st_size, found.st_dev, found.st_ino]
        facts.append([*place, found.st_mtime_ns, found.st_ctime_ns])
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()
    note = None if remembered_in is None else remembered_in / f"{key}.sha256"
    if note is not None and (known := _read(note)) is not None:
        return known
    digest = hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            while piece := file.read(_READ_BYTES):
                digest.update(piece)
    answer = digest.hexdigest()
    if note is not None:
        _write(note, answer)
    return answer


def model_digest(path: Path) -> str:
    """`weights_digest` of all files of the model at `path`, remembered in the user's own folder. Raises
    `ModelFormatError` for what is no model, OSError if a file cannot be read."""
    with GGUFFile.open(path) as file:
        paths = file.paths
    folder = own_folder(os.environ, home_folder())
    return weights_digest(paths, remembered_in=None if folder is None else folder / "digests")


def _read(note: Path) -> str | None:
    try:
        text = note.read_text("ascii").strip()
    except (OSError, UnicodeDecodeError):
        return None
    return text if len(text) == 64 and all(c in "0123456789abcdef" for c in text) else None


def _write(note: Path, digest: str) -> None:
    part = note.with_name(f"{note.name}.{os.getpid()}.{get_ident()}.part")
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(digest + "\n", "ascii")
        part.replace(note)
    except OSError:  # not remembered, then: the next start hashes again
        with suppress(OSError):  # a file where a folder should be, a file system that is read-only
            part.unlink()
