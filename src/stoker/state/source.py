"""The state before it is opened: what a server holds from its start on."""

from __future__ import annotations

import asyncio
import concurrent.futures
from typing import TYPE_CHECKING

from stoker.api.errors import UnavailableError
from stoker.state.location import StateLocation

if TYPE_CHECKING:
    from stoker.state.state import State


class StateSource:
    """Opens the state once, when it is first asked for. A database that does not answer is asked again by the
    next call. Used from one event loop."""

    def __init__(self, location: StateLocation) -> None:
        self.location = location
        self._state: State | None = None
        self._closed = False
        self._lock = asyncio.Lock()

    async def opened(self) -> State:
        """The state, its tables up to date.

        Raises `UnavailableError` if the database does not answer or was written by a newer version,
        `CapacityError` if the disk is full, `RequestError` where a driver is missing.
        """
        if self._state is not None:
            return self._state
        async with self._lock:
            if self._closed:  # else nobody would close what is opened now
                raise UnavailableError("the state is closed: the server is stopping")
            if self._state is None:
                # Not the loop's own threads: an import and a migration may take a second.
                with concurrent.futures.ThreadPoolExecutor(1, "stoker-state-open") as thread:
                    self._state = await asyncio.get_running_loop().run_in_executor(thread, self._open)
            return self._state

    def _open(self) -> State:
        from stoker.state.state import open_state

        return open_state(self.location)

    async def close(self) -> None:
        """Let what runs finish, and let go of the database."""
        async with self._lock:
            self._closed = True
            state, self._state = self._state, None
            if state is not None:
                await state.database.close()
