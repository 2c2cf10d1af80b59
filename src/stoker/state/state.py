"""The opened state: one database, and on it one object for each noun."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from stoker.state.batches import Batches
from stoker.state.completions import Completions
from stoker.state.database import Database
from stoker.state.files import Files
from stoker.state.location import StateLocation
from stoker.state.place import Place, open_place
from stoker.state.responses import Responses


@dataclass(frozen=True, slots=True)
class State:
    """Everything that is kept. Its parts may be used from one event loop, at once."""

    database: Database
    place: Place  # the folder of this machine
    files: Files
    batches: Batches
    responses: Responses
    completions: Completions


def open_state(location: StateLocation) -> State:
    """Open the database, and bring its tables up to date. Blocks; see `StateSource.opened` for its errors."""
    place = open_place(Path(location.folder))
    database = Database(location)
    database.migrate()
    return State(
        database=database,
        place=place,
        files=Files(database, place),
        batches=Batches(database, place),
        responses=Responses(database, place),
        completions=Completions(database),
    )
