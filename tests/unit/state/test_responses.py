"""The table of responses, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import replace

from stoker.state import State, StateLocation, StateSource
from stoker.state.responses import KEPT_DAYS, UNFINISHED, StoredResponse


def _with(location: StateLocation, test: Callable[[State], Awaitable[None]]) -> None:
    async def run() -> None:
        source = StateSource(location)
        try:
            await test(await source.opened())
        finally:
            await source.close()

    asyncio.run(run())


def _new(state: State, name: str, *, owner: str = "ann", **fields: object) -> StoredResponse:
    made = state.responses.new(
        owner, f"resp_{name}", previous_id=None, status="completed", body='{"b": "é\\u0000🚂"}', items="[]"
    )
    return replace(made, **fields)  # type: ignore[arg-type]


def test_what_is_stored_is_found_by_its_owner_only(location: StateLocation) -> None:
    async def test(state: State) -> None:
        table = state.responses
        first = _new(state, "1")
        await table.check()
        await table.add(first)
        await table.add(replace(first, body="other"))  # as after a doubt whether it was written
        assert await table.find("ann", first.id) == first
        assert await table.find("bob", first.id) is None
        assert await table.chain("bob", first.id) == []
        assert not await table.delete("bob", first.id)
        assert await table.delete("ann", first.id)
        assert not await table.delete("ann", first.id)
        assert await table.find("ann", first.id) is None

    _with(location, test)


def test_chains(location: StateLocation) -> None:
    async def test(state: State) -> None:
        table = state.responses
        first = _new(state, "1")
        second = _new(state, "2", previous_id=first.id)
        fork = _new(state, "2b", previous_id=first.id)
        third = _new(state, "3", previous_id=second.id)
        foreign = _new(state, "4", owner="bob", previous_id=third.id)
        for response in (first, second, fork, third, foreign):
            await table.add(response)
        assert await table.chain("ann", third.id) == [third, second, first]
        assert await table.chain("ann", fork.id) == [fork, first]
        assert await table.chain("bob", foreign.id) == [foreign], "another's are not there"
        await table.delete("ann", second.id)
        assert await table.chain("ann", third.id) == [third]

    _with(location, test)


def test_changes_follow_a_status(location: StateLocation) -> None:
    async def test(state: State) -> None:
        table = state.responses
        queued = _new(state, "1", status="queued", request="{}")
        elsewhere = _new(state, "2", status="queued", place="another machine")
        await table.add(queued)
        await table.add(elsewhere)
        assert await table.unfinished() == [queued]
        done = await table.change(
            queued.id, follows=UNFINISHED, status="completed", body="{}", events="stream"
        )
        assert done == replace(queued, status="completed", body="{}", events="stream", request=None)
        late = await table.change(queued.id, follows=UNFINISHED, status="cancelled", body="late")
        assert late == done
        assert await table.change("resp_nobody", follows=UNFINISHED, status="failed") is None
        assert await table.unfinished() == []

    _with(location, test)


def test_of_two_writers_one_wins(location: StateLocation) -> None:
    async def test(state: State) -> None:
        table = state.responses
        queued = _new(state, "1", status="queued")
        await table.add(queued)
        await asyncio.gather(
            table.change(queued.id, follows=UNFINISHED, status="completed", body="done"),
            table.change(queued.id, follows=UNFINISHED, status="cancelled", body="cancelled"),
        )
        found = await table.find("ann", queued.id)
        assert found is not None
        assert (found.status, found.body) in (("completed", "done"), ("cancelled", "cancelled"))

    _with(location, test)


def test_old_ones_are_forgotten_from_the_end_of_their_chain(location: StateLocation) -> None:
    async def test(state: State) -> None:
        table = state.responses
        old_us = (int(time.time()) - KEPT_DAYS * 86_400 - 60) * 1_000_000
        first = _new(state, "1", created_us=old_us)
        second = _new(state, "2", created_us=old_us, previous_id=first.id)
        used = _new(state, "3", created_us=old_us)
        young = _new(state, "4", previous_id=used.id)
        queued = _new(state, "5", created_us=old_us, status="queued")
        for response in (first, second, used, young, queued):
            await table.add(response)
        assert await table.drop_old() == 1
        assert await table.drop_old() == 1
        assert await table.drop_old() == 0
        left = [r.id for r in (first, second, used, young, queued) if await table.find("ann", r.id)]
        assert left == [used.id, young.id, queued.id]

    _with(location, test)
