"""What an engine was asked, planned and sampled, in order: enough to replay every plan without a model."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from stoker.api.request import Pooling, SamplingParams
from stoker.engine.plan import StepPlan
from stoker.engine.sequence import Standing
from stoker.sampling.rows import SampleResult


@dataclass(frozen=True, slots=True)
class Added:
    """A request came."""

    request_id: str
    prompt_ids: tuple[int, ...]
    params: SamplingParams
    seed: int
    standing: Standing
    resume: tuple[tuple[int, ...] | None, ...]


@dataclass(frozen=True, slots=True)
class AddedScore:
    """Tokens to be scored came."""

    request_id: str
    token_ids: tuple[int, ...]
    top_k: int


@dataclass(frozen=True, slots=True)
class AddedEmbedding:
    """Tokens to be embedded came."""

    request_id: str
    token_ids: tuple[int, ...]
    pooling: Pooling
    standing: Standing


@dataclass(frozen=True, slots=True)
class Stepped:
    """A step was planned and run; `result` is what the sampler said."""

    plan: StepPlan
    result: SampleResult


@dataclass(frozen=True, slots=True)
class Closed:
    """One choice was ended from outside, at a stop string."""

    request_id: str
    choice: int
    stop_reason: str | int | None


@dataclass(frozen=True, slots=True)
class Aborted:
    """A request was dropped."""

    request_id: str


@dataclass(frozen=True, slots=True)
class Lent:
    """A drafter's loan of KV blocks grew to so many tokens; 0: was closed. What the scheduler takes back is
    not written down, since a replay takes it back itself."""

    number: int  # of the loan
    end: int


Entry = Added | AddedScore | AddedEmbedding | Stepped | Closed | Aborted | Lent
Journal = Callable[[Entry], None]
