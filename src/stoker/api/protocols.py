"""The seams. Whatever answers requests is an `Endpoint`; wrapping one gives one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Protocol

from stoker.api.events import Event
from stoker.api.request import Request


class Endpoint(Protocol):
    """Anything that answers a request."""

    def generate(self, request: Request) -> AsyncIterator[Event]:
        """Answer `request`: for each choice tokens events, then one done event; choices may interleave.

        Raises (at the first `anext`) `RequestError` for what cannot be answered, `EngineError` when the work
        fails under way. Closing the iterator, or cancelling the task that waits on it, aborts the request.
        """
        ...


class SeedSource(Protocol):
    """Where a request without a seed gets one. It is reported with the answer, so that it can be replayed."""

    def draw(self) -> int:
        """A number in [0, 2^64)."""
        ...
