"""A model host without a model, for everything above the waist.

`FakeModel` speaks bytes: a token is a byte, its text comes when a character is whole. What it answers is a
function of the request and the choice, so that a test knows it; it keeps every request, and which of them
were aborted.
"""

from __future__ import annotations

import asyncio
import codecs
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

from stoker.api.chat import Chat, Message
from stoker.api.errors import RequestError
from stoker.api.events import (
    DoneEvent,
    EmbeddingEvent,
    Event,
    PromptEvent,
    TokenLogprob,
    TokensEvent,
    Usage,
)
from stoker.api.protocols import ModelCard, ServedModel
from stoker.api.request import Prompt, Request
from stoker.api.stats import EngineStats

DRAWN_SEED = 4711
# Sources that say what a model's calls and thoughts look like; nothing here renders them.
DEFAULT_TEMPLATE = "{% if message['role'] == 'system' %}{% endif %}{% if add_generation_prompt %}{% endif %}"
TOOL_TEMPLATE = (
    "{% if tools %}<tool_call>{% endif %}{{ message['name'] }} system 'system' {{ enable_thinking }}"
)
THINKING_TEMPLATE = (
    TOOL_TEMPLATE + "<think></think>{% if add_generation_prompt %}{{ 'assistant' }}{% endif %}"
)


def default_answer(request: Request, seed: int) -> str:
    """Some text with characters of one to four bytes, its last words told by the seed."""
    return f"Grüße, 世界! 🚂 Answer {seed}."


@dataclass
class FakeModel:
    """A `ServedModel`. Change its fields to make it slow, late or broken."""

    name: str = "fake"
    answer: Callable[[Request, int], str] = default_answer
    has_chat_template: bool = True
    chat_template: str | None = DEFAULT_TEMPLATE
    pooling: Literal["mean", "last"] | None = "mean"
    ready: bool = True
    context_tokens: int = 100_000
    token_delay_s: float = 0.0  # before each token; 0: all are there at once
    first_delay_s: float = 0.0
    error: Exception | None = None  # raised before the first event
    error_after: tuple[int, Exception] | None = None  # (tokens, error)
    cached_tokens: int = 0
    reasoning_tokens: int = 0
    warnings: tuple[str, ...] = ()
    reasoning_tokens: int = 0
    stop_reason: str | int | None = None
    warnings: tuple[str, ...] = ()
    requests: list[Request] = field(default_factory=list)
    aborted: list[str] = field(default_factory=list)  # ids of requests whose reader left before their end
    open: int = 0

    @property
    def card(self) -> ModelCard:
        return ModelCard(self.name, True, self.context_tokens, "0123456789abcdef" * 4, 1_700_000_000)

    async def encode(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> list[int]:
        """A text's bytes; of messages `<role>content` for each, and `<assistant>`."""
        if isinstance(prompt, str):
            return list(prompt.encode("utf-8", "replace"))
        if isinstance(prompt, Chat):
            return await self.encode(prompt.messages, add_generation_prompt=prompt.add_generation_prompt)
        if isinstance(prompt, Chat):
            return await self.encode(prompt.messages, add_generation_prompt=prompt.add_generation_prompt)
        if prompt and isinstance(prompt[0], Message):
            text = "".join(f"<{m.role}>{m.content}" for m in prompt if isinstance(m, Message))
            return list((text + ("<assistant>" if add_generation_prompt else "")).encode("utf-8", "replace"))
        return [token for token in prompt if isinstance(token, int)]

    def decode(self, token_ids: list[int]) -> str:
        if any(token_id > 255 for token_id in token_ids):
            raise RequestError(f"token id {max(token_ids)} is not one of the model's 256 (0 to 255)")
        return bytes(token_ids).decode("utf-8", "replace")

    def token_bytes(self, token_id: int) -> bytes:
        return bytes([token_id])

    async def stats(self) -> EngineStats:
        return EngineStats(running=self.open)

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        self.requests.append(request)
        if self.error is not None:
            raise self.error
        prompt_ids = await self.encode(request.prompt)
        if request.pooling is not None:
            yield EmbeddingEvent(request.request_id, (0.6, -0.8))
            yield DoneEvent(request.request_id, 0, "stop", None, 0, Usage(len(prompt_ids), 0))
            return
        self.open += 1
        finished = False
        try:
            await asyncio.sleep(self.first_delay_s)
            seed = DRAWN_SEED if request.sampling.seed is None else request.sampling.seed
            choices = [self._choice(request, i, seed + i, len(prompt_ids)) for i in range(request.sampling.n)]
            sent = 0
            if request.sampling.prompt_logprobs is not None:
                yield PromptEvent(
                    request.request_id,
                    tuple(_logprob(i, request.sampling.prompt_logprobs) for i in prompt_ids[1:]),
                )
            for events in zip_longest_events(choices):
                if self.token_delay_s:
                    await asyncio.sleep(self.token_delay_s)
                for event in events:
                    if self.error_after is not None and sent >= self.error_after[0]:
                        raise self.error_after[1]
                    sent += 1
                    yield event
            finished = True
        finally:
            self.open -= 1
            if not finished:
                self.aborted.append(request.request_id)

    def _choice(self, request: Request, choice: int, seed: int, prompt_tokens: int) -> list[Event]:
        params = request.sampling
        token_ids = list(self.answer(request, seed).encode())
        reason = "stop"
        if params.max_tokens is not None and len(token_ids) > params.max_tokens:
            token_ids, reason = token_ids[: params.max_tokens], "length"
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        events: list[Event] = []
        for place, token_id in enumerate(token_ids):
            logprobs = None
            if params.logprobs is not None:
                logprobs = (_logprob(token_id, params.logprobs),)
            text = decoder.decode(bytes([token_id]), final=place == len(token_ids) - 1)
            events.append(TokensEvent(request.request_id, choice, (token_id,), text, logprobs))
        usage = Usage(prompt_tokens, len(token_ids), self.cached_tokens, self.reasoning_tokens)
        events.append(
            DoneEvent(
                request.request_id, choice, reason, self.stop_reason, seed, usage, warnings=self.warnings
            )
        )
        return events


def _logprob(token_id: int, top: int) -> TokenLogprob:
    return TokenLogprob(token_id, -0.5, tuple(((token_id + k) % 256, -0.5 - k) for k in range(top)))


def zip_longest_events(choices: Sequence[Sequence[Event]]) -> list[list[Event]]:
    """Token by token, what each choice that still goes on says."""
    longest = max(map(len, choices))
    return [[events[i] for events in choices if i < len(events)] for i in range(longest)]


class FakeHost:
    """A `ModelHost` of models that are loaded already."""

    def __init__(self, *models: FakeModel) -> None:
        self.models = {model.name: model for model in models or (FakeModel(),)}
        self.keep_alives: list[float | None] = []
        self.closed_after_s: float | None = None
        self.in_use = 0

    @property
    def model(self) -> FakeModel:
        """The first one."""
        return next(iter(self.models.values()))

    def cards(self) -> tuple[ModelCard, ...]:
        return tuple(model.card for model in self.models.values())

    @contextlib.asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[ServedModel]:
        self.keep_alives.append(keep_alive_s)
        self.in_use += 1
        try:
            yield self.models[name]
        finally:
            self.in_use -= 1

    def loaded(self) -> tuple[ServedModel, ...]:
        return tuple(self.models.values())

    async def close(self, *, drain_s: float) -> None:
        """Wait for open requests, at most `drain_s`."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(drain_s):
                while self.in_use:
                    await asyncio.sleep(0.005)
        self.closed_after_s = drain_s
