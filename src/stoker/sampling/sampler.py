"""From a step's logits to its tokens, natively. `ReferenceSampler` is the same in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stoker.api.errors import RequestError
from stoker.sampling.rows import Int32, SampleResult, SampleRow, pack_rows

Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]
_FLOAT32 = np.dtype(np.float32)


class SampleWorkspace(Protocol):
    """`stoker._native.SampleWorkspace(pool)`: memory for each thread of a pool; one caller at a time."""

    def sample(
        self,
        logits: Array,
        records: bytes,
        bias_ids: Array,
        bias_values: Array,
        banned_ids: Array,
        history: Array,
        masks: Array,
        token_ids: Array,
        logprobs: Array,
        top_ids: Array,
        top_logprobs: Array,
    ) -> None:
        """Fill the last four arrays."""


class Sampler:
    """Samples all rows of a step in one native call on the pool's threads."""

    def __init__(self, workspace: SampleWorkspace) -> None:
        self._workspace = workspace

    def sample(self, logits: Float32, rows: Sequence[SampleRow]) -> SampleResult:
        """One token per row. logits: float32 [R, V], each row contiguous; not modified.

        Raises `RequestError` when rows and logits differ in number, or a row does not fit the vocabulary.
        """
        count = len(rows)
        if logits.ndim != 2 or logits.dtype != _FLOAT32 or count != len(logits):
            raise RequestError(f"logits are {logits.dtype} {logits.shape}; allowed: float32 ({count}, V)")
        packed = pack_rows(rows, logits.shape[1])
        top_ids, top_logprobs = _top_arrays(count, packed.top_count)
        result = SampleResult(np.empty(count, np.int32), np.empty(count, np.float32), top_ids, top_logprobs)
        self._workspace.sample(
            logits,
            packed.records,
            packed.bias_ids,
            packed.bias_values,
            packed.banned_ids,
            packed.history,
            packed.masks,
            result.token_ids,
            result.logprobs,
            result.top_ids,
            result.top_logprobs,
        )
        return result


def _top_arrays(rows: int, count: int) -> tuple[Int32, Float32]:
    """[rows, count] of each, saying that nothing was found. The sampler fills in what was asked for."""
    if not count:
        return _nothing_on_top(rows)
    return np.full((rows, count), -1, np.int32), np.full((rows, count), np.nan, np.float32)


@lru_cache(maxsize=128)
def _nothing_on_top(rows: int) -> tuple[Int32, Float32]:
    """Arrays without elements, so that results can share them."""
    return np.empty((rows, 0), np.int32), np.empty((rows, 0), np.float32)
