"""The target's hidden states of a sequence's last tokens: what draft heads go on from."""

from __future__ import annotations

import numpy as np

from stoker.kernels.program import Float32


class Features:
    """A ring of rows, one for each of the last positions. The runner writes, drafters read."""

    def __init__(self, most_tokens: int) -> None:
        self.most_tokens = most_tokens
        self.first = 0  # the oldest position that has a row
        self.end = 0  # one past the latest
        self._rows: Float32 | None = None  # [most_tokens, width], position p in row p % most_tokens

    def put(self, position: int, rows: Float32) -> None:
        """Rows [count, width] of the positions from `position` on. What was there is replaced, also what came
        after; rows that do not continue what is there begin anew."""
        if not len(rows):
            return
        if self._rows is None:
            self._rows = np.empty((self.most_tokens, rows.shape[1]), np.float32)
        if not self.first <= position <= self.end:
            self.first = position
        end = position + len(rows)
        rows = rows[-self.most_tokens :]
        first = (end - len(rows)) % self.most_tokens
        before = rows[: self.most_tokens - first]  # up to where the ring begins again
        self._rows[first : first + len(before)] = before
        if len(before) < len(rows):
            self._rows[: len(rows) - len(before)] = rows[len(before) :]
        self.end = end
        self.first = max(self.first, end - self.most_tokens)

    def cut(self, end: int) -> None:
        """Forget the rows from position `end` on."""
        self.end = max(min(self.end, end), self.first)

    def rows(self, begin: int, end: int) -> Float32:
        """[end - begin, width] a copy; first <= begin < end <= self.end."""
        assert self._rows is not None
        first = begin % self.most_tokens
        before = self._rows[first : first + end - begin]
        if len(before) == end - begin:
            return before.copy()
        return np.concatenate([before, self._rows[: end - begin - len(before)]])
