"""A host of scripted models: no engine, no weights, a clock that tests move."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

from stoker.api.errors import ModelNotFoundError, RequestError
from stoker.api.events import DoneEvent, Event, TokensEvent, Usage
from stoker.api.protocols import ModelCard
from stoker.api.request import Prompt, Request
from stoker.api.stats import EngineStats


class ManualClock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


Script = Callable[[Request], AsyncIterator[Event]]


def tokens(request: Request, text: str, *, choice: int = 0, count: int = 1) -> TokensEvent:
    """`count` tokens that together say `text`."""
    return TokensEvent(request.request_id, choice, tuple(range(count)), text)


def done(
    request: Request, completion_tokens: int, *, choice: int = 0, cached: int = 0, reason: str = "stop"
) -> DoneEvent:
    """The end of a choice after a prompt of 40 tokens."""
    usage = Usage(40, completion_tokens, cached)
    return DoneEvent(request.request_id, choice, reason, None, 7 + choice, usage)  # type: ignore[arg-type]


class FakeModel:
    """A served model that answers with a script. A token id is a letter: 0 is "a"."""

    def __init__(
        self,
        name: str,
        script: Script,
        *,
        stats: EngineStats | Exception | None = None,
        has_chat_template: bool = True,
    ) -> None:
        self.card = ModelCard(name, loaded=True, context_tokens=2048)
        self.ready = True
        self.has_chat_template = has_chat_template
        self.chat_template = "{% for message in messages %}{{ message.content }}{% endfor %}"
        self.pooling = "mean"
        self.script = script
        self.engine_stats = EngineStats() if stats is None else stats
        self.stats_delay_s = 0.0

    def generate(self, request: Request) -> AsyncIterator[Event]:
        return self.script(request)

    async def encode(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> list[int]:
        return [1, 2, 3]

    def decode(self, token_ids: list[int]) -> str:
        if any(token_id >= 26 for token_id in token_ids):
            raise RequestError(f"token ids are {token_ids}; allowed: 0 to 25")
        return "".join(chr(ord("a") + token_id) for token_id in token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        return self.decode([token_id]).encode()

    async def stats(self) -> EngineStats:
        if self.stats_delay_s:
            await asyncio.sleep(self.stats_delay_s)
        if isinstance(self.engine_stats, Exception):
            raise self.engine_stats
        return self.engine_stats


class FakeHost:
    """Models by name; `offered` are named, but not loaded."""

    def __init__(self, *models: FakeModel, offered: tuple[str, ...] = ()) -> None:
        self.models = {model.card.name: model for model in models}
        self.offered = offered
        self.closed_after_s: float | None = None
        self.keep_alives: list[float | None] = []

    def cards(self) -> tuple[ModelCard, ...]:
        return (
            *(model.card for model in self.models.values()),
            *(ModelCard(n, False) for n in self.offered),
        )

    @asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[FakeModel]:
        self.keep_alives.append(keep_alive_s)
        if name not in self.models:
            raise ModelNotFoundError(f"there is no model {name}")
        yield self.models[name]

    def loaded(self) -> tuple[FakeModel, ...]:
        return tuple(self.models.values())

    async def close(self, *, drain_s: float) -> None:
        self.closed_after_s = drain_s


def with_stats(model: FakeModel, **changes: int) -> None:
    """Change counters of a model's engine."""
    assert isinstance(model.engine_stats, EngineStats)
    model.engine_stats = dataclasses.replace(model.engine_stats, **changes)
