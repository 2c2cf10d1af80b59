"""One open request in the parent: what was given so far, and whoever reads it."""

from __future__ import annotations

import asyncio
import dataclasses
import time

from stoker.api.events import DoneEvent, Event
from stoker.api.request import Request, SamplingParams
from stoker.process.messages import Open


class Answer:
    """Everything that is needed to go on with a request on another worker, and its reader's mailbox."""

    __slots__ = (
        "_arrived_s", "_loop", "_mailbox", "_prediction", "_prompt_ids", "_sampling", "_waiter", "closed",
        "given", "key", "open_choices", "progressed", "request", "resent", "scored", "sent", "strikes",
        "waiting",
    )  # fmt: skip

    def __init__(
        self,
        key: str,
        request: Request,
        prompt_ids: list[int],
        seed: int,
        prediction: tuple[int, ...] = (),
    ) -> None:
        """`key`: its name on the wire, never used twice."""
        self._prediction = prediction
        self.key = key
        self.request = request
        sampling = request.sampling
        self._sampling: SamplingParams = (
            sampling if sampling.seed is not None else dataclasses.replace(sampling, seed=seed)
        )
        self._prompt_ids = prompt_ids
        # Per choice the tokens that were given to the reader; none once it is complete.
        self.given: list[list[int] | None] = [
            None if tokens is None else list(tokens) for tokens in request.resume or ((),) * sampling.n
        ]
        self.open_choices = sum(tokens is not None for tokens in self.given)
        self.waiting = not any(self.given)  # for its first token
        self.sent = False  # to the worker that runs now
        self.scored = False  # its prompt's log-probabilities were given
        self.resent = False  # a worker died that had it
        self.progressed = False  # something came of it since it was sent
        self.strikes = 0  # workers in a row that died after it was sent, before anything came of it
        self.closed = False  # complete, failed or dropped: no worker needs to hear of it
        self._arrived_s = time.monotonic()
        self._loop = asyncio.get_running_loop()
        self._mailbox: list[Event | Exception] = []
        self._waiter: asyncio.Future[None] | None = None

    def message(self) -> Open:
        """What a worker must be told to answer it from where it stands."""
        request = self.request
        deadline_ms = request.deadline_ms if self.waiting else None
        if deadline_ms is not None:
            deadline_ms = max(deadline_ms - int((time.monotonic() - self._arrived_s) * 1000), 0)
        resume = tuple(None if tokens is None else tuple(tokens) for tokens in self.given)
        return Open(
            self.key, self._prompt_ids, self._sampling, request.priority, request.tenant,
            request.cache_salt, deadline_ms, resume if any(tokens != () for tokens in resume) else (),
            request.background, request.pooling, self._prediction,
        )  # fmt: skip

    def put(self, item: Event | Exception) -> None:
        """Give the reader something; in the endpoint's loop."""
        self._mailbox.append(item)
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():  # the reader's task may have been cancelled a moment ago
                waiter.set_result(None)

    def complete(self, event: DoneEvent) -> bool:
        """Give the reader a choice's end; true if that was the last choice."""
        if self.given[event.choice] is not None:
            self.given[event.choice] = None
            self.open_choices -= 1
            self.put(event)
        self.closed = not self.open_choices
        return self.closed

    def fail(self, error: Exception) -> None:
        """End it with an error."""
        self.closed = True
        self.put(error)

    async def take(self) -> list[Event | Exception]:
        """What came since the last time; waits for something."""
        while not self._mailbox:
            self._waiter = self._loop.create_future()
            await self._waiter
        items, self._mailbox = self._mailbox, []
        return items
