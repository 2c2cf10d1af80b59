"""Batches: what each was asked to do, how far it is, and what came of it. Their lines are on disk.

A batch's row has two writers: its client, who may ask to cancel, and the one server that runs it. Each change
names the statuses it may follow, so that neither undoes what the other did.
"""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from sqlalchemy import Connection, Row, column, insert, select, table, update

from stoker.state.database import Database
from stoker.state.files import StoredFile, insert_files, page_of
from stoker.state.place import Place

BatchStatus = Literal[
    "validating", "in_progress", "finalizing", "completed", "failed", "expired", "cancelling", "cancelled"
]
UNFINISHED: Sequence[BatchStatus] = ("validating", "in_progress", "finalizing", "cancelling")

BATCHES = table(
    "batches",
    column("id"),
    column("owner"),
    column("tenant"),
    column("place"),
    column("created_us"),
    column("expires_s"),
    column("endpoint"),
    column("input_file_id"),
    column("completion_window"),
    column("output_expires_s"),
    column("metadata"),
    column("status"),
    column("times"),
    column("total"),
    column("completed"),
    column("failed"),
    column("token_usage"),
    column("errors"),
    column("output_file_id"),
    column("error_file_id"),
)


@dataclass(frozen=True, slots=True)
class StoredBatch:
    """A batch as it is in the table."""

    id: str
    owner: str
    tenant: str  # for whom the scheduler counts its tokens
    place: str
    created_us: int
    expires_s: int  # Unix time at which lines that have not run are given up
    endpoint: str
    input_file_id: str
    completion_window: str
    output_expires_s: int | None  # seconds after which the files it writes expire
    metadata: Mapping[str, str] | None
    status: BatchStatus = "validating"
    times: Mapping[str, int] | None = None  # status -> Unix time at which it came
    total: int = 0  # lines
    completed: int = 0  # answered with 200
    failed: int = 0
    token_usage: Mapping[str, Any] | None = None
    errors: Sequence[Mapping[str, Any]] | None = None  # why the batch, or the first of its bad lines, failed
    output_file_id: str | None = None
    error_file_id: str | None = None

    @property
    def created_s(self) -> int:
        """Unix seconds."""
        return self.created_us // 1_000_000

    @property
    def is_finished(self) -> bool:
        """True once nothing of it changes any more."""
        return self.status not in UNFINISHED


@dataclass(frozen=True, slots=True)
class Batches:
    """The table of batches."""

    database: Database
    place: Place

    def new(
        self,
        owner: str,
        *,
        tenant: str,
        endpoint: str,
        input_file_id: str,
        window_s: int,
        completion_window: str,
        output_expires_s: int | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> StoredBatch:
        """A batch of now, not yet in the table."""
        now_us = time.time_ns() // 1000
        return StoredBatch(
            id=f"batch_{secrets.token_hex(12)}",
            owner=owner,
            tenant=tenant,
            place=self.place.id,
            created_us=now_us,
            expires_s=now_us // 1_000_000 + window_s,
            endpoint=endpoint,
            input_file_id=input_file_id,
            completion_window=completion_window,
            output_expires_s=output_expires_s,
            metadata=metadata,
            times={},
        )

    async def add(self, batch: StoredBatch) -> None:
        """Put a new batch into the table."""
        values = {name: _encoded(name, getattr(batch, name)) for name in _NAMES}
        await self.database.write(lambda connection: connection.execute(insert(BATCHES).values(**values)))

    async def find(self, owner: str, batch_id: str) -> StoredBatch | None:
        """The owner's batch of this id; none for another's, or one that is not there."""
        found = await self.refreshed(batch_id)
        return found if found is not None and found.owner == owner else None

    async def refreshed(self, batch_id: str) -> StoredBatch | None:
        """The batch as it is now, whoever's it is; none if it is not there."""
        query = select(BATCHES).where(BATCHES.c.id == batch_id)

        def work(connection: Connection) -> StoredBatch | None:
            row = connection.execute(query).one_or_none()
            return None if row is None else _batch(row)

        return await self.database.read(work)

    async def page(self, owner: str, *, limit: int, after: str | None) -> tuple[list[StoredBatch], bool]:
        """The owner's batches, newest first, and whether more follow. Raises as `Files.page`."""

        def work(connection: Connection) -> list[StoredBatch]:
            query = select(BATCHES).where(BATCHES.c.owner == owner)
            query = page_of(connection, query, BATCHES, owner, limit=limit, after=after, ascending=False)
            return [_batch(row) for row in connection.execute(query)]

        found = await self.database.read(work)
        return found[:limit], len(found) > limit

    async def unfinished(self) -> list[StoredBatch]:
        """All batches of this place that are not finished, oldest first."""
        query = (
            select(BATCHES)
            .where(BATCHES.c.place == self.place.id, BATCHES.c.status.in_(UNFINISHED))
            .order_by(BATCHES.c.created_us, BATCHES.c.id)
        )
        return await self.database.read(lambda connection: [_batch(row) for row in connection.execute(query)])

    async def change(
        self,
        batch_id: str,
        *,
        follows: Sequence[BatchStatus],
        status: BatchStatus | None = None,
        files: Sequence[StoredFile] = (),
        **values: Any,
    ) -> StoredBatch | None:
        """Set `values`, and `status` with its time, if the batch has one of the statuses in `follows`; with
        it the rows of `files`, in one transaction. Returns the batch as it is then, none if it is not there.
        """
        unknown = values.keys() - _CHANGING
        if unknown:
            raise ValueError(f"{sorted(unknown)} of a batch do not change")

        def work(connection: Connection) -> StoredBatch | None:
            # Read with a lock: in PostgreSQL other servers write too.
            query = select(BATCHES).where(BATCHES.c.id == batch_id).with_for_update()
            row = connection.execute(query).one_or_none()
            if row is None or row.status not in follows:
                return None if row is None else _batch(row)
            new = {name: _encoded(name, value) for name, value in values.items()}
            if status is not None:
                times = {**json.loads(row.times), status: int(time.time())}
                new |= {"status": status, "times": json.dumps(times)}
            if new:
                connection.execute(update(BATCHES).where(BATCHES.c.id == batch_id).values(**new))
            insert_files(connection, files)
            return _batch(connection.execute(query).one())

        return await self.database.write(work)


_NAMES = tuple(StoredBatch.__dataclass_fields__)
_JSON = frozenset({"metadata", "times", "token_usage", "errors"})
_CHANGING = frozenset(
    {"total", "completed", "failed", "token_usage", "errors", "output_file_id", "error_file_id"}
)


def _encoded(name: str, value: Any) -> Any:
    return json.dumps(value) if name in _JSON and value is not None else value


def _batch(row: Row[Any]) -> StoredBatch:
    values = {name: getattr(row, name) for name in _NAMES}
    for name in _JSON:
        if values[name] is not None:
            values[name] = json.loads(values[name])
    return StoredBatch(**values)
