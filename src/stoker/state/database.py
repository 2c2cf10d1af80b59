"""One database, reached from an event loop: calls run in a few threads, all writes in one of them.

Only this file knows how SQLite and PostgreSQL differ. Whatever goes wrong leaves as one of Stoker's errors;
a database that went away is used again as soon as it is back.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import sqlite3
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import quote

import sqlalchemy
from sqlalchemy import Connection, Engine, event
from sqlalchemy import exc as sql_errors
from sqlalchemy.pool import QueuePool

from stoker.api.errors import CapacityError, EngineError, RequestError, StokerError, UnavailableError
from stoker.state.disk import disk_error
from stoker.state.location import StateLocation
from stoker.state.migrations import migrate

if TYPE_CHECKING:
    from sqlalchemy.engine import URL

_READERS = 3
_BUSY_TIMEOUT_S = 10.0  # while another process writes to the same SQLite file
_CONNECT_TIMEOUT_S = 5
# A server that does not answer costs a call its time limit; for so long after one, others fail at once.
_REST_AFTER_FAILURE_S = 0.5
_WRITES = "stoker_writes"
_SQLITE_FULL = frozenset({"SQLITE_FULL"})
_POSTGRESQL_FULL = frozenset({"53100", "53200", "53400"})  # disk, memory, a configured limit

T = TypeVar("T")


class Database:
    """Gives its threads connections in transactions. Close it from the loop it is used in."""

    def __init__(self, location: StateLocation) -> None:
        """Nothing is opened. Raises `RequestError` for a driver that is missing or a URL it cannot read."""
        self._location = location
        self._file = location.sqlite_file
        self._engine = _engine(location)
        self._identity: tuple[int, int] | None = None  # device and inode of the SQLite file that is open
        self._opening = threading.Lock()
        self._rests_until_s = 0.0
        self._writer = ThreadPoolExecutor(1, "stoker-state-write")
        self._readers = ThreadPoolExecutor(_READERS, "stoker-state-read")

    @property
    def shown(self) -> str:
        """The database's place, without a password."""
        return self._location.shown

    async def read(self, work: Callable[[Connection], T]) -> T:
        """What `work` returns, run in a thread, in a transaction. It may run at once with others.

        Raises `UnavailableError`, `CapacityError` if the disk is full, and what `work` raises of ours.
        """
        return await self._in(self._readers, work, writes=False)

    async def write(self, work: Callable[[Connection], T]) -> T:
        """As `read`, but alone among this process's writers; committed when it returns."""
        return await self._in(self._writer, work, writes=True)

    async def _in(self, threads: ThreadPoolExecutor, work: Callable[[Connection], T], *, writes: bool) -> T:
        loop = asyncio.get_running_loop()
        try:
            future = loop.run_in_executor(threads, self._run, work, writes)
        except RuntimeError as error:  # closed
            raise UnavailableError("the state is closed: the server is stopping") from error
        return await future

    def _run(self, work: Callable[[Connection], T], writes: bool) -> T:
        with self._errors():
            self._check_file()
            with self._transaction(writes) as connection:
                return work(connection)

    @contextlib.contextmanager
    def _transaction(self, writes: bool) -> Iterator[Connection]:
        with self._engine.connect() as plain:
            connection = plain.execution_options(**{_WRITES: writes})
            with connection.begin():
                yield connection

    # --- opening -------------------------------------------------------------------------------------

    def migrate(self) -> None:
        """Make what is missing, and bring the tables up to date. Blocks."""
        with self._opening, self._errors():
            self._migrate()

    def _migrate(self) -> None:
        if self._file is not None:
            _make_sqlite_file(self._file)
        with self._transaction(writes=True) as connection:
            migrate(connection)
        if self._file is not None:
            self._identity = _identity(self._file)

    def _check_file(self) -> None:
        """Notice that the SQLite file is another one now, or none: its connections still see the old one."""
        if self._file is None or _identity(self._file) == self._identity:
            return
        with self._opening:
            found = _identity(self._file)
            if found == self._identity:
                return
            # Closing the last connection also writes what its log still holds into the file, wherever it is.
            self._engine.dispose()
            if found is None:
                raise UnavailableError(
                    f"the state database {self._file} is gone",
                    hint="put it back; a restart of the server begins an empty one",
                )
            self._migrate()

    # --- errors --------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        if time.monotonic() < self._rests_until_s:
            raise UnavailableError(f"the state database {self.shown} does not answer; try again in a moment")
        try:
            yield
        except StokerError:
            raise
        except sql_errors.DBAPIError as error:
            raise self._mapped(error) from error
        except sql_errors.TimeoutError as error:  # of the pool
            raise UnavailableError(f"the state database {self.shown} has too much to do") from error
        except UnicodeEncodeError as error:
            raise RequestError(f"a text cannot be stored: {error.reason}") from error
        except OSError as error:
            raise disk_error(error, "the state database cannot be used") from error

    def _mapped(self, error: sql_errors.DBAPIError) -> StokerError:
        cause: Any = error.orig
        reason = " ".join(str(cause).split())[:300]
        code = getattr(cause, "sqlite_errorname", None) or getattr(cause, "sqlstate", None) or ""
        if code in _SQLITE_FULL or code in _POSTGRESQL_FULL:
            return CapacityError(
                f"the state database {self.shown} cannot take more: {reason}",
                hint="make room on its disk; nothing else is needed",
            )
        if isinstance(error, sql_errors.DataError):
            return RequestError(f"a value cannot be stored: {reason}")
        if isinstance(error, sql_errors.IntegrityError | sql_errors.ProgrammingError):
            return EngineError(f"the state database {self.shown} refused a statement: {reason}")
        if self._file is None:
            self._rests_until_s = time.monotonic() + _REST_AFTER_FAILURE_S
        return UnavailableError(f"the state database {self.shown} does not answer: {reason}")

    async def close(self) -> None:
        """Let calls that run finish; those that wait are done too, and new ones refused."""
        await asyncio.to_thread(self._close)

    def _close(self) -> None:
        self._writer.shutdown(wait=True)
        self._readers.shutdown(wait=True)
        self._engine.dispose()


def _engine(location: StateLocation) -> Engine:
    if location.sqlite_file is not None:
        path = location.sqlite_file
        engine = sqlalchemy.create_engine(
            "sqlite+pysqlite://",
            creator=lambda: _connect_sqlite(path),
            poolclass=QueuePool,
            pool_size=_READERS + 1,
        )
        # The driver would begin a transaction by itself, at the first change: too late for one that reads
        # before it writes, and never for one that changes tables.
        event.listen(engine, "begin", _begin_sqlite)
        return engine
    url = _postgresql_url(location.url or "")
    try:
        engine = sqlalchemy.create_engine(
            url,
            pool_size=_READERS + 1,
            pool_pre_ping=True,  # a connection that has died while it lay in the pool is replaced
            pool_timeout=30,
            connect_args={
                "connect_timeout": _CONNECT_TIMEOUT_S,
                "application_name": "stoker",
                "tcp_user_timeout": 10_000,  # of a network that swallows everything
                "prepare_threshold": None,  # a pooler between (PgBouncer) may hand out another connection
            },
        )
    except ModuleNotFoundError as error:
        raise RequestError(
            f"PostgreSQL needs the package psycopg, which is not installed ({error})",
            hint='pip install "stoker[postgresql]"',
        ) from error
    event.listen(engine, "begin", _begin_postgresql)
    return engine


def _postgresql_url(text: str) -> URL:
    try:
        return sqlalchemy.make_url(text)
    except (sql_errors.ArgumentError, ValueError) as error:
        # The text may hold a password, so it is not repeated.
        raise RequestError(
            "--state is no URL of a database; allowed: postgresql://USER:PASSWORD@HOST:PORT/DATABASE"
        ) from error


def _connect_sqlite(path: Path) -> sqlite3.Connection:
    # mode=rw: a file that is gone is an error, not a new database.
    connection = sqlite3.connect(
        f"file:{quote(str(path))}?mode=rw",
        uri=True,
        timeout=_BUSY_TIMEOUT_S,
        check_same_thread=False,  # the pool hands it from thread to thread, one at a time
        isolation_level=None,
    )
    # FULL: what was answered to a client is on the disk, also when the power fails.
    connection.executescript("PRAGMA foreign_keys = ON; PRAGMA synchronous = FULL;")
    return connection


def _begin_sqlite(connection: Connection) -> None:
    writes = connection.get_execution_options().get(_WRITES, True)
    connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")


def _begin_postgresql(connection: Connection) -> None:
    # For this transaction only, and not as a start-up option, which poolers refuse.
    connection.exec_driver_sql("SET LOCAL statement_timeout = 60000; SET LOCAL lock_timeout = 30000")


def _make_sqlite_file(path: Path) -> None:
    """The file, readable by its owner only, in WAL mode: readers and a writer do not wait for each other."""
    path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    for _ in range(100):
        try:
            with contextlib.closing(_connect_sqlite(path)) as connection:
                connection.execute("PRAGMA journal_mode = WAL")
            return
        except sqlite3.DatabaseError as error:
            # Two servers that start at once: the change of mode does not wait by itself.
            if getattr(error, "sqlite_errorname", "") not in ("SQLITE_BUSY", "SQLITE_LOCKED"):
                raise _of_sqlite(error, path) from error
            time.sleep(0.05)
    raise UnavailableError(f"the state database {path} is locked by another program")


def _of_sqlite(error: sqlite3.Error, path: Path) -> StokerError:
    if getattr(error, "sqlite_errorname", "") in _SQLITE_FULL:
        return CapacityError(f"the state database {path} cannot take more: {error}")
    return UnavailableError(f"the state database {path} cannot be used: {error}")


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_dev, status.st_ino
