"""What is asked for: sampling parameters, requests. Frozen values, checked when they are made.

Nothing here knows a tokenizer or a tensor. A value that exists is valid: whoever receives a `SamplingParams`
need not check it again, except against things known only later (vocabulary size, context length).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from stoker.api.chat import Chat, Message
from stoker.api.constraint import Constraint, Thinking
from stoker.api.errors import RequestError

MAX_CHOICES = 128  # `n`: forks share the prompt, but each keeps its own tail; vLLM users seldom pass 64
MAX_TOP_LOGPROBS = 128  # OpenAI allows 20, vLLM asks for a server flag beyond it; one answer stays small
MAX_STOP_STRINGS = 64  # each is searched for in every piece of text
SEEDS = 1 << 64  # seeds are unsigned 64-bit; choice i of a request takes (seed + i) mod 2^64

_CLOSED_RANGES: tuple[tuple[str, float, float], ...] = (
    ("temperature", 0.0, 1000.0),
    ("min_p", 0.0, 1.0),
    ("frequency_penalty", -2.0, 2.0),
    ("presence_penalty", -2.0, 2.0),
)
_OPEN_LEFT_RANGES: tuple[tuple[str, float, float], ...] = (
    ("top_p", 0.0, 1.0),
    ("typical_p", 0.0, 1.0),
    ("repetition_penalty", 0.0, 1000.0),
)


@dataclass(frozen=True, slots=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Raises `RequestError` for a value outside its range.

    None for `stop`, `stop_token_ids` or `logit_bias` means none of them, as in other libraries.
    They apply in the order: logit bias, penalties, temperature, top_k, typical_p, top_p, min_p.
    The same params, seed and prompt give the same tokens, whatever else the machine is doing.
    """

    temperature: float = 1.0  # 0: always the likeliest token
    top_k: int = 0  # keep the k likeliest; 0 (or -1): all
    top_p: float = 1.0  # keep the likeliest whose probabilities reach this sum
    min_p: float = 0.0  # drop tokens less likely than min_p x the likeliest
    typical_p: float = 1.0  # locally typical sampling (Meister et al. 2022)
    repetition_penalty: float = 1.0  # divides positive, multiplies negative logits of tokens seen so far
    frequency_penalty: float = 0.0  # x times the token was produced, subtracted from its logit
    presence_penalty: float = 0.0  # subtracted once from the logit of every token that was produced
    logit_bias: Mapping[int, float] = field(default_factory=dict, hash=False)  # token id -> added to logit
    seed: int | None = None  # none: whoever takes the request draws one and reports it with the answer
    stop: tuple[str, ...] = ()  # the text ends before the first of these
    stop_token_ids: tuple[int, ...] = ()  # the answer ends at the first of these
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False  # go on past the model's end-of-answer tokens
    min_tokens: int = 0  # no end by eos, stop id or stop string before this many tokens
    max_tokens: int | None = None  # none: as many as the context holds
    logprobs: int | None = None  # none: no log-probabilities; k: of the chosen token and of the k likeliest
    n: int = 1  # choices; choice i equals a request of its own with seed + i
    constraint: Constraint | None = None  # what the answer must look like
    thinking: Thinking | None = None  # how the model marks its thoughts, and how long they may be
    prompt_logprobs: int | None = None  # k: of each prompt token and of the k likeliest in its place
    skip_special_tokens: bool = True  # control tokens are no part of the text

    def __post_init__(self) -> None:
        _set = object.__setattr__  # frozen: the one moment where spelling variants are brought to one form
        _set(
            self,
            "stop",
            (self.stop,) if isinstance(self.stop, str) else _as_tuple("stop", self.stop, "strings"),
        )
        _set(self, "stop_token_ids", _as_tuple("stop_token_ids", self.stop_token_ids, "token ids"))
        _set(self, "logit_bias", _as_dict("logit_bias", self.logit_bias))
        if self.top_k == -1:
            _set(self, "top_k", 0)
        self._check_numbers()
        self._check_stops()

    def _check_numbers(self) -> None:
        for name, low, high in _CLOSED_RANGES:
            _check_float(name, getattr(self, name), low, high, open_left=False)
        for name, low, high in _OPEN_LEFT_RANGES:
            _check_float(name, getattr(self, name), low, high, open_left=True)
        check_int("top_k", self.top_k, 0, (1 << 31) - 1, note="0 keeps all")
        check_int("min_tokens", self.min_tokens, 0, (1 << 31) - 1)
        check_int("n", self.n, 1, MAX_CHOICES)
        if self.max_tokens is not None:
            check_int("max_tokens", self.max_tokens, 1, (1 << 31) - 1)
            if self.min_tokens > self.max_tokens:
                raise RequestError(
                    f"min_tokens is {self.min_tokens}; "
                    f"allowed: at most max_tokens, which is {self.max_tokens}"
                )
        if self.logprobs is not None:
            check_int("logprobs", self.logprobs, 0, MAX_TOP_LOGPROBS)
        if self.prompt_logprobs is not None:
            check_int("prompt_logprobs", self.prompt_logprobs, 0, MAX_TOP_LOGPROBS)
        if self.seed is not None:
            check_int("seed", self.seed, 0, SEEDS - 1, note="leave it out to have one drawn")
        for token_id, bias in self.logit_bias.items():
            check_int("logit_bias token id", token_id, 0, (1 << 31) - 1)
            _check_float(f"logit_bias[{token_id}]", bias, -math.inf, 100.0, open_left=False)

    def _check_stops(self) -> None:
        if len(self.stop) > MAX_STOP_STRINGS:
            raise RequestError(f"stop has {len(self.stop)} strings; allowed: at most {MAX_STOP_STRINGS}")
        for text in self.stop:
            if not isinstance(text, str) or not text:
                raise RequestError(f"stop has {text!r}; allowed: non-empty strings")
        for token_id in self.stop_token_ids:
            check_int("stop_token_ids", token_id, 0, (1 << 31) - 1)


Prompt = str | tuple[int, ...] | tuple[Message, ...] | Chat
Pooling = Literal["mean", "last"]


@dataclass(frozen=True, slots=True)
class Request:
    """One question to an endpoint. `prompt` is text, token ids, the messages of a chat, or a whole `Chat`.

    `request_id` names the request in events and for abort; it must be unique among an endpoint's open ones.
    None of the rest changes a token of the answer: it decides when it comes, and whose cache it may use.
    """

    request_id: str
    prompt: Prompt
    sampling: SamplingParams = field(default_factory=SamplingParams)
    model: str = ""  # which of several; an endpoint of one model ignores it
    priority: int = 0  # lower first, as in vLLM
    tenant: str = ""  # who shares the machine's time fairly with the others
    cache_salt: str = ""  # prefixes are shared only among requests of the same salt
    deadline_ms: int | None = None  # from arrival to the first token; late requests end in "abort"
    background: bool = False  # only takes part in steps while nothing else is open
    prediction: str = ""  # what the answer may be like: makes it come sooner where it is
    pooling: Pooling | None = None  # not none: wanted is the prompt's embedding, and no answer
    # Per choice the tokens given already, after which it goes on; none for a choice that is complete.
    resume: tuple[tuple[int, ...] | None, ...] = ()

    def __post_init__(self) -> None:
        if not isinstance(self.prompt, (str, tuple, Chat)):
            raise RequestError(f"prompt is {self.prompt!r:.80}; allowed: text, token ids or messages")
        if not isinstance(self.sampling, SamplingParams):
            raise RequestError(f"sampling is {self.sampling!r:.80}; allowed: SamplingParams")
        check_int("priority", self.priority, -(1 << 31), (1 << 31) - 1)
        if self.deadline_ms is not None:
            check_int("deadline_ms", self.deadline_ms, 1, (1 << 31) - 1)
        for name in ("model", "tenant", "cache_salt", "prediction"):
            if not isinstance(getattr(self, name), str):
                raise RequestError(f"{name} is {getattr(self, name)!r:.80}; allowed: a string")
        if self.pooling not in (None, "mean", "last"):
            raise RequestError(f"pooling is {self.pooling!r:.80}; allowed: mean, last")
        if self.resume and len(self.resume) != self.sampling.n:
            raise RequestError(
                f"resume has {len(self.resume)} choices; allowed: none, or n = {self.sampling.n}"
            )

    @property
    def kind(self) -> Literal["text", "tokens", "chat"]:
        """Which of the three forms `prompt` has; an empty tuple counts as tokens."""
        if isinstance(self.prompt, str):
            return "text"
        if isinstance(self.prompt, Chat) or (self.prompt and isinstance(self.prompt[0], Message)):
            return "chat"
        return "tokens"


def _as_tuple(name: str, value: Any, what: str) -> tuple[Any, ...]:
    if value is None:
        return ()
    if not isinstance(value, Iterable) or isinstance(value, (str, bytes, Mapping)):
        raise RequestError(f"{name} is {value!r:.80}; allowed: a list of {what}")
    return tuple(value)


def _as_dict(name: str, value: Any) -> dict[Any, Any]:
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise RequestError(f"{name} is {value!r:.80}; allowed: a mapping from token id to a number")
    return dict(value)


def check_int(name: str, value: Any, low: int, high: int, *, note: str = "") -> None:
    """Raise `RequestError` unless `value` is a whole number (no bool) from `low` to `high`, both included."""
    if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
        extra = f" ({note})" if note else ""
        raise RequestError(f"{name} is {value!r}; allowed: a whole number from {low} to {high}{extra}")


def _check_float(name: str, value: Any, low: float, high: float, *, open_left: bool) -> None:
    good = isinstance(value, (int, float)) and not isinstance(value, bool)
    # Written so that NaN, which compares false to everything, is refused.
    if good and (low < value <= high if open_left else low <= value <= high):
        return
    first = f"more than {low:g}" if open_left else f"{low:g}"
    raise RequestError(f"{name} is {value!r}; allowed: a number from {first} to {high:g}")
