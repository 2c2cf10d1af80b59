"""What the two processes say to each other: msgpack arrays with a number for a tag, one frame each.

All events of one engine step travel in one message, as plain rows: what a token costs here is paid for every
token of every stream. Errors travel as their class's name and text, and become the same class again.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

import msgspec

from stoker.api import errors
from stoker.api.errors import EngineError, QueueFullError, StokerError
from stoker.api.events import DoneEvent, Event, FinishReason, PromptEvent, TokenLogprob, TokensEvent, Usage
from stoker.api.request import Pooling, SamplingParams
from stoker.api.stats import EngineStats

# Raised with every change of a message. Both sides come from one installation, unless it was upgraded under a
# running server: then a restarted worker is of another version, and is refused instead of misread.
PROTOCOL = 2


class Settings(msgspec.Struct, frozen=True):
    """The worker's first line of standard input, as JSON."""

    address: str  # where the parent listens
    secret: str  # shown in `Ready`: over TCP anybody on this machine could connect first
    model: str  # path of the model file
    options: msgspec.Raw  # of `LoadOptions`, which the parent need not import to pass on
    heartbeat_ms: int


class ErrorText(msgspec.Struct, array_like=True, frozen=True):
    """An error on its way to the other process."""

    kind: str
    message: str
    hint: str | None = None
    retry_after_s: float | None = None


# --- parent to worker ------------------------------------------------------------------------------


class Open(msgspec.Struct, array_like=True, tag=1, frozen=True):
    """Answer a request. `key` names it on the wire; the seed is in `sampling`, drawn by the parent."""

    key: str
    prompt_ids: list[int]
    sampling: SamplingParams
    priority: int
    tenant: str
    cache_salt: str
    deadline_ms: int | None  # what is left of it when this is sent
    resume: tuple[tuple[int, ...] | None, ...]
    background: bool
    pooling: Pooling | None
    prediction: tuple[int, ...] = ()


class Abort(msgspec.Struct, array_like=True, tag=2, frozen=True):
    """Drop a request; one that is not open is no error."""

    key: str


class StatsQuery(msgspec.Struct, array_like=True, tag=3, frozen=True):
    """Answer with `Stats` after the step that runs."""


class Shutdown(msgspec.Struct, array_like=True, tag=4, frozen=True):
    """End; what is open is dropped."""


Command = Open | Abort | StatsQuery | Shutdown


# --- worker to parent ------------------------------------------------------------------------------


class Ready(msgspec.Struct, array_like=True, tag=11, frozen=True):
    """The model is loaded. Always the first message, unless it is `Fatal`."""

    protocol: int
    secret: str
    context_tokens: int
    vocabulary: int
    resident_bytes: int  # of the worker, weights and all, before the first request
    kv_bytes: int  # the cap: what the KV cache may still add
    pooling: Pooling | None  # of its embeddings, unless a request says otherwise


TokenRow = tuple[str, int, tuple[int, ...], str]  # key, choice, token ids, text
LogprobRow = tuple[int, float, tuple[tuple[int, float], ...]]  # token id, logprob, likeliest
ScoredRow = tuple[str, int, tuple[int, ...], str, tuple[LogprobRow, ...]]
# key, choice, why, at what, seed; tokens of the prompt, of the answer, cached, of thoughts, drafted,
# accepted; time in the queue, warnings
DoneRow = tuple[
    str, int, FinishReason, str | int | None, int, int, int, int, int, int, int, float | None, tuple[str, ...]
]


class Events(msgspec.Struct, array_like=True, tag=12, frozen=True):
    """All events of one step. The rows of a choice come before its end."""

    rows: list[TokenRow]
    scored: list[ScoredRow]  # token rows with log-probabilities
    done: list[DoneRow]
    prompts: list[tuple[str, tuple[LogprobRow, ...]]]  # key, log-probabilities of its prompt
    embeddings: list[tuple[str, tuple[float, ...]]]  # key, vector


class Failed(msgspec.Struct, array_like=True, tag=13, frozen=True):
    """The request could not be opened."""

    key: str
    error: ErrorText


class Stats(msgspec.Struct, array_like=True, tag=14, frozen=True):
    """The engine's counters."""

    stats: EngineStats


class Fatal(msgspec.Struct, array_like=True, tag=15, frozen=True):
    """The worker ends for this reason: its model cannot be loaded, or a step failed."""

    error: ErrorText


Report = Ready | Events | Failed | Stats | Fatal


# --- conversions -----------------------------------------------------------------------------------

_ERROR_CLASSES: Mapping[str, type[StokerError]] = MappingProxyType(
    {
        name: value
        for name, value in vars(errors).items()
        if isinstance(value, type) and issubclass(value, StokerError)
    }
)


def pack_error(error: StokerError) -> ErrorText:
    """An error as it travels."""
    retry_after_s = error.retry_after_s if isinstance(error, QueueFullError) else None
    return ErrorText(type(error).__name__, error.message, error.hint, retry_after_s)


def unpack_error(text: ErrorText) -> StokerError:
    """The same error again; `EngineError` for a class that is not known here."""
    kind = _ERROR_CLASSES.get(text.kind)
    if kind is None:
        return EngineError(f"{text.kind}: {text.message}", hint=text.hint)
    if issubclass(kind, QueueFullError) and text.retry_after_s is not None:
        return kind(text.message, retry_after_s=text.retry_after_s, hint=text.hint)
    return kind(text.message, hint=text.hint)


def pack_events(events: list[Event]) -> Events:
    """The events of a step as one message; an event's `request_id` is the key."""
    rows: list[TokenRow] = []
    scored: list[ScoredRow] = []
    done: list[DoneRow] = []
    prompts: list[tuple[str, tuple[LogprobRow, ...]]] = []
    embeddings: list[tuple[str, tuple[float, ...]]] = []
    for event in events:
        if isinstance(event, TokensEvent):
            if event.logprobs is None:
                rows.append((event.request_id, event.choice, event.token_ids, event.text))
            else:
                logprobs = _logprob_rows(event.logprobs)
                scored.append((event.request_id, event.choice, event.token_ids, event.text, logprobs))
        elif isinstance(event, DoneEvent):
            done.append(pack_done(event))
        elif isinstance(event, PromptEvent):
            prompts.append((event.request_id, _logprob_rows(event.logprobs)))
        else:
            embeddings.append((event.request_id, event.vector))
    return Events(rows, scored, done, prompts, embeddings)


def _logprob_rows(logprobs: tuple[TokenLogprob, ...]) -> tuple[LogprobRow, ...]:
    return tuple((one.token_id, one.logprob, one.top) for one in logprobs)


def pack_done(event: DoneEvent) -> DoneRow:
    """The end of a choice as a row."""
    usage = event.usage
    return (
        event.request_id, event.choice, event.finish_reason, event.stop_reason, event.seed,
        usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens, usage.reasoning_tokens,
        usage.drafted_tokens, usage.accepted_tokens, event.queue_ms, event.warnings,
    )  # fmt: skip


def unpack_done(request_id: str, row: DoneRow) -> DoneEvent:
    """The end of a choice, under the name that the parent's caller gave its request."""
    _, choice, reason, stop_reason, seed, *counts, queue_ms, warnings = row
    usage = Usage(*counts)
    return DoneEvent(request_id, choice, reason, stop_reason, seed, usage, queue_ms, warnings)


def unpack_scored(request_id: str, row: ScoredRow) -> TokensEvent:
    """A token event with log-probabilities, under the name that the parent's caller gave it."""
    _, choice, token_ids, text, logprobs = row
    return TokensEvent(request_id, choice, token_ids, text, unpack_logprobs(logprobs))


def unpack_logprobs(rows: tuple[LogprobRow, ...]) -> tuple[TokenLogprob, ...]:
    """Log-probabilities as they were."""
    return tuple(TokenLogprob(*row) for row in rows)
