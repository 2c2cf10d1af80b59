"""What the state database could not take when it was there to be stored: kept in memory until it can.

An answer is given, whatever became of the database while it was made. Nothing new is begun that would have to
be stored until the database takes it, so what waits here is what was open when it went away.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from stoker.api.errors import CapacityError, StokerError, UnavailableError

_LOGGER = logging.getLogger("stoker.server")
_FIRST_PAUSE_S = 0.5  # before what waits is tried again; doubled up to the next
_LONGEST_PAUSE_S = 15.0


@dataclass(frozen=True, slots=True)
class _Entry:
    value: Any
    write: Callable[[], Awaitable[object]]


class Unwritten:
    """Writes that wait, by the id of what they store. Used from one event loop; closed before the state."""

    def __init__(self) -> None:
        self._entries: dict[str, _Entry] = {}
        self._retries: asyncio.Task[None] | None = None

    def __len__(self) -> int:
        return len(self._entries)

    def find(self, key: str) -> Any:
        """The value that waits under this id; none if there is none."""
        entry = self._entries.get(key)
        return None if entry is None else entry.value

    def drop(self, key: str) -> None:
        """Forget it: it is not wanted any more."""
        self._entries.pop(key, None)

    async def write(self, key: str, value: Any, write: Callable[[], Awaitable[object]]) -> None:
        """Call `write`, now if the database answers, else later. It may be called again after it was done."""
        try:
            await write()
        except (UnavailableError, CapacityError) as error:
            self._entries[key] = _Entry(value, write)
            _LOGGER.warning("%s waits for the state database: %s", key, error)
            if self._retries is None or self._retries.done():
                self._retries = asyncio.create_task(self._write_later())

    async def _write_later(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._entries:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            with contextlib.suppress(UnavailableError, CapacityError):  # said when it was first tried
                await self._write_all()

    async def _write_all(self) -> None:
        for key, entry in list(self._entries.items()):
            if self._entries.get(key) is not entry:  # dropped while another one was written
                continue
            try:
                await entry.write()
            except (UnavailableError, CapacityError):
                raise
            except StokerError as error:  # this one will never be taken, the others may
                _LOGGER.error("%s is lost: %s", key, error)
            if self._entries.get(key) is entry:
                del self._entries[key]

    async def close(self) -> None:
        """Try a last time to write what waits; say what is lost."""
        if self._retries is not None:
            self._retries.cancel()
        try:
            await self._write_all()
        except StokerError as error:
            lost = ", ".join(sorted(self._entries)[:100])
            _LOGGER.error("%d answers are lost: %s: %s", len(self._entries), error, lost)
