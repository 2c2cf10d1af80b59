"""Requests whose grammar is being compiled: in a thread, so that the streams beside them go on."""

from __future__ import annotations

from collections.abc import Callable
from queue import Empty, SimpleQueue
from threading import Thread

from stoker.api.errors import EngineError, StokerError
from stoker.api.request import SamplingParams
from stoker.grammar.guide import Guides
from stoker.process.messages import Open

Compiled = tuple[Open, "Guides | StokerError"]


class CompilingRequests:
    """Takes commands, gives them back with what their constraint compiles to. One at a time, in order."""

    def __init__(self, guides_of: Callable[[SamplingParams], Guides | None]) -> None:
        """`guides_of` is called in a thread of its own."""
        self._guides_of = guides_of
        self._keys: set[str] = set()  # being compiled, and still wanted
        self._pending = 0  # compiled or not, not yet taken
        self._asked: SimpleQueue[Open] = SimpleQueue()
        self._done: SimpleQueue[Compiled] = SimpleQueue()
        self._thread: Thread | None = None

    def __bool__(self) -> bool:
        """True while something is to come."""
        return self._pending > 0

    def add(self, command: Open) -> None:
        """Compile what the command's parameters demand."""
        if self._thread is None:
            self._thread = Thread(target=self._compile, name="grammars", daemon=True)
            self._thread.start()
        self._keys.add(command.key)
        self._pending += 1
        self._asked.put(command)

    def forget(self, key: str) -> None:
        """A request is not wanted any more; its result will not be given."""
        self._keys.discard(key)

    def take(self) -> list[Compiled]:
        """What is ready by now, in the order it was added."""
        ready: list[Compiled] = []
        while True:
            try:
                compiled = self._done.get_nowait()
            except Empty:
                return ready
            self._pending -= 1
            if compiled[0].key in self._keys:
                self._keys.discard(compiled[0].key)
                ready.append(compiled)

    def _compile(self) -> None:
        while True:
            command = self._asked.get()
            found: Guides | StokerError
            if command.key in self._keys:  # a set is asked, not changed, from this thread
                try:
                    guides = self._guides_of(command.sampling)
                    found = guides or EngineError("a constraint compiled to nothing")
                except StokerError as error:
                    found = error
                except Exception as error:  # one grammar must not end the worker, nor hang its request
                    found = EngineError(f"compiling a constraint failed: {type(error).__name__}: {error}")
            else:
                found = EngineError("not wanted any more")
            self._done.put((command, found))
