"""The responses of a server: those in the database, those it could not write yet, those it works on."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING

import msgspec

from stoker.server.responses.answering import Answering, Response
from stoker.server.responses.items import Item
from stoker.server.service import Service

if TYPE_CHECKING:
    from stoker.state.responses import Responses, StoredResponse


class Records:
    """Where responses are looked up and kept. One for each server."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._unwritten = service.unwritten
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

    def _waiting(self, owner: str, response_id: str) -> StoredResponse | None:
        found: StoredResponse | None = self._unwritten.find(response_id)
        return found if found is not None and found.owner == owner else None

    async def find(self, owner: str, response_id: str) -> StoredResponse | None:
        """The owner's response that is stored, or is to be."""
        waiting = self._waiting(owner, response_id)
        return waiting or await (await self.table()).find(owner, response_id)

    async def chain(self, owner: str, response_id: str) -> list[StoredResponse]:
        """The owner's response and all that it goes on from, the newest first; see `Responses.chain`."""
        found: list[StoredResponse] = []
        wanted: str | None = response_id
        while wanted is not None and (waiting := self._waiting(owner, wanted)) is not None:
            found.append(waiting)
            wanted = waiting.previous_id
        if wanted is not None:
            found += await (await self.table()).chain(owner, wanted)
        return found

    async def keep(self, response: StoredResponse) -> None:
        """Store a response that is finished: a new one, or the end of one that is stored already."""

        async def write() -> None:
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

        await self._unwritten.write(response.id, response, write)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Forget the owner's response; False if there is none."""
        waiting = self._waiting(owner, response_id)
        deleted = await (await self.table()).delete(owner, response_id)
        if waiting is not None:
            self._unwritten.drop(response_id)
            await (await self.table()).delete(owner, response_id)  # it may have been written meanwhile
        return deleted or waiting is not None


def is_background(body: str) -> bool:
    """True for a response object that a server works on by itself."""
    return bool(msgspec.json.decode(body)["background"])


def dumped(value: Response | list[Item]) -> str:
    """JSON as it is stored."""
    return msgspec.json.encode(value).decode()
