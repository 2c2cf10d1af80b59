"""`LLM`: a model in this process, for scripts and notebooks.

>>> from stoker import LLM, SamplingParams
>>> llm = LLM("smollm2", threads=2)
>>> llm.generate("The capital of France is", SamplingParams(max_tokens=8, temperature=0))[0].text
"""

from __future__ import annotations

import os
import secrets
import threading
import time
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from stoker.api.chat import Message
from stoker.api.errors import EngineError, RequestError
from stoker.api.events import DoneEvent, EmbeddingEvent, Event, TokensEvent
from stoker.api.request import MAX_TOP_LOGPROBS, SEEDS, Pooling, Prompt, Request, SamplingParams, check_int
from stoker.engine.completion import (
    Choice,
    Completion,
    Piece,
    PromptScore,
    choice_of,
    piece_of,
    prompt_score_of,
)
from stoker.engine.interrupt import DeferredInterrupt
from stoker.engine.load import DEFAULT_KV_BYTES, LoadOptions, load_text_engine
from stoker.engine.scheduler import SchedulerOptions
from stoker.engine.text import ScoresEvent, TextEngine
from stoker.kernels.native import KvType
from stoker.speculation import AUTO

__all__ = ["LLM", "Choice", "Completion", "Piece", "PromptScore", "RandomSeeds"]

PromptLike = str | Sequence[int]
MessageLike = Message | Mapping[str, str]


class LLM:
    """A model and its engine. Threads may share one; calls then share its steps.

    Ctrl-C during a call aborts that call's requests between two steps and leaves the engine usable.
    """

    def __init__(
        self,
        model: str | Path | TextEngine,
        *,
        threads: int | None = None,
        context_tokens: int | None = None,
        kv_bytes: int = DEFAULT_KV_BYTES,
        kv_type: KvType = "int8",
        batch_tokens: int = 512,
        max_sequences: int = 64,
        speculation: str = AUTO,
        draft_head: str | Path | None = None,
        draft_model: str | Path | None = None,
    ) -> None:
        """Load a model: a name that `stoker list` shows, a path, or an engine that is put together already.

        threads: none means one for each physical core. context_tokens: most tokens of a prompt and its
        answer, if fewer than the model takes. kv_bytes: cap on the KV cache, which grows up to it as it is
        used; kv_type: "int8", or "f16", which is twice as large. batch_tokens, max_sequences: most tokens
        and sequences of one step. speculation: who guesses tokens that are then verified many at once:
        "auto", "off", or names of drafters; no token depends on it. draft_head: a file
        that `stoker train-draft` made, if not the one that is found for the model. draft_model: a name or
        path of a smaller model with the same vocabulary, which drafts too.

        Raises `ModelNotFoundError`, `ModelFormatError`, `RequestError`.
        """
        if isinstance(model, TextEngine):
            self._engine = model
        else:
            scheduler = SchedulerOptions(batch_tokens=batch_tokens, max_sequences=max_sequences)
            head = None if draft_head is None else str(draft_head)
            options = LoadOptions(
                threads,
                context_tokens,
                kv_bytes,
                kv_type,
                scheduler,
                speculation=speculation,
                draft_head=head,
                draft_model=None if draft_model is None else os.fspath(draft_model),
            )
            self._engine = load_text_engine(model, options, seeds=RandomSeeds(), clock_ms=_clock_ms)
        self._lock = threading.RLock()  # held while the engine is touched
        self._mailboxes: dict[str, list[Event | ScoresEvent]] = {}  # by request id, while somebody reads it
        self._requests = 0

    def __enter__(self) -> LLM:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def generate(
        self,
        prompts: PromptLike | Sequence[PromptLike],
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[Completion]:
        """Answer one prompt or several, all at once; one completion for each, in order.

        A prompt is text or token ids. `sampling`: for all, or one for each. Raises `RequestError` (also
        `PromptTooLongError`) before anything is computed, `EngineError` if the model fails.
        """
        return self._complete(_as_prompts(prompts), sampling)

    def chat(self, messages: Sequence[MessageLike], sampling: SamplingParams | None = None) -> Completion:
        """Answer the last of `messages` by the model's chat template; each has `role` and `content`."""
        return self._complete([_as_messages(messages)], sampling)[0]

    def stream(
        self, prompt: PromptLike | Sequence[MessageLike], sampling: SamplingParams | None = None
    ) -> Generator[Piece, None, None]:
        """Answer one prompt, or chat, piece by piece; like `events`, in the words of `generate`."""
        return _pieces(self.events(prompt, sampling))

    def events(
        self, prompt: PromptLike | Sequence[MessageLike], sampling: SamplingParams | None = None
    ) -> Generator[Event, None, None]:
        """Answer one prompt, or chat, event by event. Checked now, computed as it is read.

        Leaving the generator early (`close`, or losing it) aborts the request. Raises like `generate`.
        """
        request = self._new_request(_as_prompt(prompt), _one_for_each(sampling, 1)[0])
        events = self._events(request, self._engine.encode(request))
        next(events)  # opens the request; from here on closing or losing the generator aborts it
        return events

    def score(self, prompts: PromptLike | Sequence[PromptLike], top_k: int = 0) -> list[PromptScore]:
        """Log-probability of every token of each prompt after the first, and the `top_k` likeliest there.

        top_k: 0 to 128. Raises `RequestError`; `EngineError` if the model fails or its logits are not finite.
        """
        check_int("top_k", top_k, 0, MAX_TOP_LOGPROBS)
        listed = [self._engine.encode(Request("", prompt)) for prompt in _as_prompts(prompts)]
        for token_ids in listed:
            if not token_ids:
                raise RequestError("prompt is empty; allowed: at least one token")
        numbers = [i for i, token_ids in enumerate(listed) if len(token_ids) > 1]
        ids = {i: self._next_id() for i in numbers}
        found: dict[int, PromptScore] = {}
        try:
            with self._lock, DeferredInterrupt():
                for i in numbers:
                    self._engine.open_score(ids[i], listed[i], top_k=top_k)
                    self._mailboxes[ids[i]] = []
            for i in numbers:
                found[i] = prompt_score_of(listed[i], self._read_scores(ids[i]))
        finally:
            self._abort(ids.values())
        return [found.get(i) or prompt_score_of(token_ids, []) for i, token_ids in enumerate(listed)]

    def embed(
        self, prompts: PromptLike | Sequence[PromptLike], *, pooling: Pooling | None = None
    ) -> npt.NDArray[np.float32]:
        """Vectors of length 1, [prompts, width]: the "mean" of all tokens' hidden states, or the "last" one.

        A prompt is text or token ids. `pooling`: none means what the model's file says, else the mean.
        Raises `RequestError` (also `PromptTooLongError`) before anything is computed; `EngineError` if the
        model fails or its hidden states are not finite.
        """
        pooling = pooling or self._engine.pooling
        if pooling is None:
            raise RequestError(f"{self.name} does not say how its embeddings are pooled; allowed: mean, last")
        requests = [
            Request(self._next_id(), prompt, SamplingParams(seed=0), pooling=pooling)
            for prompt in _as_prompts(prompts)
        ]
        if not requests:
            raise RequestError("prompts is empty; allowed: one prompt or more")
        prompt_ids = [self._engine.encode(request) for request in requests]
        try:
            with self._lock, DeferredInterrupt():
                for request, token_ids in zip(requests, prompt_ids, strict=True):
                    self._open(request, token_ids, streams=False)
            return np.array([self._read_vector(request.request_id) for request in requests], np.float32)
        finally:
            self._abort(request.request_id for request in requests)

    def tokenize(self, text: str, *, add_special: bool = True, parse_special: bool = False) -> list[int]:
        """Token ids of a text; with the model's begin token, where it uses one, if `add_special`.

        `parse_special` reads the names of control tokens as those tokens; else they are text like any other.
        Raises `RequestError` for what is no text.
        """
        if not isinstance(text, str):
            raise RequestError(f"text is {text!r:.80}; allowed: a string")
        return self._engine.tokenizer.encode(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, token_ids: Iterable[int], *, skip_special: bool = True) -> str:
        """Text of token ids; control tokens are left out if `skip_special`. Raises `RequestError`."""
        if not isinstance(token_ids, Iterable) or isinstance(token_ids, (str, bytes)):
            raise RequestError(f"token_ids is {token_ids!r:.80}; allowed: a list of token ids")
        return self._engine.tokenizer.decode(_as_ids(list(token_ids)), skip_special=skip_special)

    @property
    def name(self) -> str:
        """What the model is called."""
        return self._engine.name

    @property
    def context_tokens(self) -> int:
        """Most tokens of a prompt and its answer."""
        return self._engine.engine.context_tokens

    @property
    def text_engine(self) -> TextEngine:
        """What is underneath, for those who look at counters. Stepping it goes past this object's lock."""
        return self._engine

    def close(self) -> None:
        """Abort whatever is open. The model's memory goes with the object."""
        with self._lock, DeferredInterrupt():
            self._engine.abort_all()
            self._mailboxes.clear()

    # --- requests ---

    def _complete(
        self, prompts: Sequence[Prompt], sampling: SamplingParams | Sequence[SamplingParams] | None
    ) -> list[Completion]:
        each = _one_for_each(sampling, len(prompts))
        requests = [self._new_request(prompt, params) for prompt, params in zip(prompts, each, strict=True)]
        prompt_ids = [self._engine.encode(request) for request in requests]
        try:
            with self._lock, DeferredInterrupt():
                for request, token_ids in zip(requests, prompt_ids, strict=True):
                    self._open(request, token_ids, streams=False)
            return [
                Completion(tuple(token_ids), self._read_choices(request))
                for request, token_ids in zip(requests, prompt_ids, strict=True)
            ]
        finally:
            self._abort(request.request_id for request in requests)

    def _new_request(self, prompt: Prompt, params: SamplingParams) -> Request:
        return Request(self._next_id(), prompt, params)

    def _next_id(self) -> str:
        with self._lock:
            self._requests += 1
            return f"llm-{self._requests}"

    def _open(self, request: Request, prompt_ids: list[int], *, streams: bool) -> None:
        self._engine.open(request, prompt_ids, streams=streams)
        self._mailboxes[request.request_id] = []

    def _abort(self, request_ids: Iterable[str]) -> None:
        with self._lock, DeferredInterrupt():
            for request_id in request_ids:
                self._engine.abort(request_id)
                self._mailboxes.pop(request_id, None)

    def _read(self, request_id: str) -> list[Event | ScoresEvent]:
        """The next events of a request. Whoever reads does the steps, for all; events wait in mailboxes."""
        while True:
            with self._lock, DeferredInterrupt():
                mailbox = self._mailboxes.get(request_id)
                if mailbox is None:
                    raise EngineError(f"request {request_id} was dropped: the model was closed, or it failed")
                if mailbox:
                    self._mailboxes[request_id] = []
                    return mailbox
                self._step()

    def _step(self) -> None:
        started_s = time.perf_counter()
        try:
            events = self._engine.step()
        except Exception:
            self._mailboxes.clear()  # the engine has dropped every request
            raise
        self._engine.engine.observe((time.perf_counter() - started_s) * 1000)
        for event in events:
            mailbox = self._mailboxes.get(event.request_id)
            if mailbox is not None:
                mailbox.append(event)

    def _read_choices(self, request: Request) -> tuple[Choice, ...]:
        tokens: dict[int, TokensEvent] = {}
        choices: dict[int, Choice] = {}
        while len(choices) < request.sampling.n:
            for event in self._read(request.request_id):
                if isinstance(event, TokensEvent):
                    tokens[event.choice] = event  # one for each choice: these requests do not stream
                elif isinstance(event, DoneEvent):
                    choices[event.choice] = choice_of(tokens[event.choice], event)
        return tuple(choices[i] for i in range(request.sampling.n))

    def _read_vector(self, request_id: str) -> tuple[float, ...]:
        for event in self._read(request_id):  # one step gives both events
            if isinstance(event, EmbeddingEvent):
                return event.vector
            if isinstance(event, DoneEvent):
                raise EngineError(f"no embedding: {event.stop_reason}")
        raise EngineError(f"request {request_id} gave no embedding")

    def _read_scores(self, request_id: str) -> list[ScoresEvent]:
        parts: list[ScoresEvent] = []
        while not parts or not parts[-1].done:
            parts += [event for event in self._read(request_id) if isinstance(event, ScoresEvent)]
        return parts

    def _events(self, request: Request, prompt_ids: list[int]) -> Generator[Event, None, None]:
        finished = 0
        try:
            with self._lock, DeferredInterrupt():
                self._open(request, prompt_ids, streams=True)
            yield _OPENED
            while finished < request.sampling.n:
                for event in self._read(request.request_id):
                    if not isinstance(event, ScoresEvent):
                        finished += isinstance(event, DoneEvent)
                        yield event
        finally:
            self._abort([request.request_id])


_OPENED: Any = None  # what `_events` yields once, to `events` itself


def _pieces(events: Generator[Event, None, None]) -> Generator[Piece, None, None]:
    with closing(events):
        for event in events:
            yield piece_of(event)


def _clock_ms() -> float:
    return time.perf_counter() * 1000


class RandomSeeds:
    """Seeds from the operating system's random source."""

    def draw(self) -> int:
        """A number in [0, 2^64)."""
        return secrets.randbelow(SEEDS)


def _as_prompts(prompts: PromptLike | Sequence[PromptLike]) -> list[str | tuple[int, ...]]:
    """One prompt or several, text or token ids, as a list."""
    if isinstance(prompts, str):
        return [prompts]
    if isinstance(prompts, np.ndarray):
        prompts = prompts.tolist()
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise RequestError(
            f"prompts is a {type(prompts).__name__}; allowed: text, token ids, or a list of either"
        )
    if len(prompts) and all(isinstance(item, (int, np.integer)) for item in prompts):
        return [_as_ids(prompts)]
    return [item if isinstance(item, str) else _as_ids(item) for item in prompts]


def _as_prompt(prompt: PromptLike | Sequence[MessageLike]) -> Prompt:
    """Text, token ids or messages: a list is told apart by its first element."""
    if isinstance(prompt, str):
        return prompt
    if isinstance(prompt, Sequence) and len(prompt) and isinstance(prompt[0], (Message, Mapping)):
        return _as_messages(prompt)
    return _as_ids(prompt)


def _as_ids(items: Any) -> tuple[int, ...]:
    is_list = isinstance(items, Sequence) and not isinstance(items, (str, bytes))
    if not is_list and not (isinstance(items, np.ndarray) and items.ndim == 1):
        raise RequestError(f"a prompt is {items!r:.80}; allowed: text or a list of token ids")
    for item in items:
        if isinstance(item, bool) or not isinstance(item, (int, np.integer)):
            raise RequestError(f"a list of token ids has {item!r:.80}; allowed: whole numbers")
    return tuple(int(item) for item in items)


def _as_messages(messages: Any) -> tuple[Message, ...]:
    if not isinstance(messages, Sequence) or isinstance(messages, (str, bytes)):
        raise RequestError(f"messages is {messages!r:.80}; allowed: a list of messages with role and content")
    if not len(messages):
        raise RequestError("messages is empty; allowed: at least one message")
    made = []
    for message in messages:
        if not isinstance(message, Message):
            if not isinstance(message, Mapping) or set(message) != {"role", "content"}:
                raise RequestError(f"a message is {message!r:.80}; allowed: a mapping with role and content")
            message = Message(message["role"], message["content"])
        made.append(message)
    return tuple(made)


def _one_for_each(
    sampling: SamplingParams | Sequence[SamplingParams] | None, prompts: int
) -> Sequence[SamplingParams]:
    if sampling is None or isinstance(sampling, SamplingParams):
        return [sampling or SamplingParams()] * prompts
    if not isinstance(sampling, Sequence):
        raise RequestError(
            f"sampling is {sampling!r:.80}; allowed: SamplingParams, or a list with one for each"
        )
    for params in sampling:
        if not isinstance(params, SamplingParams):
            raise RequestError(f"sampling has {params!r:.80}; allowed: SamplingParams")
    if len(sampling) != prompts:
        raise RequestError(
            f"{len(sampling)} sampling params for {prompts} prompts; allowed: one, or one for each"
        )
    return sampling
