"""What the engine asks of anything that runs Programs, and the check of a step's description."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stoker.api.errors import EngineError
from stoker.kernels.program import BLOCK_TOKENS, Batch, Float32


class Interpreter(Protocol):
    """Runs one Program. Owns the KV blocks; which block belongs to whom is the caller's business."""

    @property
    def vocabulary(self) -> int:
        """Columns of the logits."""
        ...

    @property
    def num_blocks(self) -> int:
        """KV blocks, numbered from 0; each holds BLOCK_TOKENS positions of every layer."""
        ...

    @property
    def block_bytes(self) -> int:
        """Memory of one block over all layers, keys and values."""
        ...

    def run(self, batch: Batch) -> Float32:
        """Compute one step: write its K and V into the blocks, return logits [R, vocabulary].

        Raises EngineError for a batch that contradicts itself (`check_batch`); nothing is written then.
        """
        ...

    def copy_block(self, source: int, destination: int) -> None:
        """Copy every layer's keys and values of one block to another. EngineError for no such block."""
        ...


def check_batch(batch: Batch, *, vocabulary: int, num_blocks: int, context_tokens: int) -> None:
    """Raise EngineError naming the field of `batch` that is wrong, if any.

    A few numpy calls on arrays of T or S numbers, so cheap enough for every step. It keeps a scheduler's
    mistake from becoming an access outside the KV memory, or two sequences writing one slot.
    """
    for name, dimensions in _DIMENSIONS:
        array = getattr(batch, name)
        if array.dtype != np.int32 or array.ndim != dimensions:
            raise EngineError(
                f"batch.{name} is {array.dtype} of {array.ndim} dimensions; allowed: int32 of {dimensions}"
            )
    tokens, sequences = batch.tokens, batch.sequences
    if not 1 <= sequences <= tokens:
        raise EngineError(
            f"batch has {sequences} sequences and {tokens} tokens; allowed: one token each or more"
        )
    _check_range("token_ids", batch.token_ids, 0, vocabulary)
    starts = batch.query_start
    counts = np.diff(starts)
    if len(starts) != sequences + 1 or starts[0] != 0 or starts[-1] != tokens or (counts < 1).any():
        raise EngineError(
            f"batch.query_start is {starts}; allowed: {sequences + 1} numbers rising from 0 to {tokens}"
        )
    _check_range("kv_tokens", batch.kv_tokens, 1, context_tokens + 1)
    expected = np.repeat(batch.kv_tokens - starts[1:], counts) + np.arange(tokens, dtype=np.int32)
    if not np.array_equal(batch.positions, expected) or expected.min() < 0:
        raise EngineError(
            f"batch.positions do not end at kv_tokens - 1 for each of the {sequences} sequences"
        )
    _check_blocks(batch, counts, num_blocks)
    rows = batch.logit_rows
    _check_range("logit_rows", rows, 0, tokens)
    if (np.diff(rows) < 1).any():
        raise EngineError("batch.logit_rows are not ascending")


_DIMENSIONS = (
    ("token_ids", 1),
    ("positions", 1),
    ("query_start", 1),
    ("kv_tokens", 1),
    ("block_tables", 2),
    ("logit_rows", 1),
)


def _check_range(name: str, values: np.ndarray, low: int, end: int) -> None:
    wrong = values[(values < low) | (values >= end)]
    if len(wrong):
        raise EngineError(f"batch.{name} holds {wrong[0]}; allowed: {low} to {end - 1}")


def _check_blocks(batch: Batch, counts: np.ndarray, num_blocks: int) -> None:
    needed = -(-batch.kv_tokens // BLOCK_TOKENS)
    rows, columns = batch.block_tables.shape
    if rows != batch.sequences or columns < needed.max():
        raise EngineError(
            f"batch.block_tables is {rows} x {columns}; allowed: {batch.sequences} rows, "
            f"{needed.max()} columns or more"
        )
    used = np.arange(columns)[None, :] < needed[:, None]
    _check_range("block_tables", batch.block_tables[used], 0, num_blocks)
    written = written_slots(batch)
    if len(np.unique(written)) != len(written):
        raise EngineError("batch.block_tables make two tokens of one step share a slot")


def written_slots(batch: Batch) -> np.ndarray:
    """Slot (block · BLOCK_TOKENS + place in it) that each token's K and V go to: [T]."""
    sequence = np.repeat(np.arange(batch.sequences), np.diff(batch.query_start))
    block = batch.block_tables[sequence, batch.positions // BLOCK_TOKENS].astype(np.int64)
    return block * BLOCK_TOKENS + batch.positions % BLOCK_TOKENS
