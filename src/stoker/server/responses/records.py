"""The responses of a server: those in the database, those it could not write yet, those it works on.

An answer that is there is given, whatever became of the database meanwhile: its row waits here until the
database takes it. Nothing new is begun that would have to be stored until it does.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from stoker.api.errors import CapacityError, StokerError, UnavailableError
from stoker.server.responses.answering import Answering, Response
from stoker.server.responses.items import Item
from stoker.server.service import Service

if TYPE_CHECKING:
    from stoker.state.responses import Responses, StoredResponse

_LOGGER = logging.getLogger("stoker.server")
_FIRST_PAUSE_S = 0.5  # before a write is tried again; doubled up to the next
_LONGEST_PAUSE_S = 15.0


class Records:
    """Where responses are looked up and kept. One for each server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._unwritten: dict[str, StoredResponse] = {}
        self._retries: asyncio.Task[None] | None = None
        self._open: dict[str, tuple[str, Answering]] = {}  # id -> (owner, answer) of those that are made now

    async def table(self) -> Responses:
        """The table. Raises as `Service.opened_state`."""
        return (await self._service.opened_state()).responses

    async def check(self) -> None:
        """Raise if a response could not be stored now."""
        await (await self.table()).check()

    @contextlib.contextmanager
    def open(self, owner: str, answering: Answering) -> Iterator[None]:
        """While the block runs, the answer is found as it stands."""
        response_id = answering.id
        self._open[response_id] = (owner, answering)
        try:
            yield
        finally:
            del self._open[response_id]

    def answering(self, owner: str, response_id: str) -> Answering | None:
        """The owner's answer that is made now."""
        found = self._open.get(response_id)
        return found[1] if found is not None and found[0] == owner else None

    async def find(self, owner: str, response_id: str) -> StoredResponse | None:
        """The owner's response that is stored, or is to be."""
        waiting = self._unwritten.get(response_id)
        if waiting is not None:
            return waiting if waiting.owner == owner else None
        return await (await self.table()).find(owner, response_id)

    async def chain(self, owner: str, response_id: str) -> list[StoredResponse]:
        """The owner's response and all that it goes on from, the newest first; see `Responses.chain`."""
        found: list[StoredResponse] = []
        wanted: str | None = response_id
        while wanted is not None and wanted in self._unwritten and self._unwritten[wanted].owner == owner:
            found.append(self._unwritten[wanted])
            wanted = found[-1].previous_id
        if wanted is not None:
            found += await (await self.table()).chain(owner, wanted)
        return found

    async def keep(self, response: StoredResponse) -> None:
        """Store a response that is finished: a new one, or the end of one that is stored already."""
        try:
            await self._write(response)
        except (UnavailableError, CapacityError) as error:
            self._unwritten[response.id] = response
            _LOGGER.warning(
                "a response waits for the state database: %s", error, extra={"fields": {"id": response.id}}
            )
            if self._retries is None or self._retries.done():
                self._retries = asyncio.create_task(self._write_later())

    async def delete(self, owner: str, response_id: str) -> bool:
        """Forget the owner's response; False if there is none."""
        waiting = self._unwritten.get(response_id)
        is_ours = waiting is not None and waiting.owner == owner
        deleted = await (await self.table()).delete(owner, response_id)
        if is_ours:
            self._unwritten.pop(response_id, None)
        return deleted or is_ours

    async def _write(self, response: StoredResponse) -> None:
        from stoker.state.responses import UNFINISHED

        table = await self.table()
        if not is_background(response.body):
            await table.add(response)
            return
        await table.change(
            response.id,
            follows=UNFINISHED,
            status=response.status,
            body=response.body,
            events=response.events,
        )

    async def _write_later(self) -> None:
        pause_s = _FIRST_PAUSE_S
        while self._unwritten:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
            with contextlib.suppress(StokerError):  # said when it was first tried
                await self._write_all()

    async def _write_all(self) -> None:
        for response in list(self._unwritten.values()):
            await self._write(response)
            self._unwritten.pop(response.id, None)

    async def close(self) -> None:
        """Try a last time to write what waits; say what is lost."""
        if self._retries is not None:
            self._retries.cancel()
        if not self._unwritten:
            return
        try:
            await self._write_all()
        except StokerError as error:
            lost = sorted(self._unwritten)
            _LOGGER.error(
                "%d responses are lost: %s", len(lost), error, extra={"fields": {"ids": lost[:100]}}
            )


def is_background(body: str) -> bool:
    """True for a response object that a server works on by itself."""
    return bool(msgspec.json.decode(body)["background"])


def dumped(value: Response | list[Item]) -> str:
    """JSON as it is stored."""
    return msgspec.json.encode(value).decode()
