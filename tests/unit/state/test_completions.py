"""The tables of stored chat completions, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from stoker.api.errors import RequestError
from stoker.state import State, StateLocation, StateSource
from stoker.state.completions import StoredCompletion


def _with(location: StateLocation, test: Callable[[State], Awaitable[None]]) -> None:
    async def run() -> None:
        source = StateSource(location)
        try:
            await test(await source.opened())
        finally:
            await source.close()

    asyncio.run(run())


async def _add(
    state: State, name: str, *, owner: str = "ann", model: str = "m", **pairs: str
) -> StoredCompletion:
    made = state.completions.new(owner, name, model=model, body='{"é": 1}', messages="[]", metadata=pairs)
    await state.completions.add(made)
    return made


def test_what_is_stored_is_found_by_its_owner_only(location: StateLocation) -> None:
    async def test(state: State) -> None:
        table = state.completions
        made = await _add(state, "c1", a="1", b="é")
        await table.add(made)  # as after a doubt whether it was written
        assert await table.find("ann", "c1") == made
        assert await table.find("bob", "c1") is None
        assert await table.set_metadata("bob", "c1", {}) is None
        assert not await table.delete("bob", "c1")
        changed = await table.set_metadata("ann", "c1", {"z": ""})
        assert changed is not None
        assert changed.metadata == {"z": ""}
        assert await table.find("ann", "c1") == changed
        assert await table.delete("ann", "c1")
        assert await table.find("ann", "c1") is None
        again = await _add(state, "c1", z="new")
        assert (await table.find("ann", "c1")) == again, "no pair of the one before is left"

    _with(location, test)


def test_pages(location: StateLocation) -> None:
    async def test(state: State) -> None:
        for number in range(7):
            await _add(state, f"c{number}", model=f"m{number % 2}", third=str(number % 3), all="x")
        await _add(state, "foreign", owner="bob")

        async def page(**fields: object) -> tuple[str, bool]:
            asked = {"limit": 10, "after": None, "ascending": True, **fields}
            found, more = await state.completions.page("ann", **asked)  # type: ignore[arg-type]
            return "".join(c.id.removeprefix("c") for c in found), more

        assert await page() == ("0123456", False)
        assert await page(limit=3) == ("012", True)
        assert await page(limit=3, after="c2") == ("345", True)
        assert await page(limit=3, after="c5") == ("6", False)
        assert await page(ascending=False, limit=2) == ("65", True)
        assert await page(ascending=False, after="c2") == ("10", False)
        assert await page(model="m1") == ("135", False)
        assert await page(metadata={"third": "0"}) == ("036", False)
        assert await page(metadata={"third": "0", "all": "x"}, model="m0") == ("06", False)
        assert await page(metadata={"third": "0", "all": "y"}) == ("", False)
        with pytest.raises(RequestError, match="foreign"):
            await page(after="foreign")

    _with(location, test)
