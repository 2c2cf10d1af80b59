"""`ReadyEvents`: bunches of what is there, errors in their place, and a clean end from every state."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest
import uvloop
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.server.ready import MOST_AT_ONCE, ReadyEvents

Run = Callable[[Coroutine[Any, Any, Any]], Any]


@pytest.fixture(params=[asyncio.run, uvloop.run], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Run:
    return request.param


class Source:
    """An iterator over a queue that notes its end. None ends it, an exception is raised."""

    def __init__(self) -> None:
        self.queue: asyncio.Queue[Any] = asyncio.Queue()
        self.closed = 0

    def put(self, *items: Any) -> None:
        for item in items:
            self.queue.put_nowait(item)

    async def events(self) -> AsyncIterator[Any]:
        try:
            while (item := await self.queue.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            await asyncio.sleep(0)  # a clean-up that waits
            self.closed += 1


def test_what_is_there_comes_together(run: Run) -> None:
    async def main() -> None:
        source = Source()
        ready = ReadyEvents(source.events())
        source.put(1, 2, 3)
        assert await ready.take() == [1, 2, 3]
        asyncio.get_running_loop().call_later(0.01, source.put, 4, 5)
        assert await ready.take() == [4, 5]
        source.put(6)  # while nobody takes
        await asyncio.sleep(0.01)
        source.put(7)
        assert await ready.take() == [6, 7]
        source.put(8, None)
        assert await ready.take() == [8]
        assert await ready.take() == []
        await ready.close()
        assert source.closed == 1

    run(main())


def test_an_error_comes_after_what_was_before_it(run: Run) -> None:
    async def main() -> None:
        source = Source()
        ready = ReadyEvents(source.events())
        source.put(1, ValueError("x"))
        assert await ready.take() == [1]
        with pytest.raises(ValueError, match="x"):
            await ready.take()
        await ready.close()
        assert source.closed == 1

    run(main())


@pytest.mark.parametrize("taken", [0, 1])
def test_closing_ends_the_iterator_wherever_it_stands(run: Run, taken: int) -> None:
    async def main() -> None:
        source = Source()
        ready = ReadyEvents(source.events())
        if taken:
            source.put(1)
            assert await ready.take() == [1]  # now suspended in the middle of a step
        await ready.close()
        await ready.close()
        assert source.closed == taken  # a generator that never ran has nothing to clean up

    run(main())


def test_cancelling_the_reader_closes_the_iterator(run: Run) -> None:
    async def main() -> None:
        source = Source()
        ready = ReadyEvents(source.events())

        async def read() -> list[Any]:
            return await ready.take()

        source.put(1)
        assert await ready.take() == [1]
        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert source.closed == 1
        await ready.close()

    run(main())


def test_a_timeout_inside_works(run: Run) -> None:
    async def slow() -> AsyncIterator[int]:
        yield 1
        try:
            async with asyncio.timeout(0.01):
                await asyncio.sleep(10)
        except TimeoutError:
            yield 2

    async def main() -> None:
        ready = ReadyEvents(slow())
        assert await ready.take() == [1]
        assert await ready.take() == [2]
        await ready.close()

    run(main())


def test_one_bunch_has_an_end() -> None:
    async def endless() -> AsyncIterator[int]:
        number = 0
        while True:
            yield number
            number += 1

    async def main() -> None:
        ready = ReadyEvents(endless())
        assert await ready.take() == list(range(MOST_AT_ONCE))
        assert (await ready.take())[0] == MOST_AT_ONCE
        await ready.close()

    asyncio.run(main())


@settings(deadline=None, max_examples=50)
@given(
    st.lists(st.lists(st.integers(0, 9), max_size=5), max_size=8),
    st.sampled_from(["end", "error", "close", "cancel"]),
)
def test_every_event_comes_once_and_in_order(bursts: list[list[int]], end: str) -> None:
    async def main() -> None:
        source = Source()
        ready = ReadyEvents(source.events())
        taken: list[int] = []

        async def read() -> None:
            while bunch := await ready.take():
                taken.extend(bunch)

        reader = asyncio.create_task(read())
        for burst in bursts:
            source.put(*burst)
            await asyncio.sleep(0)
        await asyncio.sleep(0)
        if end == "end":
            source.put(None)
            await reader
        elif end == "error":
            source.put(ValueError())
            with pytest.raises(ValueError):
                await reader
        else:
            await asyncio.sleep(0)
            reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await reader
        await ready.close()
        expected = [item for burst in bursts for item in burst]
        assert taken == expected
        assert source.closed == 1

    asyncio.run(main())
