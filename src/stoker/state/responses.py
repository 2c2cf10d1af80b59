"""Responses that are kept: what each was asked, what came of it, and which one it goes on from.

A row of a background response has two writers, its client, who may cancel it, and the one server that works
on it: each change names the statuses it may follow. Bodies are JSON that only the server reads.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, column, delete, insert, literal, select, table, update

from stoker.state.database import Database
from stoker.state.place import Place

ResponseStatus = Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
UNFINISHED: Sequence[ResponseStatus] = ("queued", "in_progress")
KEPT_DAYS = 30  # as OpenAI's; a conversation that was not gone on with for so long is forgotten
MOST_TURNS = 10_000  # of a chain of responses; each costs some tokens of context

RESPONSES = table(
    "responses",
    column("id"),
    column("owner"),
    column("place"),
    column("created_us"),
    column("previous_id"),
    column("status"),
    column("body"),
    column("items"),
    column("request"),
    column("events"),
)


@dataclass(frozen=True, slots=True)
class StoredResponse:
    """A response as it is in the table."""

    id: str
    owner: str  # whose API key made it
    place: str  # the server that works on it: the id of its folder
    created_us: int  # Unix time in microseconds
    previous_id: str | None  # the response it goes on from
    status: ResponseStatus
    body: str  # JSON of the response object
    items: str  # JSON of its own input items
    request: str | None = None  # of one that is not finished: JSON of what is to be done
    events: str | None = None  # of a finished background response: its stream, as the server packs it

    @property
    def is_finished(self) -> bool:
        """True once nothing of it changes any more."""
        return self.status not in UNFINISHED


@dataclass(frozen=True, slots=True)
class Responses:
    """The table of responses."""

    database: Database
    place: Place

    def new(
        self,
        owner: str,
        response_id: str,
        *,
        previous_id: str | None,
        status: ResponseStatus,
        body: str,
        items: str,
        request: str | None = None,
    ) -> StoredResponse:
        """A response of now, not yet in the table."""
        now_us = time.time_ns() // 1000
        return StoredResponse(
            response_id, owner, self.place.id, now_us, previous_id, status, body, items, request
        )

    async def check(self) -> None:
        """Raise `UnavailableError` if the database does not answer now."""
        await self.database.read(lambda connection: connection.execute(select(literal(1))).one())

    async def add(self, response: StoredResponse) -> None:
        """Put a new response into the table; one that is there already stays as it is."""
        values = {name: getattr(response, name) for name in _NAMES}

        def work(connection: Connection) -> None:
            known = select(RESPONSES.c.id).where(RESPONSES.c.id == response.id)
            if connection.execute(known).one_or_none() is None:
                connection.execute(insert(RESPONSES).values(**values))

        await self.database.write(work)

    async def change(
        self,
        response_id: str,
        *,
        follows: Sequence[ResponseStatus],
        status: ResponseStatus,
        body: str | None = None,
        events: str | None = None,
    ) -> StoredResponse | None:
        """Set the status, and with it what is given, if the response has one of the statuses in `follows`.

        A finished one keeps no request. Returns the response as it is then, none if it is not there.
        """

        def work(connection: Connection) -> StoredResponse | None:
            # Read with a lock: in PostgreSQL other servers write too.
            query = select(RESPONSES).where(RESPONSES.c.id == response_id).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None or row.status not in follows:
                return None if row is None else _response(row)
            new: dict[str, Any] = {"status": status}
            if status not in UNFINISHED:
                new["request"] = None
            if body is not None:
                new["body"] = body
            if events is not None:
                new["events"] = events
            connection.execute(update(RESPONSES).where(RESPONSES.c.id == response_id).values(**new))
            return _response(connection.execute(query).one())

        return await self.database.write(work)

    async def find(self, owner: str, response_id: str) -> StoredResponse | None:
        """The owner's response of this id; none for another's, or one that is not there."""
        query = select(RESPONSES).where(RESPONSES.c.owner == owner, RESPONSES.c.id == response_id)

        def work(connection: Connection) -> StoredResponse | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else _response(row)

        return await self.database.read(work)

    async def chain(self, owner: str, response_id: str) -> list[StoredResponse]:
        """The owner's response of this id and all it goes on from, the newest first.

        It ends early where one is not there any more: the last one's `previous_id` is its id then.
        """

        def work(connection: Connection) -> list[StoredResponse]:
            found: list[StoredResponse] = []
            wanted: str | None = response_id
            while wanted is not None and len(found) < MOST_TURNS:
                query = select(RESPONSES).where(RESPONSES.c.owner == owner, RESPONSES.c.id == wanted)
                row = connection.execute(query).one_or_none()
                if row is None:
                    break
                found.append(_response(row))
                wanted = found[-1].previous_id
            return found

        return await self.database.read(work)

    async def delete(self, owner: str, response_id: str) -> bool:
        """Take the owner's response out of the table; False if there is none."""
        query = delete(RESPONSES).where(RESPONSES.c.owner == owner, RESPONSES.c.id == response_id)
        return bool(await self.database.write(lambda connection: connection.execute(query).rowcount))

    async def unfinished(self) -> list[StoredResponse]:
        """All responses of this place that are not finished, oldest first."""
        query = (
            select(RESPONSES)
            .where(RESPONSES.c.place == self.place.id, RESPONSES.c.status.in_(UNFINISHED))
            .order_by(RESPONSES.c.created_us, RESPONSES.c.id)
        )
        return await self.database.read(
            lambda connection: [_response(row) for row in connection.execute(query)]
        )

    async def drop_old(self) -> int:
        """Forget finished responses that are older than `KEPT_DAYS` and that no younger one goes on from;
        returns their count. A chain is forgotten from its end, one response a call."""
        before_us = time.time_ns() // 1000 - KEPT_DAYS * 86_400 * 1_000_000
        later = RESPONSES.alias("later")
        query = delete(RESPONSES).where(
            RESPONSES.c.created_us < before_us,
            RESPONSES.c.status.not_in(UNFINISHED),
            ~select(later.c.id).where(later.c.previous_id == RESPONSES.c.id).exists(),
        )
        return int(await self.database.write(lambda connection: connection.execute(query).rowcount))


_NAMES = tuple(StoredResponse.__dataclass_fields__)


def _response(row: Row[Any]) -> StoredResponse:
    return StoredResponse(**{name: getattr(row, name) for name in _NAMES})
