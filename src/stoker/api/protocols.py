"""The seams. Whatever answers requests is an `Endpoint`; wrapping one gives one."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from typing import Protocol

from stoker.api.events import Event
from stoker.api.request import Pooling, Prompt, Request
from stoker.api.stats import EngineStats


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


@dataclass(frozen=True, slots=True)
class ModelCard:
    """One model that a host offers."""

    name: str
    loaded: bool
    context_tokens: int | None = None  # known once it was loaded
    digest: str | None = None  # SHA-256 of the weights' file, once known
    created_s: int = 0  # when the file was made, in Unix seconds


class ServedModel(Endpoint, Protocol):
    """An endpoint of one loaded model that also speaks its tokens."""

    @property
    def card(self) -> ModelCard:
        """Name, context, digest."""
        ...

    @property
    def ready(self) -> bool:
        """True while a token can be produced."""
        ...

    @property
    def has_chat_template(self) -> bool:
        """False for a base model, which takes text and token ids only."""
        ...

    @property
    def pooling(self) -> Pooling | None:
        """How its embeddings are made unless a request says otherwise; none: every request must."""
        ...

    @property
    def chat_template(self) -> str | None:
        """The source of the template: what its tool calls and thoughts look like can be told from it."""
        ...

    async def encode(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a prompt, as `generate` would use them. Raises `RequestError`, `TemplateError`."""
        ...

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, special tokens included. Raises `RequestError` for an unknown id."""
        ...

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for."""
        ...

    async def stats(self) -> EngineStats:
        """The engine's counters; the last known ones while it restarts."""
        ...


class ModelHost(Protocol):
    """Where a server finds its models; loads one on first use."""

    def cards(self) -> tuple[ModelCard, ...]:
        """All models on offer, loaded or not, in the order they were named."""
        ...

    def use(
        self, name: str, *, keep_alive_s: float | None = None
    ) -> AbstractAsyncContextManager[ServedModel]:
        """The model, loaded if need be, and not unloaded while in use. `keep_alive_s` is how long it stays
        loaded after its last use (negative: for ever; none: the host's default).

        Raises `ModelNotFoundError`, `CapacityError` if it does not fit, `UnavailableError` if it cannot
        start.
        """
        ...

    def loaded(self) -> tuple[ServedModel, ...]:
        """The models that are loaded now."""
        ...

    async def close(self, *, drain_s: float) -> None:
        """Refuse new work, let open requests finish for at most `drain_s`, end every engine."""
        ...
