"""The folder of this machine that holds contents of files and the work of batches.

Several servers may share a database and not a folder: each row says by the place's id which folder its
content is in, and a server leaves what is elsewhere alone.
"""

from __future__ import annotations

import contextlib
import os
import uuid
from dataclasses import dataclass
from pathlib import Path

from stoker.state.disk import disk_error

_ID_FILE = "place.id"


@dataclass(frozen=True, slots=True)
class Place:
    """A folder with an id that was drawn when it was first used. Ids of files and batches are ours, never
    a client's text, so that they can be names."""

    folder: Path
    id: str

    def content(self, file_id: str) -> Path:
        """Where a file's bytes are."""
        return self.folder / "contents" / file_id

    def work(self, batch_id: str) -> Path:
        """The folder of a batch that is not finished."""
        return self.folder / "batches" / batch_id

    @property
    def uploads(self) -> Path:
        """The folder of what is still arriving."""
        return self.folder / "uploads"


def open_place(folder: Path) -> Place:
    """The folder, made if need be, for its owner's eyes only. Raises `UnavailableError`, `CapacityError`."""
    try:
        for part in ("contents", "batches", "uploads"):
            (folder / part).mkdir(parents=True, exist_ok=True, mode=0o700)
        folder.chmod(0o700)
        path = folder / _ID_FILE
        if not path.exists():
            # Linked when it is whole, so that of two servers that start at once one wins, and both read it.
            drawn = folder / f"{_ID_FILE}.{uuid.uuid4().hex}"
            drawn.write_text(uuid.uuid4().hex)
            with contextlib.suppress(FileExistsError):
                os.link(drawn, path)
            drawn.unlink()
        return Place(folder, path.read_text().strip())
    except OSError as error:
        raise disk_error(error, f"the folder of files {folder} cannot be used") from error
