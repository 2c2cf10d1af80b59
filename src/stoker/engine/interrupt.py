"""Ctrl-C between two steps instead of inside one."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class DeferredInterrupt:
    """While it is entered, Ctrl-C waits: a step, once begun, leaves queues and blocks whole. Steps are short.

    Only the main thread gets Ctrl-C, so in others there is nothing to do; nor where it is ignored or deadly.
    """

    def __init__(self) -> None:
        self._previous: Any = None
        self._signal: tuple[int, FrameType | None] | None = None

    def __enter__(self) -> None:
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._note)

    def __exit__(self, *_: object) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if self._signal is not None:
                self._previous(*self._signal)

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._signal = (number, frame)
