"""How many tokens a step may take: as many as keep running streams flowing, by a measured cost of a step.

The engine has no clock. Whoever steps it times the steps and tells `StepCost`; the budget that comes of it is
part of each plan, so that a recorded run replays without a clock.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from stoker.api.errors import RequestError
from stoker.api.request import check_int
from stoker.engine.decode_cost import tiled
from stoker.engine.plan import StepPlan

# A step with prefill beside running streams may take so many times the streams' own step longer: twofold in
# all, so that a stream's worst gap stays well below three times its usual one. When many prompts wait for
# each stream, more: a burst is over sooner when its prompts are computed first (measured at 32 clients at
# once: median time to first token 0.5 to 1 s instead of 1.4 to 3.1 s, and a quarter more tokens/s).
_STRETCH = 1.0
_STRETCH_PER_PROMPT = 4.0  # times prompts per stream
_LEAST_PREFILL_TOKENS = 16  # a full tile of the kernels; a prompt always moves on
# Steps of a multiple of this divide evenly into tiles of 16 for two threads (decision 0004).
_EVEN_TOKENS = 32
_FORGET = 0.98  # weight of the past per observed step of a size: about the last 50 count
_FORGET_OTHERS = 0.998  # and per four steps of other sizes: some thousand
_CONTEXT_UNIT = 1024.0  # tokens read by attention are counted in thousands, to keep the system well scaled
# A trace of regularisation: one kind of step alone is no line. The share keeps it above rounding.
_RIDGE = 1e-6
_RIDGE_SHARE = 1e-9
_FIRST_STEPS = 8  # observations before the model is believed


@dataclass(frozen=True, slots=True)
class BudgetOptions:
    """What running streams may expect."""

    target_itl_ms: float | None = None  # between two tokens of a stream; none: twice the streams' own step

    def __post_init__(self) -> None:
        target = self.target_itl_ms
        if target is not None and not 0 < target <= 3_600_000:
            raise RequestError(f"target_itl_ms is {target!r}; allowed: a number of milliseconds above 0")


class _Sums:
    """Of the steps of one size, the latest counting most: what the normal equations are made of."""

    __slots__ = ("_cc", "_cy", "_last", "_t", "_tc", "_tt", "_ty", "_w", "_wc", "_wy")

    def __init__(self, step: int) -> None:
        self._last = step
        self._w = self._t = self._wc = self._tt = self._tc = self._cc = 0.0
        self._wy = self._ty = self._cy = 0.0

    def add(self, tokens: float, context: float, elapsed_ms: float, step: int) -> None:
        """One more, weighted by its time, so that a long prefill does not drown the many short steps."""
        kept = _FORGET * self._kept(step)
        weight = 1.0 / max(elapsed_ms, 0.01)
        self._last = step
        self._w = kept * self._w + weight
        self._t = kept * self._t + weight * tokens
        self._wc = kept * self._wc + weight * context
        self._tt = kept * self._tt + weight * tokens * tokens
        self._tc = kept * self._tc + weight * tokens * context
        self._cc = kept * self._cc + weight * context * context
        self._wy = kept * self._wy + weight * elapsed_ms
        self._ty = kept * self._ty + weight * tokens * elapsed_ms
        self._cy = kept * self._cy + weight * context * elapsed_ms

    def system(self, step: int) -> np.ndarray[tuple[int, int], np.dtype[np.float64]]:
        """[3, 4] for base, tokens and context: squares, and products with the time."""
        rows = (
            (self._w, self._t, self._wc, self._wy),
            (self._t, self._tt, self._tc, self._ty),
            (self._wc, self._tc, self._cc, self._cy),
        )
        return self._kept(step) * np.array(rows)

    def _kept(self, step: int) -> float:
        """What is left after the steps of other sizes since the last of this."""
        return float(_FORGET_OTHERS ** max((step - self._last - 1) / 4, 0.0))


class StepCost:
    """Milliseconds of a step = base + per token + per thousand tokens of context read; fitted as steps go.

    Least squares (normal equations, 3 x 3) over forgotten steps. Steps of about one size make the others of
    that size forgotten, and hardly those of other sizes: after a thousand plain steps of one stream it must
    still be known what a token more costs, or no draft would ever be tried.
    """

    def __init__(self) -> None:
        self._sums: dict[int, _Sums] = {}  # by size
        self._base_ms = self._token_ms = self._context_ms = 0.0
        self._observed = 0
        self._fitted = 0  # so many were observed when it was fitted

    @property
    def known(self) -> bool:
        """Whether enough steps were seen."""
        return self._observed >= _FIRST_STEPS

    def observe(self, plan: StepPlan, elapsed_ms: float) -> None:
        """Take in how long a step took. Quick: every step is told, and few are followed by a question."""
        tokens = tiled(plan.tokens)
        context = (
            sum(chunk.end * (chunk.tokens + chunk.branch_tokens) for chunk in plan.chunks) / _CONTEXT_UNIT
        )
        size = tokens if tokens <= 16 else 16 + tokens.bit_length()
        sums = self._sums.get(size)
        if sums is None:
            sums = self._sums[size] = _Sums(self._observed)
        sums.add(float(tokens), context, elapsed_ms, self._observed)
        self._observed += 1

    def _fit(self) -> None:
        total = np.zeros((3, 4))
        for sums in self._sums.values():
            total += sums.system(self._observed)
        squares, products = total[:, :3], total[:, 3]
        # Anew each time: forgotten with the steps, it left a singular system after 1 400 of one kind.
        ridge = np.diag(_RIDGE + _RIDGE_SHARE * np.diag(squares))
        found = np.maximum(np.linalg.solve(squares + ridge, products), 0.0)
        self._base_ms, self._token_ms, self._context_ms = found.tolist()
        self._fitted = self._observed

    def predict_ms(self, tokens: int, context_tokens: int) -> float:
        """A step of so many tokens that together read so many tokens of context."""
        if self._fitted != self._observed:
            self._fit()  # takes 50 us
        context = context_tokens / _CONTEXT_UNIT
        return self._base_ms + self._token_ms * tiled(tokens) + self._context_ms * context


class TokenBudget:
    """The most tokens of the next step, from what the running streams need and what more would cost."""

    def __init__(self, most_tokens: int, options: BudgetOptions, cost: StepCost | None = None) -> None:
        check_int("batch_tokens", most_tokens, 1, (1 << 31) - 1)
        self.most_tokens = most_tokens
        self.cost = StepCost() if cost is None else cost
        self._options = options

    def tokens(self, streams: int, context_tokens: int, prompts: int) -> int:
        """For so many decoding streams that read so many tokens of context in a step, and so many prompts
        that are being computed or could be."""
        # Without prompts there is nothing to hold back; how much is drafted is decided by what it brings.
        if not streams or not prompts or not self.cost.known:
            return self.most_tokens
        alone_ms = self.cost.predict_ms(streams, context_tokens)
        stretch = 1.0 + max(_STRETCH, _STRETCH_PER_PROMPT * prompts / streams)
        limit_ms = self._options.target_itl_ms or stretch * alone_ms
        # What a prompt token costs, its own attention over a context like the streams' included.
        mean_context = context_tokens // streams
        more_ms = (self.cost.predict_ms(streams + 64, context_tokens + 64 * mean_context) - alone_ms) / 64
        room = int((limit_ms - alone_ms) / more_ms) if more_ms > 0 else self.most_tokens
        least = -(-(streams + _LEAST_PREFILL_TOKENS) // _EVEN_TOKENS) * _EVEN_TOKENS
        return min(max((streams + room) // _EVEN_TOKENS * _EVEN_TOKENS, least), self.most_tokens)
