"""From the hidden states of a prompt to its embedding.

The mean adds the states of all positions one by one in float64, in order, however they come in chunks: no bit
depends on how the prompt was computed. Square roots and quotients are IEEE's, and the sum of squares is exact
before it is rounded once, so that no library's order of summation matters either.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from stoker.api.request import Pooling
from stoker.kernels.program import Float32


class PooledStates:
    """What is known of one prompt's embedding. The runner adds states, in order, as steps give them."""

    __slots__ = ("_prompt", "_total", "pooling", "positions")

    def __init__(self, pooling: Pooling, prompt_tokens: int) -> None:
        self.pooling = pooling
        self.positions = 0  # from the first on, of which the states were added; preemption does not undo it
        self._prompt = prompt_tokens
        self._total: npt.NDArray[np.float64] | None = None  # [width]

    @property
    def reads_prefixes(self) -> bool:
        """Whether a cached prefix saves work: keys and values are cached, and hidden states are not."""
        return self.pooling == "last"

    def first_wanted(self, start: int, end: int) -> int:
        """Of a chunk [start, end) of positions the first whose hidden state is wanted, and all after it;
        `end` if none is."""
        if self.pooling == "last":
            return end - 1 if end == self._prompt else end
        return min(max(start, self.positions), end)

    def add(self, states: Float32, end: int) -> None:
        """Take the wanted states [rows, width] of a chunk that ends before position `end`."""
        for state in states:
            # A row at a time: `sum` may pair rows as it likes.
            self._total = state.astype(np.float64) if self._total is None else self._total + state
        self.positions = max(self.positions, end)

    def vector(self) -> tuple[float, ...] | None:
        """The embedding: of length 1, each number rounded to float32. None if it has no direction, for states
        that are zero or not finite."""
        assert self._total is not None
        # The mean's division by the number of tokens would be undone by bringing it to length 1.
        largest = float(np.abs(self._total).max(initial=0.0))
        if not 0.0 < largest < math.inf:  # NaN fails both
            return None
        scaled = self._total / largest
        length = math.sqrt(math.fsum((scaled * scaled).tolist()))
        return tuple((scaled / length).astype(np.float32).tolist())
