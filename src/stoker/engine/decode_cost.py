"""What a step of streams alone takes, by its size: what decides whether a draft pays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, NamedTuple

from stoker.engine.plan import StepPlan

TILE: Final = 16  # tokens that the kernels compute together
_WIDTHS: Final = (0, 1, 2, 4, 4, 6, 6, 8, 8, 12, 12, 12, 12, 16, 16, 16)  # of an incomplete one
# In parts of a step of one token, by the width of a tile. Measured in the engine with a model of 135 M
# weights in 4 bits on two cores: reading the weights costs for 1 token what it costs for 4, so the curve is
# flat there, and a straight line through it put three guesses at half a step.
_SHAPE: Final[Mapping[int, float]] = MappingProxyType(
    {0: 0.0, 1: 1.0, 2: 1.02, 4: 1.13, 6: 1.33, 8: 1.48, 12: 1.95, 16: 2.35}
)
_BESIDE: Final = 0.85  # of what a tile takes alone, where it is not the first
# Variances of logarithms. A step's time is off by 7 %; the machine's pace changes by 2 % from step to step,
# a size's share of it by 0.1 %; of a size that was not seen the shape and its neighbour tell to within 20 %.
_NOISE: Final = 0.07**2
_PACE_DRIFT: Final = 0.02**2
_SIZE_DRIFT: Final = 0.001**2
_UNSEEN: Final = 0.2**2
_UNKNOWN_PACE: Final = 100.0
_MOST_DEVIATIONS: Final = 3.0  # a step that is further off tells of the machine, not of its size
_FIRST_STEPS: Final = 4  # observations before the pace is believed
# A size that seemed dear, as its first steps fell into a slow moment, is not asked for again:
# in one run of some ten, drafts of three were given up for good after four steps, and answers took a fifth
# longer. After so many steps without it, it is as if it had not been seen.
_FORGOTTEN_STEPS: Final = 128


class _Kind(NamedTuple):
    """Steps that take about as long. Many streams with a draft take another way through attention than the
    same number of tokens of streams alone, and longer."""

    drafted: bool
    size: int  # `tiled` tokens


@dataclass(slots=True)
class _Estimate:
    """Of a logarithm."""

    mean: float
    variance: float

    def learn(self, error: float, variance: float) -> None:
        """`error` is that of a sum in which this is a part; `variance` is the sum's."""
        gain = self.variance / variance
        self.mean += gain * error
        self.variance *= 1.0 - gain


class DecodeCost:
    """Milliseconds of a decode step = pace · shape of its size · what is peculiar to that size here.

    Both factors are learnt from each step's error in proportion to their uncertainty (a Kalman filter without
    the correlations): a size's first steps tell of the size, later ones of the pace. So a phase in which the
    machine is slow does not make the sizes dear that were tried in it; what is decided by this is a tenth of
    a step, and phases differ by more. The pace also carries the context, which grows slowly.
    """

    def __init__(self) -> None:
        self._pace = _Estimate(0.0, _UNKNOWN_PACE)
        self._kinds: dict[_Kind, _Estimate] = {}
        self._seen: dict[_Kind, int] = {}  # at which step a kind was seen last, in this order
        self._steps = 0
        self._predicted_ms: dict[_Kind, float] = {}  # until the next observation

    @property
    def known(self) -> bool:
        """Whether enough steps were seen."""
        return self._steps >= _FIRST_STEPS

    def observe(self, plan: StepPlan, elapsed_ms: float) -> None:
        """Take in how long a step took; one with a part of a prompt in it says nothing here."""
        if not is_decode_only(plan):
            return
        kind = _Kind(plan.tokens > len(plan.chunks), tiled(plan.tokens))
        pace = self._pace
        own = self._kinds.get(kind)
        if own is None:
            own = self._kinds[kind] = _Estimate(self._peculiar(kind), _UNSEEN if self._kinds else _SIZE_DRIFT)
        pace.variance += _PACE_DRIFT
        own.variance += _SIZE_DRIFT
        variance = pace.variance + own.variance + _NOISE
        error = math.log(elapsed_ms / _shape(kind.size)) - pace.mean - own.mean
        most = _MOST_DEVIATIONS * math.sqrt(variance)
        error = min(max(error, -most), most)
        own.learn(error, variance)
        pace.learn(error, variance)
        self._steps += 1
        self._seen.pop(kind, None)
        self._seen[kind] = self._steps
        oldest = next(iter(self._seen))
        if self._steps - self._seen[oldest] > _FORGOTTEN_STEPS:
            del self._seen[oldest], self._kinds[oldest]
        self._predicted_ms.clear()

    def predict_ms(self, tokens: int, *, streams: int = 1) -> float:
        """A step of so many tokens; those beyond one a stream are drafted."""
        kind = _Kind(tokens > streams, tiled(tokens))
        found = self._predicted_ms.get(kind)
        if found is None:
            found = _shape(kind.size) * math.exp(self._pace.mean + self._peculiar(kind))
            self._predicted_ms[kind] = found
        return found

    def _peculiar(self, kind: _Kind) -> float:
        """The logarithm of what it takes by what its shape says; unseen, that of the size next to it, with or
        without drafts as it is, if any such was seen."""
        own = self._kinds.get(kind)
        if own is not None:
            return own.mean
        near = min(
            self._kinds,
            key=lambda other: (other.drafted is not kind.drafted, abs(other.size - kind.size), other.size),
            default=None,
        )
        return 0.0 if near is None else self._kinds[near].mean


def is_decode_only(plan: StepPlan) -> bool:
    """Whether every chunk is a stream's next token, with or without a draft."""
    return all(chunk.tokens - len(chunk.draft) == 1 and chunk.rows for chunk in plan.chunks)


def tiled(tokens: int) -> int:
    """Tokens that the kernels compute for so many: whole tiles, and one of the widths that they have."""
    rest = tokens % TILE
    return tokens - rest + _WIDTHS[rest]


def _shape(size: int) -> float:
    full, rest = divmod(size, TILE)
    if not full:
        return _SHAPE[rest]
    return _SHAPE[TILE] * (1.0 + _BESIDE * (full - 1)) + _BESIDE * _SHAPE[rest]
