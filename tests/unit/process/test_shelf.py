"""Several models under one cap, with models that take no time and no memory."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from tests.fakes import CountingSeeds
from tests.unit.process.serving import run, until

from stoker.api.errors import CapacityError, ModelNotFoundError, RequestError, UnavailableError
from stoker.api.protocols import ModelCard
from stoker.engine.load import LoadOptions
from stoker.process import ModelShelf, ShelfOptions

FILE_BYTES, KV_BYTES = 1000, 500
EXPECTED_BYTES = 2200  # 1000 x 1.7 + 500
RESIDENT_BYTES = 1100


class FakeModel:
    """Takes what it takes, and remembers how it was closed."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.memory_bytes = RESIDENT_BYTES + KV_BYTES
        self.is_down = False
        self.closed_with: float | None = None

    @property
    def card(self) -> ModelCard:
        return ModelCard(self.name, True, 100)

    async def close(self, *, drain_s: float) -> None:
        await asyncio.sleep(0.01)
        self.closed_with = drain_s


class Starter:
    """Starts fake models; one at a time, after a while."""

    def __init__(self) -> None:
        self.started: list[FakeModel] = []
        self.failures: list[Exception] = []
        self.under_way = 0

    async def __call__(self, path: Path, name: str) -> FakeModel:
        self.under_way += 1
        assert self.under_way == 1
        try:
            await asyncio.sleep(0.01)
            if self.failures:
                raise self.failures.pop(0)
        finally:
            self.under_way -= 1
        self.started.append(FakeModel(name))
        return self.started[-1]

    @property
    def names(self) -> list[str]:
        return [model.name for model in self.started]


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{name}.gguf" for name in ("a", "b", "c")]
    for path in found:
        path.write_bytes(bytes(FILE_BYTES))
    return found


def shelf_of(paths: list[Path], starter: Starter, **options: float | int | None) -> ModelShelf:
    return ModelShelf(
        paths, LoadOptions(kv_bytes=KV_BYTES), ShelfOptions(**options), seeds=CountingSeeds(),
        aliases={"first": "a"}, start=starter,
    )  # type: ignore[arg-type]  # fmt: skip


async def touch(shelf: ModelShelf, name: str, keep_alive_s: float | None = None) -> None:
    async with shelf.use(name, keep_alive_s=keep_alive_s) as model:
        assert model.card.loaded


def loaded(shelf: ModelShelf) -> list[str]:
    return [model.card.name for model in shelf.loaded()]


def test_loaded_once_on_first_use(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        shelf = shelf_of(paths, starter)
        assert [(card.name, card.loaded, card.context_tokens) for card in shelf.cards()] == [
            ("a", False, None), ("b", False, None), ("c", False, None),
        ]  # fmt: skip
        assert all(card.created_s > 0 for card in shelf.cards())
        users = [asyncio.create_task(touch(shelf, name)) for name in ("a", "first", "a", "b", "a")]
        users[0].cancel()  # its load goes on for the others
        await asyncio.wait(users)
        for task in users[1:]:
            task.result()
        assert sorted(starter.names) == ["a", "b"]
        assert loaded(shelf) == ["a", "b"]
        assert shelf.cards()[0] == ModelCard("a", True, 100)
        with pytest.raises(ModelNotFoundError, match="known names: a, b, c, first"):
            await touch(shelf, "d")
        await shelf.close(drain_s=2.5)
        assert [model.closed_with for model in starter.started] == [2.5, 2.5]
        assert loaded(shelf) == []
        assert (shelf.cards()[0].loaded, shelf.cards()[0].context_tokens) == (False, 100)
        with pytest.raises(UnavailableError, match="shutting down"):
            await touch(shelf, "a")

    run(work)


def test_the_least_recently_used_goes(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        shelf = shelf_of(
            paths, starter, memory_bytes=3900, room_wait_s=0.05
        )  # two, or one and another's beginning
        await touch(shelf, "a")
        await touch(shelf, "b")
        await touch(shelf, "a")
        await touch(shelf, "c")
        assert loaded(shelf) == ["a", "c"]
        assert shelf.taken_bytes == 2 * (RESIDENT_BYTES + KV_BYTES)
        async with shelf.use("a"), shelf.use("c"):
            with pytest.raises(CapacityError, match="a, c is in use"):
                await touch(shelf, "b")
        await touch(shelf, "b")  # what they take is known now, not estimated
        assert len(loaded(shelf)) == 2
        await shelf.close(drain_s=0)

    run(work)


def test_many_at_once_under_a_cap_for_one(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        shelf = shelf_of(paths, starter, memory_bytes=EXPECTED_BYTES)
        most = 0

        async def use(name: str) -> None:
            nonlocal most
            async with shelf.use(name):
                most = max(most, shelf.taken_bytes)
                assert loaded(shelf) == [name]
                await asyncio.sleep(0.01)

        await asyncio.gather(*(use(name) for name in "abcabc"))  # each waits for its turn
        assert most <= EXPECTED_BYTES
        for name in "cab":
            await touch(shelf, name)
            assert loaded(shelf) == [name]
        await shelf.close(drain_s=0)

    run(work)


def test_one_that_never_fits(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        shelf = shelf_of(paths, starter, memory_bytes=EXPECTED_BYTES - 1)
        with pytest.raises(CapacityError, match="for all models"):
            await touch(shelf, "a")
        assert not starter.started

    run(work)


def test_keep_alive(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        shelf = shelf_of(paths, starter, keep_alive_s=0.05)
        await touch(shelf, "a")
        await touch(shelf, "b", keep_alive_s=0)
        await touch(shelf, "c", keep_alive_s=-1)
        await until(lambda: loaded(shelf) == ["a", "c"] or loaded(shelf) == ["c"])
        await until(lambda: loaded(shelf) == ["c"])
        assert shelf.taken_bytes >= RESIDENT_BYTES + KV_BYTES
        async with shelf.use("a"):
            await asyncio.sleep(0.1)
            assert loaded(shelf) == ["a", "c"]  # in use: its time does not run
            await touch(shelf, "a", keep_alive_s=0)
            assert loaded(shelf) == ["a", "c"]
        await until(lambda: loaded(shelf) == ["c"])
        for wrong in (float("nan"), True):
            with pytest.raises(RequestError, match="keep_alive"):
                await touch(shelf, "a", keep_alive_s=wrong)
        await touch(shelf, "c", keep_alive_s=float("inf"))
        assert loaded(shelf) == ["c"]
        await shelf.close(drain_s=0)

    run(work)


def test_left_before_it_was_loaded(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        shelf = shelf_of(paths, starter, keep_alive_s=0)
        task = asyncio.create_task(touch(shelf, "a"))
        await until(lambda: starter.under_way == 1)
        task.cancel()
        await asyncio.wait([task])
        await until(lambda: bool(starter.started) and starter.started[0].closed_with == 0)
        assert loaded(shelf) == []
        await shelf.close(drain_s=0)

    run(work)


def test_failures_are_told_to_all_and_tried_again(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        starter.failures = [UnavailableError("cold")]
        shelf = shelf_of(paths, starter, memory_bytes=EXPECTED_BYTES)
        results = await asyncio.gather(*(touch(shelf, "a") for _ in range(3)), return_exceptions=True)
        assert [str(result) for result in results] == ["cold"] * 3
        assert shelf.taken_bytes == 0
        await touch(shelf, "a")
        starter.started[0].is_down = True  # its worker could not be started again
        await touch(shelf, "a")
        assert starter.names == ["a", "a"]
        assert starter.started[0].closed_with == 0
        await shelf.close(drain_s=0)

    run(work)


def test_closed_while_loading(paths: list[Path]) -> None:
    async def work() -> None:
        starter = Starter()
        shelf = shelf_of(paths, starter)
        task = asyncio.create_task(touch(shelf, "a"))
        await until(lambda: starter.under_way == 1)
        await shelf.close(drain_s=1)
        with pytest.raises(UnavailableError, match="shutting down"):
            await task
        assert not starter.started

    run(work)


def test_names(paths: list[Path], tmp_path: Path) -> None:
    def make(models: list[Path], aliases: dict[str, str] | None = None) -> ModelShelf:
        return ModelShelf(models, LoadOptions(), seeds=CountingSeeds(), aliases=aliases)

    with pytest.raises(RequestError, match="no model"):
        make([])
    other = tmp_path / "deeper" / "a.gguf"
    other.parent.mkdir()
    other.write_bytes(b"x")
    with pytest.raises(RequestError, match="two models"):
        make([paths[0], other])
    with pytest.raises(ModelNotFoundError):
        make([tmp_path / "none.gguf"])
    for aliases in ({"x": "unknown"}, {"b": "a"}):
        with pytest.raises(RequestError, match="alias"):
            make(paths, aliases)
    with pytest.raises(RequestError, match="memory_bytes"):
        ShelfOptions(memory_bytes=0)
