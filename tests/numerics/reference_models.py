"""What several numeric tests share: weights of a GGUF file in float32, and batches."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from stoker.kernels.program import BLOCK_TOKENS, Batch, Float32
from stoker.weights.gguf import GGUFFile
from stoker.weights.packing import dequantize_reference


def lazy_weights(file: GGUFFile) -> dict[str, Callable[[], Float32]]:
    """For each tensor a function that dequantises it, so that only what an op needs is in memory."""

    def reader(name: str) -> Callable[[], Float32]:
        tensor = file.tensors[name]
        rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
        kind = tensor.type.type_id
        return lambda: dequantize_reference(kind, file.data(name), rows, columns).reshape(tensor.shape)

    return {name: reader(name) for name in file.tensors}


def make_batch(
    sequences: Sequence[tuple[Sequence[int], int, Sequence[int]]],
    logit_rows: Sequence[int] | None = None,
    hidden_rows: Sequence[int] = (),
) -> Batch:
    """A batch of (new token ids, tokens computed before, blocks), with all logits unless rows are given."""
    most = max(len(blocks) for _, _, blocks in sequences)
    counts = [len(ids) for ids, _, _ in sequences]
    return Batch(
        token_ids=int32([token for ids, _, _ in sequences for token in ids]),
        positions=int32([past + i for ids, past, _ in sequences for i in range(len(ids))]),
        query_start=int32([0, *np.cumsum(counts)]),
        kv_tokens=int32([past + len(ids) for ids, past, _ in sequences]),
        block_tables=int32([[*blocks, *[-1] * (most - len(blocks))] for _, _, blocks in sequences]),
        logit_rows=int32(range(sum(counts)) if logit_rows is None else logit_rows),
        hidden_rows=int32(hidden_rows),
    )


def whole_text(token_ids: Sequence[int]) -> Batch:
    """One sequence from its start, in blocks 0, 1, .."""
    return make_batch([(token_ids, 0, range(blocks_for(len(token_ids))))])


def blocks_for(tokens: int) -> int:
    """Blocks that hold so many tokens."""
    return -(-tokens // BLOCK_TOKENS)


def int32(values: Sequence[int] | range) -> np.ndarray:
    """As an int32 array."""
    return np.asarray(values, np.int32)


def negative_log_likelihoods(logits: Float32, token_ids: Sequence[int]) -> np.ndarray:
    """Of tokens 2 to n, float64 [n-1], from logits [n, vocabulary]."""
    wide = logits[:-1].astype(np.float64)
    peak = wide.max(axis=1)
    total = peak + np.log(np.exp(wide - peak[:, None]).sum(axis=1))
    return total - wide[np.arange(len(wide)), np.asarray(token_ids[1:])]
