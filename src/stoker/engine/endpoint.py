"""The engine as an `Endpoint`: an asyncio face over one thread that steps it.

Only that thread touches the engine. Consumers hand it commands and get events through their own event loop;
closing an iterator, or cancelling the task that waits on it, aborts its request before the next step.
"""

from __future__ import annotations

import asyncio
import threading
from collections import deque
from collections.abc import AsyncIterator, Callable
from types import TracebackType

from stoker.api.errors import EngineError
from stoker.api.events import DoneEvent, Event
from stoker.api.request import Request
from stoker.engine.text import ScoresEvent, TextEngine


class _Consumer:
    """One request's end: a queue that lives in the event loop of whoever reads it."""

    def __init__(self, choices: int) -> None:
        self.loop = asyncio.get_running_loop()
        self.queue: asyncio.Queue[Event | Exception] = asyncio.Queue()
        self.open_choices = choices  # written by the engine's thread

    def put(self, items: list[Event | Exception]) -> None:
        """Called in the consumer's loop."""
        for item in items:
            self.queue.put_nowait(item)


class LocalEndpoint:
    """Answers requests with the engine of this process. Close it, or use it as an async context manager."""

    def __init__(self, engine: TextEngine) -> None:
        self._engine = engine
        self._commands: deque[Callable[[], None]] = deque()
        self._wake = threading.Condition()
        self._closing = False
        self._consumers: dict[str, _Consumer] = {}  # touched by the engine's thread only
        self._thread = threading.Thread(target=self._serve, name=f"stoker-{engine.name}", daemon=True)
        self._thread.start()

    async def __aenter__(self) -> LocalEndpoint:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await asyncio.to_thread(self.close)

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """Answer `request`; see `stoker.api.protocols.Endpoint`."""
        # Encoding a long prompt takes milliseconds, a template up to its time limit: neither holds up the
        # loop nor the engine's thread.
        prompt_ids = await asyncio.to_thread(self._engine.encode, request)
        consumer = _Consumer(request.sampling.n)
        if not self._command(lambda: self._open(request, prompt_ids, consumer)):
            raise EngineError("the endpoint is closed")
        finished = 0
        try:
            while finished < request.sampling.n:
                item = await consumer.queue.get()
                if isinstance(item, Exception):
                    raise item
                finished += isinstance(item, DoneEvent)
                yield item
        finally:
            if finished < request.sampling.n:
                self._command(lambda: self._abort(request.request_id, consumer))

    def close(self) -> None:
        """Abort what is open (its readers get an `EngineError`) and end the thread. May be called again."""
        with self._wake:
            self._closing = True
            self._wake.notify()
        self._thread.join()

    def _command(self, command: Callable[[], None]) -> bool:
        """Have the engine's thread do it before its next step; false if the endpoint is closed."""
        with self._wake:
            if not self._closing:
                self._commands.append(command)
                self._wake.notify()
            return not self._closing

    # --- in the engine's thread ---

    def _serve(self) -> None:
        while self._take_commands():
            if not self._engine.busy:
                continue
            try:
                events = self._engine.step()
            except Exception as error:  # every reader is told; the engine has dropped their requests
                self._fail(error)
                continue
            self._deliver(events)
        while self._commands:  # asked for before closing: answered with the error below
            self._commands.popleft()()
        for request_id in tuple(self._consumers):
            self._engine.abort(request_id)
        self._fail(EngineError("the endpoint was closed"))

    def _take_commands(self) -> bool:
        """Carry out what was asked meanwhile; without work, wait for some. False when the endpoint closes."""
        with self._wake:
            while not (self._commands or self._closing or self._engine.busy):
                self._wake.wait()
            if self._closing:
                return False
            commands = list(self._commands)
            self._commands.clear()
        for command in commands:
            command()
        return True

    def _open(self, request: Request, prompt_ids: list[int], consumer: _Consumer) -> None:
        try:
            self._engine.open(request, prompt_ids)
        except Exception as error:  # handed to the one who asked
            _send(consumer, [error])
            return
        self._consumers[request.request_id] = consumer

    def _abort(self, request_id: str, consumer: _Consumer) -> None:
        # A request that was refused for a doubled id must not take the other one with it.
        if self._consumers.get(request_id) is consumer:
            del self._consumers[request_id]
            self._engine.abort(request_id)

    def _deliver(self, events: list[Event | ScoresEvent]) -> None:
        gathered: dict[str, list[Event | Exception]] = {}
        for event in events:
            if not isinstance(event, ScoresEvent):
                gathered.setdefault(event.request_id, []).append(event)
        for request_id, items in gathered.items():
            consumer = self._consumers[request_id]
            consumer.open_choices -= sum(isinstance(item, DoneEvent) for item in items)
            if not consumer.open_choices:
                del self._consumers[request_id]
            if not _send(consumer, items) and consumer.open_choices:
                self._abort(request_id, consumer)

    def _fail(self, error: Exception) -> None:
        consumers, self._consumers = self._consumers, {}
        for consumer in consumers.values():
            _send(consumer, [error])


def _send(consumer: _Consumer, items: list[Event | Exception]) -> bool:
    """Hand items to the consumer's loop; false if that loop is gone, and nobody reads them."""
    try:
        consumer.loop.call_soon_threadsafe(consumer.put, items)
    except RuntimeError:  # the loop was closed without closing its generators
        return False
    return True
