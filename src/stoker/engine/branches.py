"""Block tables for the branches of a draft.

Where a key lies decides the bits of what attends to it, so a guess beside the draft is no masked token among
others: its branch has a block table, in which its ancestors and itself stand at their own positions. The
blocks before the one in which it begins are the stem's; that one and what follows are its own. What a step
computes itself of the first one comes by the batch's `kv_copies`, what was there before by a copied block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from stoker.cache.blocks import BlockPool, BlockTable, Copy
from stoker.engine.plan import Branch, Chunk
from stoker.engine.sequence import Sequence
from stoker.kernels.program import BLOCK_TOKENS
from stoker.speculation.draft import Draft


@dataclass(frozen=True, slots=True)
class Grown:
    """A chunk with the branches that there was room for, and what must be copied before it is run."""

    chunk: Chunk
    copies: tuple[Copy, ...]


def grow(sequence: Sequence, chunk: Chunk, draft: Draft, room: int, pool: BlockPool) -> Grown:
    """Open tables for the draft's branches, as far as `room` tokens, available blocks and the sequence's
    limit allow. The chunk has the draft's first path already; if that was cut for want of room, there is
    none for branches. A branch that is left out is missed by those that begin in it.
    """
    stem, *others = draft.paths()
    most_depth = sequence.limit - sequence.known - 1  # guesses that may follow one another
    if len(chunk.draft) < min(len(stem.guesses), most_depth):
        return Grown(chunk, ())
    numbers = {-1: -1, **{guess: i for i, guess in enumerate(stem.guesses[: len(chunk.draft)])}}
    count = len(chunk.draft)
    copies: list[Copy] = []
    for parent, guesses in others:
        if parent not in numbers:
            continue
        depth = draft.depth(parent) + 1
        guesses = guesses[: max(min(room, most_depth - depth), 0)]
        owner = chunk.branch_of(numbers[parent])
        table = sequence.table if owner < 0 else sequence.branch_tables[owner]
        assert table is not None
        begin = chunk.start + 1 + depth
        opened = _open(table, chunk.start, begin, begin + len(guesses), pool) if guesses else None
        if opened is None:
            continue
        sequence.branch_tables += (opened[0],)
        copies += opened[1]
        branch = Branch(numbers[parent], tuple(draft.tokens[guess] for guess in guesses))
        chunk = chunk._replace(branches=(*chunk.branches, branch))
        numbers.update((guess, count + i) for i, guess in enumerate(guesses))
        count += len(guesses)
        room -= len(guesses)
    return Grown(chunk, tuple(copies))


def _open(
    stem: BlockTable, start: int, begin: int, end: int, pool: BlockPool
) -> tuple[BlockTable, tuple[Copy, ...]] | None:
    """A table for positions [begin, end) behind the stem's, in a step that computes from `start` on; none if
    too few blocks are available."""
    own = begin // BLOCK_TOKENS * BLOCK_TOKENS
    if -(-end // BLOCK_TOKENS) - begin // BLOCK_TOKENS > pool.available:
        return None
    # A block with nothing from before the step is not copied: its slots are filled one by one.
    table = stem.fork(begin if own < start else own)
    return table, table.extend(begin if own < start else own, end)


def branch_starts(chunk: Chunk) -> list[int]:
    """The first position of each branch."""
    guesses = chunk.guesses
    return [chunk.start + 2 + guesses.depth(branch.parent) for branch in chunk.branches]


def copied(chunk: Chunk) -> Iterator[tuple[int, int]]:
    """For each branch, by number, the ancestors that this step computes and that belong into its first own
    block: (number of the guess or -1, branch)."""
    guesses = chunk.guesses
    for number, (branch, begin) in enumerate(zip(chunk.branches, branch_starts(chunk), strict=True)):
        first = max(begin // BLOCK_TOKENS * BLOCK_TOKENS, chunk.start)
        ancestor = branch.parent
        for _ in range(first, begin):
            yield ancestor, number
            ancestor = guesses.parent(ancestor) if ancestor >= 0 else -1
