"""Answers of chats that are kept because their request said so, to be listed by model and metadata."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, column, delete, insert, literal, select, table

from stoker.state.database import Database
from stoker.state.files import page_of

COMPLETIONS = table(
    "completions",
    column("id"),
    column("owner"),
    column("created_us"),
    column("model"),
    column("body"),
    column("messages"),
)
# One row for each pair, so that both databases can look for a pair in the same words.
METADATA = table("completion_metadata", column("completion_id"), column("name"), column("text"))


@dataclass(frozen=True, slots=True)
class StoredCompletion:
    """A chat completion as it is in the tables."""

    id: str
    owner: str  # whose API key made it
    created_us: int  # Unix time in microseconds; completions are listed in this order
    model: str
    body: str  # JSON of the answer's object, without metadata
    messages: str  # JSON of the messages it answered
    metadata: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Completions:
    """The tables of chat completions."""

    database: Database

    def new(
        self,
        owner: str,
        completion_id: str,
        *,
        model: str,
        body: str,
        messages: str,
        metadata: Mapping[str, str],
    ) -> StoredCompletion:
        """A completion of now, not yet in the tables."""
        now_us = time.time_ns() // 1000
        return StoredCompletion(completion_id, owner, now_us, model, body, messages, metadata)

    async def check(self) -> None:
        """Raise `UnavailableError` if the database does not answer now."""
        await self.database.read(lambda connection: connection.execute(select(literal(1))).one())

    async def add(self, completion: StoredCompletion) -> None:
        """Put a completion into the tables; one that is there already stays as it is."""
        values = {name: getattr(completion, name) for name in _NAMES}

        def work(connection: Connection) -> None:
            known = select(COMPLETIONS.c.id).where(COMPLETIONS.c.id == completion.id)
            if connection.execute(known).one_or_none() is None:
                connection.execute(insert(COMPLETIONS).values(**values))
                _write_metadata(connection, completion.id, completion.metadata)

        await self.database.write(work)

    async def find(self, owner: str, completion_id: str) -> StoredCompletion | None:
        """The owner's completion of this id; none for another's, or one that is not there."""
        return await self.database.read(lambda connection: _find(connection, owner, completion_id))

    async def page(
        self,
        owner: str,
        *,
        limit: int,
        after: str | None,
        ascending: bool,
        model: str | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> tuple[list[StoredCompletion], bool]:
        """The owner's completions in the order they were made, and whether more follow.

        Only those of `model`, and with every pair of `metadata`, where these are given. `after` is the id of
        the one before the first. Raises `RequestError` if it is not there.
        """

        def work(connection: Connection) -> list[StoredCompletion]:
            query = select(COMPLETIONS).where(COMPLETIONS.c.owner == owner)
            if model is not None:
                query = query.where(COMPLETIONS.c.model == model)
            for name, text in (metadata or {}).items():
                pair = select(METADATA.c.name).where(
                    METADATA.c.completion_id == COMPLETIONS.c.id,
                    METADATA.c.name == name,
                    METADATA.c.text == text,
                )
                query = query.where(pair.exists())
            query = page_of(
                connection, query, COMPLETIONS, owner, limit=limit, after=after, ascending=ascending
            )
            return [_completion(connection, row) for row in connection.execute(query).all()]

        found = await self.database.read(work)
        return found[:limit], len(found) > limit

    async def set_metadata(
        self, owner: str, completion_id: str, metadata: Mapping[str, str]
    ) -> StoredCompletion | None:
        """Give the owner's completion other metadata; returns it, none if it is not there."""

        def work(connection: Connection) -> StoredCompletion | None:
            if _find(connection, owner, completion_id, lock=True) is None:
                return None
            connection.execute(delete(METADATA).where(METADATA.c.completion_id == completion_id))
            _write_metadata(connection, completion_id, metadata)
            return _find(connection, owner, completion_id)

        return await self.database.write(work)

    async def delete(self, owner: str, completion_id: str) -> bool:
        """Take the owner's completion out of the tables; False if there is none."""

        def work(connection: Connection) -> bool:
            if _find(connection, owner, completion_id, lock=True) is None:
                return False
            connection.execute(delete(METADATA).where(METADATA.c.completion_id == completion_id))
            connection.execute(delete(COMPLETIONS).where(COMPLETIONS.c.id == completion_id))
            return True

        return await self.database.write(work)


_NAMES = ("id", "owner", "created_us", "model", "body", "messages")


def _write_metadata(connection: Connection, completion_id: str, metadata: Mapping[str, str]) -> None:
    for name, text in metadata.items():
        connection.execute(insert(METADATA).values(completion_id=completion_id, name=name, text=text))


def _find(
    connection: Connection, owner: str, completion_id: str, *, lock: bool = False
) -> StoredCompletion | None:
    query = select(COMPLETIONS).where(COMPLETIONS.c.owner == owner, COMPLETIONS.c.id == completion_id)
    row = connection.execute(query.with_for_update() if lock else query).one_or_none()
    return None if row is None else _completion(connection, row)


def _completion(connection: Connection, row: Row[Any]) -> StoredCompletion:
    query = select(METADATA.c.name, METADATA.c.text).where(METADATA.c.completion_id == row.id)
    pairs = {pair.name: pair.text for pair in connection.execute(query.order_by(METADATA.c.name))}
    return StoredCompletion(**{name: getattr(row, name) for name in _NAMES}, metadata=pairs)
