"""What the synchronous face gives back: completions, pieces of an answer under way, scores of a prompt."""

from __future__ import annotations

import math
from dataclasses import dataclass

from stoker.api.errors import EngineError
from stoker.api.events import DoneEvent, Event, FinishReason, TokensEvent
from stoker.engine.text import ScoresEvent

Top = tuple[tuple[int, float], ...]  # (token id, natural-log probability), likeliest first


@dataclass(frozen=True, slots=True)
class Choice:
    """One answer. `token_ids` have the token that ended it; `text` ends before that, or a stop string."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None  # of each token, before temperature and filters; if asked for
    top: tuple[Top, ...] | None  # at each token's place, the likeliest ones; if asked for
    finish_reason: FinishReason
    stop_reason: str | int | None  # the stop string or stop token id that ended it, if one did
    seed: int  # gives this answer again, as a request of its own
    num_cached_tokens: int  # prompt tokens whose keys and values were shared, not computed


@dataclass(frozen=True, slots=True)
class Completion:
    """The answers to one prompt. The fields of a choice are those of the first one."""

    prompt_token_ids: tuple[int, ...]
    choices: tuple[Choice, ...]

    @property
    def text(self) -> str:
        """Text of the first choice."""
        return self.choices[0].text

    @property
    def token_ids(self) -> tuple[int, ...]:
        """Token ids of the first choice."""
        return self.choices[0].token_ids

    @property
    def logprobs(self) -> tuple[float, ...] | None:
        """Log-probabilities of the first choice's tokens, if `SamplingParams.logprobs` asked for them."""
        return self.choices[0].logprobs

    @property
    def top(self) -> tuple[Top, ...] | None:
        """The likeliest tokens at each place of the first choice, if asked for."""
        return self.choices[0].top

    @property
    def finish_reason(self) -> FinishReason:
        """Why the first choice ended."""
        return self.choices[0].finish_reason

    @property
    def stop_reason(self) -> str | int | None:
        """Which stop string or stop token ended the first choice, if one did."""
        return self.choices[0].stop_reason

    @property
    def seed(self) -> int:
        """The seed that gives the first choice again: given, or drawn for it."""
        return self.choices[0].seed

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens of the first choice that were not computed for it."""
        return self.choices[0].num_cached_tokens


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of an answer that is under way. The last one of a choice has its finish reason."""

    text: str
    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...] | None = None
    top: tuple[Top, ...] | None = None
    choice: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: str | int | None = None
    seed: int | None = None  # with the finish reason
    prompt_tokens: int | None = None  # with the finish reason

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class PromptScore:
    """How likely the tokens of a prompt were, each after those before it: of tokens 2 to n."""

    token_ids: tuple[int, ...]  # the whole prompt, [n]
    logprobs: tuple[float, ...]  # [n - 1]
    top: tuple[Top, ...]  # [n - 1], each with the top_k likeliest


def _split_logprobs(event: TokensEvent) -> tuple[tuple[float, ...] | None, tuple[Top, ...] | None]:
    if event.logprobs is None:
        return None, None
    return tuple(entry.logprob for entry in event.logprobs), tuple(entry.top for entry in event.logprobs)


def choice_of(tokens: TokensEvent, done: DoneEvent) -> Choice:
    """A choice from all its tokens, in one event, and its end."""
    logprobs, top = _split_logprobs(tokens)
    return Choice(
        text=tokens.text,
        token_ids=tokens.token_ids,
        logprobs=logprobs,
        top=top,
        finish_reason=done.finish_reason,
        stop_reason=done.stop_reason,
        seed=done.seed,
        num_cached_tokens=done.usage.cached_tokens,
    )


def piece_of(event: Event) -> Piece:
    """An event of a stream as a piece."""
    if isinstance(event, TokensEvent):
        logprobs, top = _split_logprobs(event)
        return Piece(event.text, event.token_ids, logprobs, top, event.choice)
    assert isinstance(event, DoneEvent), "generate and chat ask for neither prompt scores nor embeddings"
    done = event
    return Piece(
        "",
        (),
        choice=done.choice,
        finish_reason=done.finish_reason,
        stop_reason=done.stop_reason,
        seed=done.seed,
        prompt_tokens=done.usage.prompt_tokens,
    )


def prompt_score_of(token_ids: list[int], parts: list[ScoresEvent]) -> PromptScore:
    """The score of a prompt from its parts, in order; none for a single token, which comes after nothing.

    Raises `EngineError` where a log-probability is not finite: the model failed, and the number says nothing.
    """
    logprobs: list[float] = []
    top: list[Top] = []
    for part in parts:
        scores = part.scores
        logprobs += scores.logprobs.tolist()
        for ids, values in zip(scores.top_ids.tolist(), scores.top_logprobs.tolist(), strict=True):
            top.append(tuple(zip(ids, values, strict=True)))
    for position, logprob in enumerate(logprobs, start=1):
        if not math.isfinite(logprob):
            raise EngineError(
                f"the log-probability of token {token_ids[position]} at position {position} is {logprob}; "
                "allowed: finite numbers. The model's logits are not finite there"
            )
    return PromptScore(tuple(token_ids), tuple(logprobs), tuple(top))
