"""Bytes of files on disk: arriving, kept, read in pieces, shared, removed. All of it blocks: use threads.

A content gets its name only when it is whole and on the disk, so that nothing half-written is ever read.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from stoker.state.disk import disk_error
from stoker.state.place import Place

_STALE_S = 86400.0  # an upload that has not grown for so long lost its server


class Upload:
    """A content that is still arriving. `keep` or `discard` it; whichever is first ends it."""

    def __init__(self, place: Place) -> None:
        """Raises `UnavailableError`, `CapacityError` for a disk that is gone or full."""
        self._place = place
        self._path = place.uploads / uuid.uuid4().hex
        self.size_bytes = 0
        with _errors():
            self._file = open(self._path, "xb", buffering=0, opener=_private)  # noqa: SIM115  # closed below

    def write(self, data: bytes) -> None:
        """Append. Raises `CapacityError` if the disk is full."""
        view = memoryview(data)
        with _errors():
            while view:
                written = self._file.write(view)
                view = view[written:]
        self.size_bytes += len(data)

    def keep(self, file_id: str) -> None:
        """Make it the content of `file_id`, on the disk for good."""
        with _errors():
            os.fsync(self._file.fileno())
            self._file.close()
            target = self._place.content(file_id)
            os.replace(self._path, target)
            sync_folder(target.parent)

    def discard(self) -> None:
        """Forget what came; does nothing after `keep`."""
        self._file.close()
        with contextlib.suppress(OSError):
            self._path.unlink()


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise disk_error(error, "a file's content cannot be used") from error


def sync_folder(folder: Path) -> None:
    """Put a folder's names on the disk, not only the files they name."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def share(source: Path, target: Path) -> None:
    """Give `source` a second name that outlives the first; a copy where the file system has no such links.

    Nothing happens if `target` is there. Raises `FileNotFoundError` without `source`, else as `Upload`.
    """
    if target.exists():
        return
    try:
        os.link(source, target)
    except FileNotFoundError:
        raise
    except FileExistsError:
        return
    except OSError:
        part = target.with_name(f"{target.name}.{uuid.uuid4().hex}")
        with _errors():
            shutil.copyfile(source, part)
            os.replace(part, target)
    with _errors():
        sync_folder(target.parent)


def remove_content(place: Place, file_id: str) -> None:
    """Remove a content; one that is not there is removed already."""
    with _errors(), contextlib.suppress(FileNotFoundError):
        place.content(file_id).unlink()


def remove_stale_uploads(place: Place) -> None:
    """Remove what servers that were killed have left behind."""
    oldest_s = time.time() - _STALE_S
    for path in place.uploads.iterdir():
        with contextlib.suppress(OSError):  # another server is first
            if path.stat().st_mtime < oldest_s:
                path.unlink()
