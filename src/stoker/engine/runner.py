"""From a plan to numbers: builds the batch, runs the model, samples or scores its rows of logits."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, Protocol

import numpy as np

from stoker.cache.blocks import BlockPool
from stoker.engine.plan import Chunk, StepPlan
from stoker.engine.sequence import Purpose, Sequence
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.program import BLOCK_TOKENS, Batch, Float32, Int32
from stoker.sampling.rows import SampleResult, SampleRow

_NOTHING_SAMPLED: Final = SampleResult(  # of a step whose chunks are all in the middle of a prompt
    np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
)


class Samples(Protocol):
    """What the runner asks of a sampler; `stoker.sampling.Sampler` is one."""

    def sample(self, logits: Float32, rows: list[SampleRow]) -> SampleResult:
        """One token for each row of logits [R, vocabulary]."""
        ...


class Runner:
    """Stateless between steps: everything it needs is in the plan, the sequences and the pool."""

    def __init__(self, interpreter: Interpreter, sampler: Samples, pool: BlockPool) -> None:
        self._interpreter = interpreter
        self._sampler = sampler
        self._pool = pool

    def run(self, plan: StepPlan, sequence_of: Callable[[int], Sequence]) -> SampleResult:
        """Copy the shared blocks that are about to be written, compute the batch, choose a token for each
        row.
        """
        sequences = [sequence_of(chunk.number) for chunk in plan.chunks]
        batch = self.batch(plan, sequences)
        for source, destination in plan.copies:
            self._interpreter.copy_block(source, destination)
        logits = self._interpreter.run(batch)
        rows: list[SampleRow] = []
        for sequence, chunk in zip(sequences, plan.chunks, strict=True):
            if chunk.rows:
                rows += (
                    _score_rows(sequence, chunk) if sequence.purpose is Purpose.SCORE else [_row(sequence)]
                )
        return self._sampler.sample(logits, rows) if rows else _NOTHING_SAMPLED

    def batch(self, plan: StepPlan, sequences: list[Sequence]) -> Batch:
        """The step as every interpreter takes it; `sequences` in the order of the plan's chunks."""
        chunks = plan.chunks
        starts = np.array([chunk.start for chunk in chunks], np.int32)
        counts = np.array([chunk.tokens for chunk in chunks], np.int32)
        query_start = np.zeros(len(chunks) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        kv_tokens = starts + counts
        if int(query_start[-1]) == len(chunks):  # one token each: the common step is spared the general way
            positions = starts
            token_ids = np.array(
                [sequence.token_at(chunk.start) for sequence, chunk in zip(sequences, chunks, strict=True)],
                np.int32,
            )
        else:
            offsets = np.repeat(starts - query_start[:-1], counts)
            positions = np.arange(len(offsets), dtype=np.int32) + offsets
            token_ids = np.concatenate(
                [s.ids[chunk.start : chunk.end] for s, chunk in zip(sequences, chunks, strict=True)]
            )
        columns = -(-int(kv_tokens.max()) // BLOCK_TOKENS)
        rows = [sequence.table.row for sequence in sequences if sequence.table is not None]
        return Batch(
            token_ids=token_ids,
            positions=positions,
            query_start=query_start,
            kv_tokens=kv_tokens,
            block_tables=self._pool.batch_tables(rows, columns),
            logit_rows=_logit_rows(chunks, query_start),
        )


def _logit_rows(chunks: tuple[Chunk, ...], query_start: Int32) -> Int32:
    wanted = np.array([chunk.rows for chunk in chunks], np.int32)
    ends = query_start[1:]
    if int(wanted.max()) <= 1:
        last: Int32 = ends[wanted == 1] - 1
        return last
    return np.concatenate(
        [
            np.arange(end - rows, end, dtype=np.int32)
            for end, rows in zip(ends.tolist(), wanted.tolist(), strict=True)
        ]
    )


def _row(sequence: Sequence) -> SampleRow:
    packed = sequence.packed
    banned: tuple[int, ...] = ()
    if sequence.output_tokens < packed.params.min_tokens:
        banned = tuple(sorted(sequence.stop_ids))
    if not packed.needs_history:
        return SampleRow(packed, sequence.known, banned_ids=banned)
    return SampleRow(packed, sequence.known, sequence.ids, sequence.prompt, banned)


def _score_rows(sequence: Sequence, chunk: Chunk) -> list[SampleRow]:
    """The logits of position p are about the token at p + 1: it is forced, to learn its log-probability."""
    first = chunk.end - chunk.rows + 1
    following = sequence.ids[first : chunk.end + 1].tolist()
    return [
        SampleRow(sequence.packed, first + i, forced_token=token_id) for i, token_id in enumerate(following)
    ]
