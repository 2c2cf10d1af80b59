"""Files that clients have uploaded, and those that batches have written. Contents are on disk (`content`)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Connection, Row, Select, column, delete, func, insert, or_, select, table, tuple_

from stoker.api.errors import RequestError
from stoker.state.database import Database
from stoker.state.place import Place

FILES = table(
    "files",
    column("id"),
    column("owner"),
    column("place"),
    column("created_us"),
    column("expires_s"),
    column("size_bytes"),
    column("name"),
    column("purpose"),
)


@dataclass(frozen=True, slots=True)
class StoredFile:
    """A file whose content is whole and on disk."""

    id: str
    owner: str  # whose API key made it (`stoker.server.http.owner`)
    place: str  # the id of the folder its content is in
    created_us: int  # Unix time in microseconds; files are listed in this order
    expires_s: int | None  # Unix time from which on it is gone
    size_bytes: int
    name: str
    purpose: str

    @property
    def created_s(self) -> int:
        """Unix seconds."""
        return self.created_us // 1_000_000


@dataclass(frozen=True, slots=True)
class Files:
    """The table of files."""

    database: Database
    place: Place

    def new(
        self,
        owner: str,
        *,
        name: str,
        purpose: str,
        size_bytes: int,
        expires_after_s: int | None = None,
        file_id: str | None = None,
    ) -> StoredFile:
        """A file of now, not yet in the table. Its id is drawn unless it is given."""
        now_us = time.time_ns() // 1000
        return StoredFile(
            id=file_id or f"file-{secrets.token_hex(12)}",
            owner=owner,
            place=self.place.id,
            created_us=now_us,
            expires_s=None if expires_after_s is None else now_us // 1_000_000 + expires_after_s,
            size_bytes=size_bytes,
            name=name,
            purpose=purpose,
        )

    async def add(self, file: StoredFile) -> None:
        """Put a file into the table, once its content is in its place."""
        await self.database.write(lambda connection: insert_files(connection, [file]))

    async def find(self, owner: str, file_id: str) -> StoredFile | None:
        """The owner's file of this id; none for one that is another's, expired or not there."""
        query = _of_owner(owner).where(FILES.c.id == file_id)

        def work(connection: Connection) -> StoredFile | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else _file(row)

        return await self.database.read(work)

    async def page(
        self, owner: str, *, limit: int, after: str | None, ascending: bool, purpose: str | None = None
    ) -> tuple[list[StoredFile], bool]:
        """The owner's files in the order they were made, and whether more follow.

        `after` is the id of the one before the first. Raises `RequestError` if it is not there.
        """

        def work(connection: Connection) -> list[StoredFile]:
            query = _of_owner(owner)
            if purpose is not None:
                query = query.where(FILES.c.purpose == purpose)
            query = page_of(connection, query, FILES, owner, limit=limit, after=after, ascending=ascending)
            return [_file(row) for row in connection.execute(query)]

        found = await self.database.read(work)
        return found[:limit], len(found) > limit

    async def delete(self, owner: str, file_id: str) -> bool:
        """Take the owner's file out of the table; False if there is none. Its content goes after."""
        query = delete(FILES).where(FILES.c.owner == owner, FILES.c.id == file_id)
        return bool(await self.database.write(lambda connection: connection.execute(query).rowcount))

    async def stored_bytes(self) -> int:
        """Bytes of all contents in this place."""
        query = select(func.coalesce(func.sum(FILES.c.size_bytes), 0)).where(FILES.c.place == self.place.id)
        return int(await self.database.read(lambda connection: connection.execute(query).scalar_one()))

    async def drop_expired(self) -> list[str]:
        """Take expired files of this place out of the table; returns their ids, whose contents may go."""
        late = (FILES.c.place == self.place.id) & (FILES.c.expires_s <= int(time.time()))

        def work(connection: Connection) -> list[str]:
            ids = [row.id for row in connection.execute(select(FILES.c.id).where(late))]
            if ids:
                connection.execute(delete(FILES).where(late))
            return ids

        return await self.database.write(work)

    async def known(self, file_ids: Sequence[str]) -> set[str]:
        """Which of these ids are in the table, whoever's they are."""
        query = select(FILES.c.id).where(FILES.c.id.in_(file_ids))
        return await self.database.read(lambda connection: {row.id for row in connection.execute(query)})


def insert_files(connection: Connection, files: Sequence[StoredFile]) -> None:
    """Rows for `files`; those that are there already stay as they are."""
    for file in files:
        known = connection.execute(select(FILES.c.id).where(FILES.c.id == file.id)).one_or_none()
        if known is None:
            connection.execute(insert(FILES).values(**{name: getattr(file, name) for name in _NAMES}))


def page_of(
    connection: Connection,
    query: Select[Any],
    nouns: Any,
    owner: str,
    *,
    limit: int,
    after: str | None,
    ascending: bool,
) -> Select[Any]:
    """`query` for one page and one row more, of a table with owner, created_us and id.

    Raises `RequestError` if the owner has no row with the id `after`.
    """
    place = tuple_(nouns.c.created_us, nouns.c.id)
    if after is not None:
        known = select(nouns.c.created_us).where(nouns.c.owner == owner, nouns.c.id == after)
        row = connection.execute(known).one_or_none()
        if row is None:
            raise RequestError(f"after is {after!r:.100}, which is not there; allowed: an id of the list")
        last = tuple_(row.created_us, after)
        query = query.where(place > last if ascending else place < last)
    order = [nouns.c.created_us, nouns.c.id]
    return query.order_by(*(order if ascending else [part.desc() for part in order])).limit(limit + 1)


_NAMES = ("id", "owner", "place", "created_us", "expires_s", "size_bytes", "name", "purpose")


def _of_owner(owner: str) -> Select[Any]:
    alive = or_(FILES.c.expires_s.is_(None), FILES.c.expires_s > int(time.time()))
    return select(FILES).where(FILES.c.owner == owner, alive)


def _file(row: Row[Any]) -> StoredFile:
    return StoredFile(**{name: getattr(row, name) for name in _NAMES})
