"""What the engine asks of anything that runs Programs, and the check of a step's description."""

from __future__ import annotations

from typing import Protocol

import numpy as np

from stoker.api.errors import EngineError
from stoker.kernels.program import BLOCK_TOKENS, Batch, Float32, UInt8


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

    @property
    def hidden_states(self) -> Float32:
        """[H, width] what the output matrix is given, of the last run's `hidden_rows`; valid until the next
        run."""
        ...

    @property
    def draft_states(self) -> Float32:
        """[H, all widths] the same, and beside it what the Program names as `draft_states`, in order; as long
        valid."""
        ...

    def copy_block(self, source: int, destination: int) -> None:
        """Copy every layer's keys and values of one block to another. EngineError for no such block."""
        ...

    def read_block(self, block: int) -> UInt8:
        """[block_bytes] a copy of one block's keys and values, of every layer; for `write_block` of the same
        Program and KV type only. EngineError for no such block.
        """
        ...

    def write_block(self, block: int, payload: UInt8) -> None:
        """Put such bytes [block_bytes] into a block. EngineError for no such block, or another length."""
        ...


def check_batch(batch: Batch, *, vocabulary: int, num_blocks: int, context_tokens: int) -> None:
    """Raise EngineError naming the field of `batch` that is wrong, if any.

    It keeps a scheduler's mistake from becoming an access outside the KV memory, or two tokens writing one
    slot. The native core checks the same in the same words (native/check_batch.cc), before each of its runs.
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
    _check_length("positions", batch.positions, tokens)
    _check_length("query_start", batch.query_start, sequences + 1)
    _check_length("block_tables", batch.block_tables, sequences)
    _check_range("token_ids", batch.token_ids, 0, vocabulary)
    _check_query_start(batch.query_start.tolist(), tokens)
    _check_range("kv_tokens", batch.kv_tokens, 1, context_tokens + 1)
    _check_positions(batch)
    _check_blocks(batch, num_blocks)
    _check_copies(batch)
    _check_written(batch)
    for name in ("logit_rows", "hidden_rows"):
        _check_rows(name, getattr(batch, name), tokens)


_DIMENSIONS = (
    ("token_ids", 1),
    ("positions", 1),
    ("query_start", 1),
    ("kv_tokens", 1),
    ("block_tables", 2),
    ("logit_rows", 1),
    ("hidden_rows", 1),
    ("kv_copies", 2),
)


def _check_length(name: str, array: np.ndarray, allowed: int) -> None:
    if len(array) != allowed:
        raise EngineError(f"batch.{name} has {len(array)} entries; allowed: {allowed}")


def _check_range(name: str, values: np.ndarray, low: int, end: int) -> None:
    wrong = values[(values < low) | (values >= end)]
    if len(wrong):
        raise EngineError(f"batch.{name} holds {wrong[0]}; allowed: {low} to {end - 1}")


def _check_rows(name: str, array: np.ndarray, tokens: int) -> None:
    _check_range(name, array, 0, tokens)
    rows = array.tolist()
    for i in range(1, len(rows)):
        if rows[i] <= rows[i - 1]:
            raise EngineError(f"batch.{name}[{i}] is {rows[i]}; allowed: rising numbers")


def _check_query_start(starts: list[int], tokens: int) -> None:
    for i, start in enumerate(starts):
        good = start == 0 if i == 0 else start > starts[i - 1]
        if not good or (i == len(starts) - 1 and start != tokens):
            raise EngineError(
                f"batch.query_start[{i}] is {start}; allowed: numbers rising from 0 to {tokens}"
            )


def _check_positions(batch: Batch) -> None:
    counts = np.diff(batch.query_start)
    short = np.flatnonzero(batch.kv_tokens < counts)
    if len(short):
        s = short[0]
        raise EngineError(
            f"batch.kv_tokens[{s}] is {batch.kv_tokens[s]}; allowed: at least its {counts[s]} tokens"
        )
    expected = np.repeat(batch.kv_tokens - batch.query_start[1:], counts) + np.arange(batch.tokens)
    wrong = np.flatnonzero(batch.positions != expected)
    if len(wrong):
        t = wrong[0]
        raise EngineError(
            f"batch.positions[{t}] is {batch.positions[t]}; allowed: {expected[t]}, "
            "as its sequence ends at kv_tokens - 1"
        )


def _check_blocks(batch: Batch, num_blocks: int) -> None:
    needed = -(-batch.kv_tokens // BLOCK_TOKENS)
    columns = batch.block_tables.shape[1]
    if columns < needed.max():
        raise EngineError(f"batch.block_tables has {columns} columns; allowed: at least {needed.max()}")
    used = np.arange(columns)[None, :] < needed[:, None]
    _check_range("block_tables", batch.block_tables[used], 0, num_blocks)


def _check_copies(batch: Batch) -> None:
    if batch.kv_copies.shape[1] != 2:
        raise EngineError(f"batch.kv_copies has {batch.kv_copies.shape[1]} columns; allowed: 2")
    before = (-1, -1)
    for i, (token, sequence) in enumerate(batch.kv_copies.tolist()):
        if not (0 <= token < batch.tokens and 0 <= sequence < batch.sequences):
            raise EngineError(
                f"batch.kv_copies[{i}] copies token {token} for sequence {sequence}; allowed: tokens 0 to "
                f"{batch.tokens - 1}, sequences 0 to {batch.sequences - 1}"
            )
        if (token, sequence) <= before:
            raise EngineError(
                f"batch.kv_copies[{i}] is not behind the one before it; allowed: rising tokens, and rising "
                "sequences of each"
            )
        before = (token, sequence)
        first = batch.positions[batch.query_start[sequence]]
        if batch.positions[token] >= first:
            raise EngineError(
                f"batch.kv_copies[{i}] is of position {batch.positions[token]}; allowed: before position "
                f"{first}, where its sequence begins"
            )


def _check_written(batch: Batch) -> None:
    written = np.concatenate([written_slots(batch), copied_slots(batch)])
    slots, times = np.unique(written, return_counts=True)
    if (times > 1).any():
        block = slots[times > 1][0] // BLOCK_TOKENS
        raise EngineError(f"batch.block_tables make two tokens of one step share a slot of block {block}")


def written_slots(batch: Batch) -> np.ndarray:
    """Slot (block · BLOCK_TOKENS + place in it) that each token's K and V go to: [T]."""
    sequence = np.repeat(np.arange(batch.sequences), np.diff(batch.query_start))
    block = batch.block_tables[sequence, batch.positions // BLOCK_TOKENS].astype(np.int64)
    return block * BLOCK_TOKENS + batch.positions % BLOCK_TOKENS


def copied_slots(batch: Batch) -> np.ndarray:
    """Slot that each of `kv_copies` goes to: [C]."""
    positions = batch.positions[batch.kv_copies[:, 0]]
    block = batch.block_tables[batch.kv_copies[:, 1], positions // BLOCK_TOKENS].astype(np.int64)
    return block * BLOCK_TOKENS + positions % BLOCK_TOKENS
