"""What an endpoint answers with: tokens as they come, then for each choice one `DoneEvent`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

# "stop": eos, stop id or stop string; "length": max_tokens or the context; "error": `stop_reason` says what
FinishReason = Literal["stop", "length", "abort", "error"]


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural-log probability of one token, and of the likeliest tokens at its position, likeliest first."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()  # (token id, logprob), as many as were asked for


@dataclass(frozen=True, slots=True)
class Usage:
    """Tokens of one choice. `cached_tokens` of its prompt were not computed: another choice's were used."""

    prompt_tokens: int
    completion_tokens: int
    cached_tokens: int = 0
    reasoning_tokens: int = 0  # of the completion: thoughts, marks not counted
    drafted_tokens: int = 0  # guessed and verified; they cost work and change nothing
    accepted_tokens: int = 0  # of these, what became part of the completion


@dataclass(frozen=True, slots=True)
class TokensEvent:
    """The next tokens of one choice. `text` may lag behind `token_ids`: half a character, or what may turn
    out to be the start of a stop string, is held back until it is certain."""

    request_id: str
    choice: int
    token_ids: tuple[int, ...]
    text: str
    logprobs: tuple[TokenLogprob, ...] | None = None  # one for each token id, if they were asked for


@dataclass(frozen=True, slots=True)
class DoneEvent:
    """A choice is complete; no more events for it follow."""

    request_id: str
    choice: int
    finish_reason: FinishReason
    stop_reason: str | int | None  # the stop string or stop token id that ended it, if one did
    seed: int  # what replays this choice on its own: the request's seed (given or drawn) + choice
    usage: Usage
    queue_ms: float | None = None  # from being taken to its first step; none where nobody looks at a clock
    warnings: tuple[str, ...] = ()  # what of a constraint was rewritten, or is enforced in another way


@dataclass(frozen=True, slots=True)
class PromptEvent:
    """Log-probabilities of a prompt, before the first tokens: one entry for each token from the second on."""

    request_id: str
    logprobs: tuple[TokenLogprob, ...]
    choice: int = 0  # the first of its request; where requests are merged, of that prompt


@dataclass(frozen=True, slots=True)
class EmbeddingEvent:
    """A prompt's embedding: hidden states after the last norm, pooled, of length 1. A done event follows."""

    request_id: str
    vector: tuple[float, ...]
    choice: int = 0


Event = TokensEvent | DoneEvent | PromptEvent | EmbeddingEvent
