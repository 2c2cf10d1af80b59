"""The database beneath the state: made, brought up to date, refused, lost and found again. For real."""

from __future__ import annotations

import asyncio
import shutil
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy
from tests.postgresql import Cluster

from stoker.api.errors import CapacityError, RequestError, UnavailableError
from stoker.state import State, StateLocation, StateSource, locate_state
from stoker.state import batches as batches_module
from stoker.state import completions as completions_module
from stoker.state import files as files_module
from stoker.state import responses as responses_module
from stoker.state.database import Database
from stoker.state.location import data_folder
from stoker.state.migrations import MIGRATIONS

NOUNS = (files_module, batches_module, responses_module, completions_module)


def with_state(location: StateLocation, work: Callable[[State], Awaitable[Any]]) -> Any:
    """What `work` returns, on an opened state that is closed after."""

    async def run() -> Any:
        source = StateSource(location)
        try:
            return await work(await source.opened())
        finally:
            await source.close()

    return asyncio.run(run())


async def add_file(state: State, owner: str = "me") -> str:
    file = state.files.new(owner, name="a.jsonl", purpose="batch", size_bytes=1)
    await state.files.add(file)
    return file.id


def columns_by_table(location: StateLocation) -> dict[str, set[str]]:
    database = Database(location)
    inspector = sqlalchemy.inspect(database._engine)
    found = {name: {c["name"] for c in inspector.get_columns(name)} for name in inspector.get_table_names()}
    database._close()
    return found


def test_the_tables_have_the_columns_that_the_nouns_name(location: StateLocation) -> None:
    database = Database(location)
    database.migrate()
    database.migrate()  # nothing is left to do
    database._close()
    found = columns_by_table(location)
    named = {
        noun.name: {column.name for column in noun.c}
        for module in NOUNS
        for noun in vars(module).values()
        if isinstance(noun, sqlalchemy.TableClause)
    }
    assert {"files", "batches"} <= named.keys()
    assert {name: found[name] for name in named} == named
    assert found.keys() == {*named, "stoker_schema"}


def test_steps_are_numbered_without_gaps() -> None:
    assert [migration.number for migration in MIGRATIONS] == list(range(1, len(MIGRATIONS) + 1))


def test_a_database_of_an_older_version_keeps_its_rows(location: StateLocation) -> None:
    database = Database(location)
    with database._opening, database._errors():
        if location.sqlite_file is not None:
            from stoker.state.database import _make_sqlite_file

            _make_sqlite_file(location.sqlite_file)
        from stoker.state.migrations import migrate

        with database._transaction(writes=True) as connection:
            assert migrate(connection, MIGRATIONS[:1]) == 1
            connection.execute(
                sqlalchemy.text(
                    "INSERT INTO files (id, owner, place, created_us, size_bytes, name, purpose) "
                    "VALUES ('file-old', 'me', 'there', 5000000, 3, 'old', 'batch')"
                )
            )
    database._close()

    async def find(state: State) -> Any:
        return await state.files.find("me", "file-old")

    assert with_state(location, find).created_s == 5


def test_a_database_of_a_newer_version_is_refused_and_left_as_it_is(location: StateLocation) -> None:
    with_state(location, add_file)
    database = Database(location)
    database.migrate()

    def ahead(connection: sqlalchemy.Connection) -> None:
        connection.execute(sqlalchemy.text("INSERT INTO stoker_schema (number, what) VALUES (9999, 'later')"))

    asyncio.run(database.write(ahead))
    database._close()
    before = columns_by_table(location)
    with pytest.raises(UnavailableError, match=r"schema 9999.*newer version"):
        with_state(location, add_file)
    assert columns_by_table(location) == before


def test_two_servers_that_start_at_once_migrate_once(location: StateLocation) -> None:
    databases = [Database(location) for _ in range(4)]
    errors: list[BaseException] = []
    together = threading.Barrier(len(databases))

    def migrate(database: Database) -> None:
        together.wait()
        try:
            database.migrate()
        except BaseException as error:  # told below
            errors.append(error)

    threads = [threading.Thread(target=migrate, args=(database,)) for database in databases]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    for database in databases:
        database._close()
    assert not errors

    async def count(state: State) -> Any:
        query = sqlalchemy.text("SELECT count(*) FROM stoker_schema")
        return await state.database.read(lambda connection: connection.execute(query).scalar_one())

    assert with_state(location, count) == len(MIGRATIONS)


def test_what_two_servers_write_at_once_is_all_there(location: StateLocation) -> None:
    async def work() -> set[str]:
        sources = [StateSource(location), StateSource(location)]
        states = [await source.opened() for source in sources]
        made = await asyncio.gather(*(add_file(states[i % 2]) for i in range(60)))
        found, _ = await states[0].files.page("me", limit=100, after=None, ascending=True)
        for source in sources:
            await source.close()
        assert len(found) == 60
        assert {file.id for file in found} == set(made)
        return set(made)

    assert len(asyncio.run(work())) == 60


def test_a_failed_write_leaves_nothing(location: StateLocation) -> None:
    async def work(state: State) -> Any:
        file = state.files.new("me", name="a", purpose="batch", size_bytes=1)

        def half(connection: sqlalchemy.Connection) -> None:
            files_module.insert_files(connection, [file])
            raise RequestError("no")

        with pytest.raises(RequestError, match="no"):
            await state.database.write(half)
        return await state.files.find("me", file.id)

    assert with_state(location, work) is None


def test_after_close_calls_are_refused(location: StateLocation) -> None:
    async def work() -> None:
        source = StateSource(location)
        state = await source.opened()
        await source.close()
        with pytest.raises(UnavailableError, match="closed"):
            await state.files.find("me", "x")

    asyncio.run(work())


# --- PostgreSQL ------------------------------------------------------------------------------------------


def test_postgresql_goes_away_and_comes_back(postgresql: Cluster, tmp_path: Path) -> None:
    postgresql.sql("DROP SCHEMA public CASCADE; CREATE SCHEMA public")
    location = locate_state(postgresql.url, folder=tmp_path)
    assert location is not None

    async def work(state: State) -> None:
        first = await add_file(state)
        await asyncio.to_thread(postgresql.stop)
        try:
            for _ in range(3):
                with pytest.raises(UnavailableError, match="does not answer"):
                    await add_file(state)
                with pytest.raises(UnavailableError):
                    await state.files.find("me", first)
        finally:
            await asyncio.to_thread(postgresql.start)
        deadline = time.monotonic() + 10
        while True:
            try:
                second = await add_file(state)
                break
            except UnavailableError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.1)
        found, _ = await state.files.page("me", limit=10, after=None, ascending=True)
        assert [file.id for file in found] == [first, second]

    with_state(location, work)


def test_postgresql_that_is_not_there_at_the_start_is_asked_again(
    postgresql: Cluster, tmp_path: Path
) -> None:
    location = locate_state(postgresql.url, folder=tmp_path)
    assert location is not None

    async def work() -> None:
        source = StateSource(location)
        postgresql.stop()
        try:
            with pytest.raises(UnavailableError, match="does not answer"):
                await source.opened()
        finally:
            postgresql.start()
        await add_file(await source.opened())
        await source.close()

    asyncio.run(work())


def test_what_postgresql_cannot_store_is_the_requests_fault(postgresql: Cluster, tmp_path: Path) -> None:
    location = locate_state(postgresql.url, folder=tmp_path)
    assert location is not None

    async def work(state: State) -> None:
        file = state.files.new("me", name="a\0b", purpose="batch", size_bytes=1)
        with pytest.raises(RequestError, match="cannot be stored"):
            await state.files.add(file)

    with_state(location, work)


def test_a_password_is_never_shown(tmp_path: Path) -> None:
    location = locate_state("postgres://ann:secret@127.0.0.1:1/db", folder=tmp_path)
    assert location is not None
    assert location.shown == "postgresql+psycopg://ann@127.0.0.1/db"
    with pytest.raises(UnavailableError) as found:
        with_state(location, add_file)
    assert "secret" not in str(found.value)


# --- SQLite ----------------------------------------------------------------------------------------------


@pytest.fixture
def sqlite_location(tmp_path: Path) -> StateLocation:
    found = locate_state(f"sqlite:///{tmp_path / 'a folder' / 'state?.db'}")
    assert found is not None
    return found


def test_a_file_that_is_moved_away_is_missed_and_used_again_when_it_is_back(
    sqlite_location: StateLocation, tmp_path: Path
) -> None:
    path = sqlite_location.sqlite_file
    assert path is not None
    away = tmp_path / "away.db"

    async def work(state: State) -> None:
        first = await add_file(state)
        shutil.move(path, away)
        for _ in range(2):
            with pytest.raises(UnavailableError, match="is gone"):
                await add_file(state)
        assert not path.exists()
        shutil.move(away, path)
        second = await add_file(state)
        found, _ = await state.files.page("me", limit=10, after=None, ascending=True)
        assert [file.id for file in found] == [first, second]

    with_state(sqlite_location, work)


def test_another_file_in_its_place_is_brought_up_to_date(sqlite_location: StateLocation) -> None:
    path = sqlite_location.sqlite_file
    assert path is not None

    async def work(state: State) -> None:
        await add_file(state)
        new = path.with_name("new.db")
        sqlite3.connect(new).close()
        new.touch()
        new.replace(path)
        second = await add_file(state)
        found, _ = await state.files.page("me", limit=10, after=None, ascending=True)
        assert [file.id for file in found] == [second]

    with_state(sqlite_location, work)


def test_only_its_owner_can_read_the_file(sqlite_location: StateLocation) -> None:
    with_state(sqlite_location, add_file)
    path = sqlite_location.sqlite_file
    assert path is not None
    assert path.stat().st_mode & 0o077 == 0
    assert sqlite_location.folder.stat().st_mode & 0o077 == 0


@pytest.mark.parametrize("content", [b"this is no database" * 100, b"SQLite format 3\0" + b"\xff" * 4096])
def test_a_file_that_is_no_database_is_refused(sqlite_location: StateLocation, content: bytes) -> None:
    path = sqlite_location.sqlite_file
    assert path is not None
    path.parent.mkdir()
    path.write_bytes(content)
    with pytest.raises(UnavailableError, match="cannot be used"):
        with_state(sqlite_location, add_file)
    assert path.read_bytes() == content


def test_a_place_that_is_no_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    location = locate_state(str(tmp_path / "file" / "state.db"))
    assert location is not None
    with pytest.raises(UnavailableError, match="cannot be used"):
        with_state(location, add_file)


def test_a_full_disk_is_told_and_passes(sqlite_location: StateLocation) -> None:
    async def work(state: State) -> None:
        def limit(pages: int) -> Callable[[Any, Any], None]:
            def pragma(connection: Any, record: Any) -> None:
                connection.execute(f"PRAGMA max_page_count = {pages}")

            return pragma

        engine = state.database._engine
        full = limit(1)  # SQLite takes the pages there are instead: no new one
        sqlalchemy.event.listen(engine, "connect", full)
        engine.dispose()

        async def fill() -> None:
            for _ in range(500):
                file = state.files.new("me", name="x" * 2000, purpose="batch", size_bytes=1)
                await state.files.add(file)

        with pytest.raises(CapacityError, match="cannot take more"):
            await fill()
        sqlalchemy.event.remove(engine, "connect", full)
        engine.dispose()
        await add_file(state)

    with_state(sqlite_location, work)


def test_another_program_that_locks_the_file_makes_no_crash(
    sqlite_location: StateLocation, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.state.database._BUSY_TIMEOUT_S", 0.1)
    path = sqlite_location.sqlite_file
    assert path is not None

    async def work(state: State) -> None:
        other = sqlite3.connect(path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        with pytest.raises(UnavailableError, match="locked"):
            await add_file(state)
        assert (await state.files.page("me", limit=1, after=None, ascending=True))[0] == []  # readers go on
        other.close()
        await add_file(state)

    with_state(sqlite_location, work)


# --- where it lies ---------------------------------------------------------------------------------------


def test_places(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert locate_state("none") is None
    default = locate_state(None, folder=tmp_path)
    assert default == StateLocation(tmp_path / "files", sqlite_file=tmp_path / "state.db")
    monkeypatch.chdir(tmp_path)
    here = locate_state("x.db")
    assert here is not None
    assert here.sqlite_file == tmp_path / "x.db"
    assert locate_state(f"sqlite:///{tmp_path}/x.db") == here
    for wrong in ("mysql://u:secret@h/d", "", str(tmp_path), "http://x", "sqlite://"):
        with pytest.raises(RequestError, match="allowed") as found:
            locate_state(wrong)
        assert "secret" not in str(found.value)
    with pytest.raises(RequestError, match="PORT") as found:
        locate_state("postgresql://ann:secret@host:port/db", folder=tmp_path)
    assert "secret" not in str(found.value)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(RequestError, match="psycopg"):
        locate_state("postgresql://host/db", folder=tmp_path)
    with pytest.raises(RequestError):
        Database(StateLocation(tmp_path, url="postgresql+psycopg://a:b:c:d@:x/"))


def test_the_default_folder() -> None:
    home = Path("/homes/ann")
    assert data_folder({}, home, "linux") == home / ".local/share/stoker"
    assert data_folder({"XDG_DATA_HOME": "/data"}, None, "linux") == Path("/data/stoker")
    assert data_folder({"STOKER_HOME": "/own"}, None, "darwin") == Path("/own/state")
    assert data_folder({}, home, "darwin") == home / "Library/Application Support/stoker"
    assert data_folder({"LOCALAPPDATA": "/local"}, None, "win32") == Path("/local/stoker/state")
    assert data_folder({}, None, "linux") is None


def test_a_start_of_the_server_does_not_import_the_database() -> None:
    program = (
        "import sys, stoker.server.app, stoker.server.run, stoker.cli.compose\n"
        "print([name for name in ('sqlalchemy', 'psycopg', 'alembic', 'sqlite3') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_what_was_closed_is_not_opened_again(tmp_path: Path) -> None:
    async def run() -> None:
        source = StateSource(StateLocation(tmp_path / "files", sqlite_file=tmp_path / "state.db"))
        await source.opened()
        await source.close()
        with pytest.raises(UnavailableError, match="stopping"):
            await source.opened()

    asyncio.run(run())
