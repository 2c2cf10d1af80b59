"""Ctrl-C in a chat: one press, one KeyboardInterrupt, and none while nobody is ready for it."""

from __future__ import annotations

import signal
import time
from types import FrameType
from typing import Any

# Somebody who stops an answer presses until it stands still; what comes this soon after was meant for it.
REST_S = 0.5


class SingleInterrupt:
    """While it is entered (in the main thread), Ctrl-C raises KeyboardInterrupt once for each `arm`.

    So whoever has caught one may tidy up and write a line without a second one breaking out of that.
    """

    def __init__(self) -> None:
        self._previous: Any = None
        self._armed = False
        self._rest_until_s = 0.0  # of the monotonic clock

    def __enter__(self) -> SingleInterrupt:
        self._previous = signal.signal(signal.SIGINT, self._on_signal)
        return self

    def __exit__(self, *_: object) -> None:
        signal.signal(signal.SIGINT, self._previous)

    def arm(self) -> None:
        """Let the next Ctrl-C raise, unless `rest` was called just before."""
        self._armed = True

    def rest(self) -> None:
        """Ignore Ctrl-C for `REST_S` seconds from now."""
        self._rest_until_s = time.monotonic() + REST_S

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._armed and time.monotonic() >= self._rest_until_s:
            self._armed = False
            raise KeyboardInterrupt
