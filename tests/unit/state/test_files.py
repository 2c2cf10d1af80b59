"""The tables of files and batches: whose they are, their pages, and which changes may follow which."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.api.errors import RequestError
from stoker.state import State, StateLocation, StateSource, StoredFile, locate_state


def with_state(location: StateLocation, work: Any) -> Any:
    async def run() -> Any:
        source = StateSource(location)
        try:
            return await work(await source.opened())
        finally:
            await source.close()

    return asyncio.run(run())


def file_of(state: State, owner: str, created_us: int, **changes: Any) -> StoredFile:
    file = state.files.new(owner, name="a", purpose="batch", size_bytes=3)
    return replace(file, created_us=created_us, **changes)


def test_a_file_is_there_for_its_owner_only(location: StateLocation) -> None:
    async def work(state: State) -> None:
        file = file_of(state, "ann", 7)
        await state.files.add(file)
        assert await state.files.find("ann", file.id) == file
        assert await state.files.find("bob", file.id) is None
        assert await state.files.find("", file.id) is None
        assert (await state.files.page("bob", limit=9, after=None, ascending=True))[0] == []
        with pytest.raises(RequestError, match="not there"):
            await state.files.page("bob", limit=9, after=file.id, ascending=True)
        assert not await state.files.delete("bob", file.id)
        assert await state.files.delete("ann", file.id)
        assert not await state.files.delete("ann", file.id)
        assert await state.files.find("ann", file.id) is None

    with_state(location, work)


def test_an_expired_file_is_not_there(location: StateLocation) -> None:
    async def work(state: State) -> None:
        gone, kept = file_of(state, "ann", 1, expires_s=5), file_of(state, "ann", 2, expires_s=1 << 40)
        for file in (gone, kept):
            await state.files.add(file)
        assert await state.files.find("ann", gone.id) is None
        assert (await state.files.page("ann", limit=9, after=None, ascending=True))[0] == [kept]
        assert await state.files.drop_expired() == [gone.id]
        assert await state.files.drop_expired() == []
        assert await state.files.stored_bytes() == 3

    with_state(location, work)


@settings(max_examples=25, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    created=st.lists(st.integers(0, 3), max_size=12),
    limit=st.integers(1, 5),
    ascending=st.booleans(),
)
def test_pages_are_the_list_in_pieces(
    tmp_path_factory: pytest.TempPathFactory, created: list[int], limit: int, ascending: bool
) -> None:
    """Also where several were made in the same microsecond."""
    location = locate_state(str(tmp_path_factory.mktemp("pages") / "state.db"))
    assert location is not None

    async def work(state: State) -> None:
        files = [file_of(state, "ann", time_us) for time_us in created]
        for file in files:
            await state.files.add(file)
            await state.files.add(replace(file, id=file.id + "x", owner="bob"))
        whole = sorted(files, key=lambda file: (file.created_us, file.id), reverse=not ascending)
        found: list[StoredFile] = []
        more = True
        while more:
            after = found[-1].id if found else None
            page, more = await state.files.page("ann", limit=limit, after=after, ascending=ascending)
            assert len(page) == limit or not more
            found += page
        assert found == whole

    with_state(location, work)


def test_a_batch_changes_only_as_it_may(location: StateLocation) -> None:
    async def work(state: State) -> None:
        batch = state.batches.new(
            "ann",
            tenant="key-1",
            endpoint="/v1/completions",
            input_file_id="file-1",
            window_s=60,
            completion_window="24h",
            metadata={"ä": "\0 🚂"},
        )
        await state.batches.add(batch)
        assert await state.batches.find("ann", batch.id) == batch
        assert await state.batches.find("bob", batch.id) is None
        assert await state.batches.unfinished() == [batch]
        started = await state.batches.change(
            batch.id, follows=("validating",), status="in_progress", total=3, errors=[{"line": 1}]
        )
        assert started is not None
        assert (started.status, started.total, started.errors) == ("in_progress", 3, [{"line": 1}])
        assert started.times is not None
        assert started.times.keys() == {"in_progress"}
        late = await state.batches.change(batch.id, follows=("validating",), status="failed")
        assert late == started
        file = state.files.new("ann", name="out", purpose="batch_output", size_bytes=9)
        for _ in range(2):  # done again after a crash: nothing more happens
            done = await state.batches.change(
                batch.id,
                follows=("in_progress", "completed"),
                status="completed",
                files=[file],
                output_file_id=file.id,
            )
            assert done is not None
            assert done.is_finished
        assert await state.files.find("ann", file.id) == file
        assert await state.batches.unfinished() == []
        assert await state.batches.change("batch_x", follows=("validating",)) is None
        with pytest.raises(ValueError, match="owner"):
            await state.batches.change(batch.id, follows=("completed",), owner="bob")

    with_state(location, work)


def test_another_folders_batches_are_left_alone(location: StateLocation) -> None:
    async def work(state: State) -> None:
        batch = state.batches.new(
            "ann", tenant="", endpoint="/v1/x", input_file_id="f", window_s=1, completion_window="24h"
        )
        await state.batches.add(replace(batch, place="elsewhere"))
        assert await state.batches.unfinished() == []
        assert await state.batches.find("ann", batch.id) is not None

    with_state(location, work)
