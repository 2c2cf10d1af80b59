"""From a step's logits to its tokens, natively. `ReferenceSampler` is the same in numpy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from stoker.api.errors import RequestError
from stoker.sampling.rows import SampleResult, SampleRow, pack_rows

Float32 = npt.NDArray[np.float32]
Array = npt.NDArray[np.generic]


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
        if logits.ndim != 2 or logits.dtype != np.float32 or len(rows) != len(logits):
            raise RequestError(f"logits are {logits.dtype} {logits.shape}; allowed: float32 ({len(rows)}, V)")
        packed = pack_rows(rows, logits.shape[1])
        result = SampleResult(
            np.empty(len(rows), np.int32),
            np.empty(len(rows), np.float32),
            np.full((len(rows), packed.top_count), -1, np.int32),
            np.full((len(rows), packed.top_count), np.nan, np.float32),
        )
        self._workspace.sample(
            logits,
            packed.tasks.tobytes(),
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
