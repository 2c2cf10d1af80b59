"""What all handlers share: the host, the options, and how much is open now. One for each server."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import sys
import time
import uuid
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Protocol

from stoker.api.errors import ModelNotFoundError
from stoker.api.protocols import ModelCard, ModelHost
from stoker.server.errors import Problem, Refusal
from stoker.server.http import BodyBudget
from stoker.server.options import ServerOptions
from stoker.server.unwritten import Unwritten

if TYPE_CHECKING:
    from stoker.state import State, StateSource


@dataclass(frozen=True, slots=True)
class Views:
    """What others tell of the server; made where the telemetry is."""

    metrics: Callable[[], Awaitable[bytes]]
    metrics_content_type: str
    stats: Callable[[], Awaitable[Mapping[str, Any]]]


class Work(Protocol):
    """What goes on beside the calls. Started once the server listens, closed before anything else is."""

    async def start(self) -> None:
        """Begin, or go on with what was left; what takes longer is a task. An error is logged."""
        ...

    async def close(self) -> None:
        """Stop, soon. May be called again, and without a start."""
        ...


@dataclass(slots=True)
class Service:
    """Owns the counters of what is open; handlers hold a reference to it."""

    host: ModelHost
    options: ServerOptions
    views: Views | None = None  # none: no /metrics and /stats
    state: StateSource | None = None  # none: nothing is kept
    bodies: BodyBudget = field(default_factory=BodyBudget)
    unwritten: Unwritten = field(default_factory=Unwritten)
    works: list[Work] = field(default_factory=list)  # filled while the routes are made
    warm: bool = False  # set once the first model was loaded: from then on one that is not, can be
    draining: bool = False  # set once, by whoever stops the server
    open_requests: int = 0
    fixed_s: int | None = None  # what `now_s` says; none: the time
    _numbers: Iterator[int] = field(default_factory=itertools.count)

    def model_name(self, given: str | None) -> str:
        """The name of a model on offer; the first for none. Raises `Refusal` that lists them."""
        cards = self.host.cards()
        if given is None:
            return cards[0].name
        if all(card.name != given for card in cards):
            raise ModelNotFoundError(
                f"the model {given!r:.200} is not served here; "
                f"known: {', '.join(card.name for card in cards)}"
            )
        return given

    def card(self, name: str) -> ModelCard:
        """The card of a model on offer; raises as `model_name`."""
        known = self.model_name(name)
        return next(card for card in self.host.cards() if card.name == known)

    def engine_id(self, request_id: str, prompt: int) -> str:
        """An id that no open request of an engine has, whatever clients call theirs."""
        return f"{request_id}#{next(self._numbers)}.{prompt}"

    @contextlib.contextmanager
    def one_more(self) -> Iterator[None]:
        """Counts a request while it is open. Raises `Refusal` if there are too many, or the server stops."""
        if self.draining:
            raise Refusal(
                Problem(
                    503,
                    "the server is stopping",
                    type="service_unavailable_error",
                    code="stopping",
                    retry_after_s=5.0,
                    headers=((b"connection", b"close"),),
                )
            )
        if self.open_requests >= self.options.max_open_requests:
            raise Refusal(
                Problem(
                    429,
                    f"{self.open_requests} requests are open; allowed: at most "
                    f"{self.options.max_open_requests}",
                    type="rate_limit_error",
                    code="requests_full",
                    retry_after_s=1.0,
                )
            )
        self.open_requests += 1
        try:
            yield
        finally:
            self.open_requests -= 1

    async def opened_state(self) -> State:
        """What is kept. Raises `Refusal` on a server that keeps nothing, and as `StateSource.opened`."""
        if self.state is None:
            raise Refusal(
                Problem(
                    501,
                    "this server keeps nothing: it was started with --state none",
                    code="state_disabled",
                )
            )
        return await self.state.opened()

    def now_s(self) -> int:
        """Unix seconds, for `created`."""
        return int(time.time()) if self.fixed_s is None else self.fixed_s

    def stored_hex(self, owner: str, request_id: str) -> str:
        """What the id of nothing else that is stored has; of a batch's line, which may be asked again, always
        the same, so that it is stored once."""
        if self.fixed_s is None:
            return uuid.uuid4().hex
        return hashlib.sha256(f"{owner}/{request_id}".encode()).hexdigest()[:32]

    def in_background(self, host: ModelHost, created_s: int) -> Service:
        """A service for calls that nobody waits for: `host` answers them, and its clock stands still, so that
        the same call is answered with the same bytes. What it counts as open takes nobody's place, and is
        bounded by who calls."""
        options = replace(self.options, max_open_requests=sys.maxsize)
        return replace(
            self,
            host=host,
            options=options,
            bodies=BodyBudget(),
            works=[],
            open_requests=0,
            fixed_s=created_s,
        )
