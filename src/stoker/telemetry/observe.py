"""Endpoints that measure what passes through them: an `Endpoint` around an `Endpoint`, a host around a host.

All that is seen is a request and its events. Times are those of an injected monotonic clock, read when an
event is handed on, so a client that reads slowly lengthens its own latencies and nobody else's.
"""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass

from stoker.api.errors import StokerError
from stoker.api.events import DoneEvent, Event, FinishReason, TokensEvent
from stoker.api.protocols import Endpoint, ModelCard, ModelHost, ServedModel
from stoker.api.request import Pooling, Prompt, Request
from stoker.api.stats import EngineStats
from stoker.telemetry.measures import ModelMeasures


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request, after its end. Times are seconds of one monotonic clock."""

    request: Request
    model: str
    started_s: float
    first_token_s: float | None  # none if no token came
    ended_s: float
    done: tuple[DoneEvent, ...]  # of the choices that were finished, in the order they were
    generated_tokens: int  # of all choices, the unfinished ones too
    error: BaseException | None = None  # what ended it, if something did; a client that left is no error
    texts: tuple[str, ...] = ()  # what each choice said, if that was asked to be kept

    @property
    def seconds(self) -> float:
        """From being asked to the end."""
        return self.ended_s - self.started_s

    @property
    def time_to_first_token_s(self) -> float | None:
        """None if no token came."""
        return None if self.first_token_s is None else self.first_token_s - self.started_s

    @property
    def prompt_tokens(self) -> int | None:
        """None if no choice was finished: only a done event tells."""
        return self.done[0].usage.prompt_tokens if self.done else None

    @property
    def cached_tokens(self) -> int | None:
        """Prompt tokens that no choice computed; None as for `prompt_tokens`."""
        return min(event.usage.cached_tokens for event in self.done) if self.done else None

    @property
    def finish_reasons(self) -> tuple[FinishReason, ...]:
        """One for each choice, in their order; for one that was not finished "error" or "abort"."""
        known = {event.choice: event.finish_reason for event in self.done}
        unfinished: FinishReason = "abort" if self.error is None else "error"
        return tuple(known.get(choice, unfinished) for choice in range(self.request.sampling.n))


# Called with a request and its model's name when it starts; what it returns is called with the record of it.
Observer = Callable[[Request, str], Callable[[RequestRecord], None]]


class ObservedEndpoint:
    """Answers with another endpoint's events, unchanged, and measures them."""

    def __init__(
        self,
        endpoint: Endpoint,
        measures: ModelMeasures,
        *,
        model: str,
        observers: Sequence[Observer] = (),
        keep_texts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._endpoint = endpoint
        self._measures = measures
        self._model = model
        self._observers = tuple(observers)
        self._keep_texts = keep_texts  # only then is text kept: it is somebody's
        self._clock = clock

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """Answer `request`; see `stoker.api.protocols.Endpoint`."""
        ends = [observer(request, self._model) for observer in self._observers]
        watch = _Stopwatch(self._measures, request, self._clock())
        events = self._endpoint.generate(request)
        texts = [""] * request.sampling.n if self._keep_texts else []
        error: BaseException | None = None
        try:
            async for event in events:
                if texts and isinstance(event, TokensEvent):
                    texts[event.choice] += event.text
                if watch.see(event, self._clock):
                    # Before the last event is handed on: many a reader does not ask for what follows it.
                    self._finish(watch, ends, None, texts)
                yield event
        except Exception as raised:  # noted, and passed on as it is
            error = raised
            raise
        finally:
            close = getattr(events, "aclose", None)
            try:
                if close is not None:
                    await close()
            finally:  # also when this is cancelled a second time: or the request would be open for ever
                self._finish(watch, ends, error, texts)

    def _finish(
        self,
        watch: _Stopwatch,
        ends: list[Callable[[RequestRecord], None]],
        error: BaseException | None,
        texts: list[str],
    ) -> None:
        if watch.stopped:
            return
        record = watch.stop(self._model, self._clock(), error, tuple(texts))
        for end in ends:
            end(record)


class _Stopwatch:
    """One open request's times. `see` is the hot path: once per event."""

    __slots__ = ("done", "first_s", "last_s", "measures", "request", "started_s", "stopped", "tokens")

    def __init__(self, measures: ModelMeasures, request: Request, started_s: float) -> None:
        self.measures = measures
        self.request = request
        self.started_s = started_s
        self.first_s: float | None = None
        self.last_s: list[float | None] = [None] * request.sampling.n  # per choice, its latest token
        self.done: list[DoneEvent] = []
        self.tokens = 0
        self.stopped = False
        measures.open_requests += 1

    def see(self, event: Event, clock: Callable[[], float]) -> bool:
        """Note an event; true if it was the last one."""
        if isinstance(event, DoneEvent):
            self.done.append(event)
            return len(self.done) == self.request.sampling.n
        if not isinstance(event, TokensEvent):
            return False
        # What a prompt brings of its own (log-probabilities, an embedding) is no token of an answer; an event
        # without ids is text that was held back.
        if not isinstance(event, TokensEvent) or not event.token_ids:
            return False
        count = len(event.token_ids)
        now = clock()
        last = self.last_s[event.choice]
        if last is not None:
            # Tokens that come together share the time since those before them.
            self.measures.inter_token_s.observe((now - last) / count, count)
        elif self.first_s is None:
            self.first_s = now
            self.measures.time_to_first_token_s.observe(now - self.started_s)
        self.last_s[event.choice] = now
        self.tokens += count
        return False

    def stop(
        self, model: str, now: float, error: BaseException | None, texts: tuple[str, ...]
    ) -> RequestRecord:
        """End it: count it, and give its record."""
        self.stopped = True
        record = RequestRecord(
            self.request,
            model,
            self.started_s,
            self.first_s,
            now,
            tuple(self.done),
            self.tokens,
            error,
            texts,
        )
        measures = self.measures
        measures.open_requests -= 1
        if error is not None:
            measures.errors_by_class[type(error).__name__] += 1
            if self.first_s is None and not self.done:
                return record  # refused: nothing was answered that could be measured
        measures.choices_by_finish_reason.update(record.finish_reasons)
        measures.request_s.observe(record.seconds)
        if self.first_s is not None:
            measures.decode_s.observe(now - self.first_s)
        if self.done:
            measures.prompt_tokens.observe(self.done[0].usage.prompt_tokens)
            if self.done[0].queue_ms is not None:
                measures.queue_s.observe(self.done[0].queue_ms / 1000)
        for event in self.done:
            measures.generated_tokens.observe(event.usage.completion_tokens)
        return record


class ObservedModel:
    """A served model whose `generate` is measured; everything else is the model's own."""

    def __init__(self, model: ServedModel, endpoint: ObservedEndpoint) -> None:
        self._model = model
        self._endpoint = endpoint

    @property
    def card(self) -> ModelCard:
        """As the model has it."""
        return self._model.card

    @property
    def ready(self) -> bool:
        """As the model has it."""
        return self._model.ready

    @property
    def has_chat_template(self) -> bool:
        """As the model has it."""
        return self._model.has_chat_template

    @property
    def pooling(self) -> Pooling | None:
        """As the model has it."""
        return self._model.pooling

    @property
    def chat_template(self) -> str | None:
        """As the model has it."""
        return self._model.chat_template

    def generate(self, request: Request) -> AsyncIterator[Event]:
        """Answer `request`; see `stoker.api.protocols.Endpoint`."""
        return self._endpoint.generate(request)

    async def encode(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> list[int]:
        """As the model does it."""
        return await self._model.encode(prompt, add_generation_prompt=add_generation_prompt)

    def decode(self, token_ids: list[int]) -> str:
        """As the model does it."""
        return self._model.decode(token_ids)

    def token_bytes(self, token_id: int) -> bytes:
        """As the model does it."""
        return self._model.token_bytes(token_id)

    async def stats(self) -> EngineStats:
        """As the model does it."""
        return await self._model.stats()


class ObservedHost:
    """A host whose models are measured. `measures` gives the counters of a model by its name."""

    def __init__(
        self,
        host: ModelHost,
        measures: Callable[[str], ModelMeasures],
        *,
        observers: Sequence[Observer] = (),
        keep_texts: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._host = host
        self._measures = measures
        self._observers = tuple(observers)
        self._keep_texts = keep_texts
        self._clock = clock

    def cards(self) -> tuple[ModelCard, ...]:
        """As the host has them."""
        return self._host.cards()

    @asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[ServedModel]:
        """The model, measured; see `stoker.api.protocols.ModelHost`."""
        asked_s = self._clock()
        async with AsyncExitStack() as stack:
            try:
                model = await stack.enter_async_context(self._host.use(name, keep_alive_s=keep_alive_s))
            except StokerError as error:  # it could not be loaded; no request ever reaches an endpoint
                # Only names on offer: an unknown or misspelt one never gets counters of its own.
                if any(card.name == name for card in self._host.cards()):
                    self._measures(name).errors_by_class[type(error).__name__] += 1
                raise
            self._measures(model.card.name).model_wait_s.observe(self._clock() - asked_s)
            yield self._observed(model)

    def loaded(self) -> tuple[ServedModel, ...]:
        """The models that are loaded now, measured."""
        return tuple(map(self._observed, self._host.loaded()))

    async def close(self, *, drain_s: float) -> None:
        """As the host does it."""
        await self._host.close(drain_s=drain_s)

    def _observed(self, model: ServedModel) -> ObservedModel:
        endpoint = ObservedEndpoint(
            model,
            self._measures(model.card.name),
            model=model.card.name,
            observers=self._observers,
            keep_texts=self._keep_texts,
            clock=self._clock,
        )
        return ObservedModel(model, endpoint)
