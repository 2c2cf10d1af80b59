"""Events of an async iterator in bunches: all that are there without waiting, together.

A token costs a write to a socket, unless others are ready beside it. An `async for` cannot tell whether the
next event is there; this drives `__anext__` by hand, and stops where it would wait. What is suspended then
is taken up by the next call, in the same task, so nothing runs in between and no task is made per token.
"""

from __future__ import annotations

import asyncio
import types
from collections.abc import AsyncIterator, Generator
from typing import Any

from stoker.api.events import Event

MOST_AT_ONCE = 256  # a reader that never waits must not keep the others from the loop


class ReadyEvents:
    """One reader's view of one iterator. Close it, whatever happened: that aborts what is not finished."""

    __slots__ = ("_ended", "_error", "_events", "_step", "_waits_for")

    def __init__(self, events: AsyncIterator[Event]) -> None:
        self._events = events
        self._ended = False
        self._error: Exception | None = None  # to be raised by the next call, after what was gathered
        self._step: Generator[Any, Any, Event] | None = None  # a suspended __anext__
        self._waits_for: Any = None  # what that asked its task to wait for

    @types.coroutine
    def take(self) -> Generator[Any, Any, list[Event]]:
        """At least one event, waiting if need be, and all that follow without waiting; none at the end.

        Raises what the iterator raises; events before that are given first.
        """
        gathered: list[Event] = []
        if self._error is not None:
            raise self._error
        if self._ended:
            return gathered
        while len(gathered) < MOST_AT_ONCE:
            step = self._step
            try:
                if step is None:
                    step = self._events.__anext__().__await__()
                    waits_for = step.send(None)
                    if gathered:
                        self._step, self._waits_for = step, waits_for
                        return gathered
                else:
                    waits_for = self._waits_for
                    self._step = self._waits_for = None
                event = yield from _drive(step, waits_for)
            except StopIteration as done:  # of `send`: the event was there
                gathered.append(done.value)
                continue
            except StopAsyncIteration:
                self._ended = True
                return gathered
            except Exception as error:
                self._error = error
                if gathered:
                    return gathered
                raise
            gathered.append(event)
        return gathered

    async def close(self) -> None:
        """End the iterator, also in the middle of a step."""
        step, waits_for = self._step, self._waits_for
        self._step = self._waits_for = None
        self._ended = True
        if step is not None:
            await _cancel(step, waits_for)
        close = getattr(self._events, "aclose", None)
        if close is not None:
            await close()


@types.coroutine
def _drive(step: Generator[Any, Any, Event], waits_for: Any) -> Generator[Any, Any, Event]:
    """Go on with a coroutine that has yielded `waits_for`, as `yield from` does with one not yet started."""
    while True:
        try:
            sent = yield waits_for
        except GeneratorExit:
            step.close()
            raise
        except BaseException as error:
            try:
                waits_for = step.throw(error)
            except StopIteration as done:
                event: Event = done.value
                return event
        else:
            try:
                waits_for = step.send(sent)
            except StopIteration as done:
                event = done.value
                return event


@types.coroutine
def _cancel(step: Generator[Any, Any, Event], waits_for: Any) -> Generator[Any, Any, None]:
    """Cancel a suspended step and see its clean-up through."""
    future_cancel = getattr(waits_for, "cancel", None)
    if future_cancel is not None:
        future_cancel()  # nobody waits on it any more
    try:
        waits_for = step.throw(asyncio.CancelledError())
        yield from _drive(step, waits_for)
    except (StopIteration, StopAsyncIteration, asyncio.CancelledError):
        return
