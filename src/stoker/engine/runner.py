"""From a plan to numbers: builds the batch, runs the model, samples or scores its rows of logits."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Final, NamedTuple, Protocol

import numpy as np

from stoker.api.errors import StokerError
from stoker.cache.blocks import BlockPool
from stoker.engine.branches import branch_starts, copied
from stoker.engine.masks import Allowed, Masks
from stoker.engine.plan import Chunk, StepPlan
from stoker.engine.sequence import CONSTRAINT_FAULT, Purpose, Sequence, fault_of
from stoker.grammar.guide import Guide
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.program import BLOCK_TOKENS, NO_COPIES, NO_ROWS, Batch, Float32, Int32
from stoker.sampling.rows import SampleResult, SampleRow

_FIRST_COUNTING = 256  # more sequences than most steps have
_ONE = np.int32(1)
_MOST_REFUSED = 256  # tokens at one position that look right and are not; each costs a row sampled anew
_NOTHING_SAMPLED: Final = SampleResult(  # of a step whose chunks are all in the middle of a prompt
    np.empty(0, np.int32), np.empty(0, np.float32), np.empty((0, 0), np.int32), np.empty((0, 0), np.float32)
)


class Samples(Protocol):
    """What the runner asks of a sampler; `stoker.sampling.Sampler` is one."""

    def sample(self, logits: Float32, rows: list[SampleRow]) -> SampleResult:
        """One token for each row of logits [R, vocabulary]."""
        ...


class Runner:
    """Keeps nothing between steps: all it needs is in the plan, the sequences and the pool."""

    def __init__(
        self, interpreter: Interpreter, sampler: Samples, pool: BlockPool, *, spare_core: bool = False
    ) -> None:
        """`spare_core`: one is free while the model runs."""
        self._interpreter = interpreter
        self._sampler = sampler
        self._pool = pool
        self._masks = Masks(interpreter.vocabulary, beside=spare_core)
        self.keeps_features = True  # whether hidden states are kept for drafters, where sequences ask for it
        self._counting: Int32 = np.arange(_FIRST_COUNTING, dtype=np.int32)  # 0, 1, 2, ...: to be sliced

    def run(self, plan: StepPlan, sequence_of: Callable[[int], Sequence]) -> SampleResult:
        """Make the plan's copies, compute its chunks in one batch, choose a token for each row of logits."""
        sequences = [sequence_of(chunk[0]) for chunk in plan.chunks]
        batch = self.batch(plan, sequences)
        for source, destination in plan.copies:
            self._interpreter.copy_block(source, destination)
        self._masks.begin(plan.chunks, sequences)
        try:
            logits = self._interpreter.run(batch)
        finally:
            allowed = self._masks.end()
        result = self._sample(plan, sequences, logits, allowed)
        if len(batch.hidden_rows):
            self._keep_hidden(plan, sequences, result)
        return result

    def _sample(
        self, plan: StepPlan, sequences: list[Sequence], logits: Float32, allowed: Allowed
    ) -> SampleResult:
        rows: list[SampleRow] = []
        guided: list[tuple[int, Sequence, Chunk]] = []
        for sequence, chunk in zip(sequences, plan.chunks, strict=True):
            if not chunk[3]:
                continue
            if sequence.purpose is not Purpose.GENERATE:
                rows += _score_rows(sequence, chunk)
            elif sequence.guide is None:
                rows += _rows(sequence, chunk)
            else:
                guided.append((len(rows), sequence, chunk))
                rows += _guided_rows(sequence, chunk, allowed)
        if not rows:
            return _NOTHING_SAMPLED
        result = self._sampler.sample(logits, rows)
        for first, sequence, chunk in guided:
            self._choose_again(logits, first, rows, sequence, chunk, result, allowed)
        return result

    def _choose_again(
        self,
        logits: Float32,
        first: int,
        rows: list[SampleRow],
        sequence: Sequence,
        chunk: Chunk,
        result: SampleResult,
        allowed: Allowed,
    ) -> None:
        """While the guide refuses what a row's sampling gave: take the next best, by the same noise. Of a
        draft along the right guesses up to the first wrong one: nothing else will be looked at."""
        guide = sequence.guide
        assert guide is not None
        if chunk.draft:
            guide = guide.fork()
        guesses = chunk.guesses
        guess: int | None = -1
        while guess is not None:
            row, found = first + 1 + guess, allowed.get((sequence.number, guess))
            try:
                if isinstance(found, StokerError):
                    raise found
                if rows[row].forced_token is None and not guide.free and not guide.finished:
                    self._sample_allowed(logits, row, rows[row], guide, sequence, result)
            except StokerError as error:  # of this choice alone
                sequence.fault = fault_of(error)
                result.token_ids[row] = -1
            guess = guesses.following(guess, int(result.token_ids[row]))
            if guess is not None:
                with suppress(StokerError):  # the sequence's own guide will say so when it is told
                    guide.push(guesses.tokens[guess])

    def _sample_allowed(
        self,
        logits: Float32,
        row: int,
        asked: SampleRow,
        guide: Guide,
        sequence: Sequence,
        result: SampleResult,
    ) -> None:
        refused: tuple[int, ...] = ()
        while (token_id := int(result.token_ids[row])) >= 0 and guide.refuses(token_id):
            refused += (token_id,)
            if len(refused) > _MOST_REFUSED:
                result.token_ids[row] = -1
                break
            banned = asked.banned_ids + refused
            again = self._sampler.sample(logits[row : row + 1], [asked._replace(banned_ids=banned)])
            result.token_ids[row] = again.token_ids[0]
            result.logprobs[row] = again.logprobs[0]
        if result.token_ids[row] < 0 and sequence.fault is None and np.isfinite(logits[row]).any():
            sequence.fault = _nothing_left(len(refused))

    def batch(self, plan: StepPlan, sequences: list[Sequence]) -> Batch:
        """The step as every interpreter takes it; `sequences` in the order of the plan's chunks."""
        count = len(sequences)
        _, starts, tokens, rows, _, _ = zip(*plan.chunks, strict=True)
        if sum(tokens) != count or sum(rows) != count:
            if count == 1:
                of_one = self._batch_of_tree if plan.chunks[0].branches else self._batch_of_one
                return of_one(plan.chunks[0], sequences[0])
            return self._mixed_batch(plan.chunks, sequences)
        columns = max(starts) // BLOCK_TOKENS + 1
        table_rows = [sequence.table.row for sequence in sequences if sequence.table is not None]
        # One token and one row each: the common step is spared most numpy calls, a microsecond apiece.
        counting = self._counting_to(count + 1)
        numbers = list(starts)
        numbers += [start + 1 for start in starts]
        numbers += [sequence.token_at(start) for sequence, start in zip(sequences, starts, strict=True)]
        packed = np.array(numbers, np.int32)
        keeps = self.keeps_features and any(sequence.features is not None for sequence in sequences)
        return Batch(
            token_ids=packed[2 * count :],
            positions=packed[:count],
            query_start=counting[: count + 1],
            kv_tokens=packed[count : 2 * count],
            block_tables=self._pool.batch_tables(table_rows, columns),
            logit_rows=counting[:count],
            hidden_rows=counting[:count] if keeps else NO_ROWS,
        )

    def _batch_of_one(self, chunk: Chunk, sequence: Sequence) -> Batch:
        """A stream that is alone, with a draft; or a prompt: what `_mixed_batch` makes of it, sooner."""
        assert sequence.table is not None
        _, start, count, rows, _, _ = chunk
        end = start + count
        counting = self._counting_to(end)
        first_hidden = sequence.first_hidden(start, end, keeps_features=self.keeps_features)
        lengths = np.array((0, count, end), np.int32)
        return Batch(
            token_ids=sequence.peek(start, end),
            positions=counting[start:end],
            query_start=lengths[:2],
            kv_tokens=lengths[2:],
            block_tables=self._pool.batch_tables([sequence.table.row], -(-end // BLOCK_TOKENS)),
            logit_rows=counting[count - rows : count],
            hidden_rows=counting[first_hidden - start : count],
        )

    def _batch_of_tree(self, chunk: Chunk, sequence: Sequence) -> Batch:
        """A stream that is alone, with a tree: likewise. All of it gives logits, and all or none is kept."""
        assert sequence.table is not None
        start, end = chunk.start, chunk.end
        token_ids = sequence.peek(start, end).tolist()
        positions, query_start, kv_tokens = list(range(start, end)), [0, chunk.tokens], [end]
        for branch, begin in zip(chunk.branches, branch_starts(chunk), strict=True):
            token_ids += branch.tokens
            positions += range(begin, begin + len(branch.tokens))
            query_start.append(len(token_ids))
            kv_tokens.append(begin + len(branch.tokens))
        tokens, parts = len(token_ids), len(kv_tokens)
        counting = self._counting_to(tokens)
        packed = np.array(token_ids + positions + query_start + kv_tokens, np.int32)
        table_rows = [sequence.table.row, *(table.row for table in sequence.branch_tables)]
        copies = sorted((1 + guess, 1 + branch) for guess, branch in copied(chunk))
        return Batch(
            token_ids=packed[:tokens],
            positions=packed[tokens : 2 * tokens],
            query_start=packed[2 * tokens : -parts],
            kv_tokens=packed[-parts:],
            block_tables=self._pool.batch_tables(table_rows, -(-max(kv_tokens) // BLOCK_TOKENS)),
            logit_rows=counting[:tokens],
            hidden_rows=counting[:tokens] if self._first_hidden(sequence, chunk) < end else NO_ROWS,
            kv_copies=np.array(copies, np.int32) if copies else NO_COPIES,
        )

    def _counting_to(self, end: int) -> Int32:
        """At least so many numbers from 0 on."""
        if end > len(self._counting):
            self._counting = np.arange(2 * end, dtype=np.int32)
        return self._counting

    def _mixed_batch(self, chunks: tuple[Chunk, ...], sequences: list[Sequence]) -> Batch:
        """Chunks of any length, with any number of rows and branches."""
        parts: list[_Part] = []
        copies: list[tuple[int, int]] = []
        tokens = 0
        for sequence, chunk in zip(sequences, chunks, strict=True):
            if (
                chunk.branches
            ):  # their chunk begins with the last known token, and the guesses follow in order
                copies += [(tokens + 1 + guess, len(parts) + 1 + branch) for guess, branch in copied(chunk)]
            parts += self._parts(sequence, chunk)
            tokens += chunk.tokens + chunk.branch_tokens
        starts = np.array([part.start for part in parts], np.int32)
        counts = np.array([len(part.token_ids) for part in parts], np.int32)
        query_start = np.zeros(len(parts) + 1, np.int32)
        np.cumsum(counts, out=query_start[1:])
        offsets = np.repeat(starts - query_start[:-1], counts)
        ends, kv_tokens = query_start[1:].tolist(), starts + counts
        columns = -(-int(kv_tokens.max()) // BLOCK_TOKENS)
        return Batch(
            token_ids=np.concatenate([part.token_ids for part in parts]),
            positions=np.arange(len(offsets), dtype=np.int32) + offsets,
            query_start=query_start,
            kv_tokens=kv_tokens,
            block_tables=self._pool.batch_tables([part.table_row for part in parts], columns),
            logit_rows=_last_rows([part.rows for part in parts], ends),
            hidden_rows=_last_rows([part.hidden for part in parts], ends),
            kv_copies=np.array(sorted(copies), np.int32) if copies else NO_COPIES,
        )

    def _parts(self, sequence: Sequence, chunk: Chunk) -> list[_Part]:
        assert sequence.table is not None
        hidden = chunk.end - self._first_hidden(sequence, chunk)
        ids = sequence.peek(chunk.start, chunk.end)
        parts = [_Part(sequence.table.row, chunk.start, ids, chunk.rows, hidden)]
        for branch, table, begin in (
            zip(chunk.branches, sequence.branch_tables, branch_starts(chunk), strict=True)
            if chunk.branches
            else ()
        ):
            count = len(branch.tokens)
            ids = np.array(branch.tokens, np.int32)
            parts.append(_Part(table.row, begin, ids, count, count if hidden else 0))
        return parts

    def _first_hidden(self, sequence: Sequence, chunk: Chunk) -> int:
        return sequence.first_hidden(chunk.start, chunk.end, keeps_features=self.keeps_features)

    def _keep_hidden(self, plan: StepPlan, sequences: list[Sequence], result: SampleResult) -> None:
        """Hand each sequence the hidden states of its chunk that it wants."""
        states = self._interpreter.draft_states  # [H, all widths], in order
        # The common step has one of every chunk, as its batch is made without looking at each sequence.
        every = plan.tokens == len(plan.chunks) == len(states)
        begin = row = 0
        for sequence, chunk in zip(sequences, plan.chunks, strict=True):
            first = self._first_hidden(sequence, chunk)
            end = begin + (1 if every else chunk.end - first)
            if sequence.pooled is not None:
                sequence.pooled.add(self._interpreter.hidden_states[begin:end], chunk.end)
            elif sequence.features is not None and first < chunk.end:
                # Of drafted tokens too: those of wrong guesses are written over before anybody reads them.
                wanted: slice | list[int] = slice(begin, end)
                if chunk.branches:
                    wanted = [begin + 1 + guess for guess in _right_guesses(chunk, result, row)]
                    end += chunk.branch_tokens
                sequence.features.put(first, states[wanted])
            begin = end
            row += chunk.rows + chunk.branch_tokens


class _Part(NamedTuple):
    """Consecutive tokens of one block table: a chunk's own, or those of one of its branches."""

    table_row: int
    start: int
    token_ids: Int32
    rows: int  # of logits, the last ones
    hidden: int  # rows whose hidden states are wanted, likewise


def _last_rows(wanted: list[int], ends: list[int]) -> Int32:
    """The last so many rows before each end."""
    return np.array(
        [row for count, end in zip(wanted, ends, strict=True) for row in range(end - count, end)], np.int32
    )


def _right_guesses(chunk: Chunk, result: SampleResult, row: int) -> list[int]:
    """-1 for the last known token, then the guesses that the model said as well; `row`: the chunk's first."""
    guesses = chunk.guesses
    found = [-1]
    while (guess := guesses.following(found[-1], int(result.token_ids[row + 1 + found[-1]]))) is not None:
        found.append(guess)
    return found


def _rows(sequence: Sequence, chunk: Chunk) -> list[SampleRow]:
    """The row of the next token, and of the one after each guess."""
    rows = [_row(sequence, ahead) for ahead in range(len(chunk.draft) + 1)]
    if not chunk.branches:
        return rows
    guesses = chunk.guesses
    for guess in range(len(chunk.draft), len(guesses.tokens)):
        path = guesses.path(guess)
        row = _row(sequence, len(path))
        if row.history is not None:  # what `peek` shows past the known tokens is the draft
            row = row._replace(history=np.concatenate([sequence.ids, np.array(path, np.int32)]))
        rows.append(row)
    return rows


def _row(sequence: Sequence, ahead: int) -> SampleRow:
    """The row of the token that comes after the known ones and so many of the draft."""
    packed = sequence.packed
    banned: tuple[int, ...] = ()
    if packed.params.min_tokens and sequence.output_tokens + ahead < packed.params.min_tokens:
        banned = tuple(sorted(sequence.stop_ids))
    known = sequence.known + ahead
    if packed.needs_history:
        return SampleRow(packed, known, sequence.peek(0, known), sequence.prompt, banned)
    return SampleRow(packed, known, None, 0, banned)


def _guided_rows(sequence: Sequence, chunk: Chunk, allowed: Allowed) -> list[SampleRow]:
    """The rows of a sequence with a guide: forced, or under a mask; or free."""
    rows = _rows(sequence, chunk)
    for place, row in enumerate(rows):
        found = allowed.get((sequence.number, place - 1))
        if isinstance(found, int):
            rows[place] = row._replace(forced_token=found)
        elif found is not None and not isinstance(found, StokerError):
            rows[place] = row._replace(allowed_mask=found)
    return rows


def _nothing_left(refused: int) -> str:
    tried = f"{refused} tokens were tried and complete what must not be" if refused else "all are banned"
    return f"{CONSTRAINT_FAULT} leaves no token that may come next: {tried}"


def _score_rows(sequence: Sequence, chunk: Chunk) -> list[SampleRow]:
    """The logits of position p are about the token at p + 1: it is forced, to learn its log-probability."""
    first = chunk.end - chunk.rows + 1
    following = sequence.ids[first : chunk.end + 1].tolist()
    return [
        SampleRow(sequence.packed, first + i, forced_token=token_id) for i, token_id in enumerate(following)
    ]
