"""What outlives a process: files, batches, responses, stored answers; in SQLite, or in PostgreSQL by URL.

Nothing here is imported by a start: `StateSource.opened` imports the database's library, brings the tables up
to date, and gives the `State`, each when it is first asked for. Only this package knows the library.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from stoker.state.location import StateLocation, locate_state
from stoker.state.source import StateSource

if TYPE_CHECKING:
    from stoker.state.batches import StoredBatch
    from stoker.state.files import StoredFile
    from stoker.state.state import State

__all__ = ["State", "StateLocation", "StateSource", "StoredBatch", "StoredFile", "locate_state"]


def __getattr__(name: str) -> type:
    # For annotations and embedders; the server itself only needs these names while types are checked.
    if name == "State":
        from stoker.state.state import State

        return State
    if name == "StoredFile":
        from stoker.state.files import StoredFile

        return StoredFile
    if name == "StoredBatch":
        from stoker.state.batches import StoredBatch

        return StoredBatch
    raise AttributeError(f"stoker.state has no {name}")
