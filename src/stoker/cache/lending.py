"""Blocks of the pool that drafters hold, for keys and values of their own models.

One memory cap holds for both: a block is the sequence's or the drafter's, never both. What is lent is given
back first when the pool runs short, least recently grown first: a draft can be done without.
"""

from __future__ import annotations

from collections.abc import Callable

from stoker.cache.blocks import BlockPool, BlockTable
from stoker.kernels.program import BLOCK_TOKENS, Int32

# Of all blocks so many stay for sequences to grow into before anything is lent. Without it what was just
# given back would be taken again at once, and its contents computed anew, step after step.
_KEPT_SHARE = 8  # an eighth


class Loan:
    """The blocks of one drafter's sequence. They may be taken back between steps, all of them at once."""

    __slots__ = ("_lender", "_number")

    def __init__(self, lender: BlockLender, number: int) -> None:
        self._lender = lender
        self._number = number

    @property
    def slots(self) -> int:
        """Positions [0, slots) have a place; 0 after the blocks were taken back."""
        return self._lender.slots(self._number)

    def extend(self, end: int) -> bool:
        """Make places for positions [0, end), if there are blocks to spare; whether there are places now."""
        return self._lender.extend(self._number, end)

    def batch_table(self, columns: int) -> Int32:
        """[1, columns] block ids, for a batch of this sequence alone."""
        return self._lender.batch_table(self._number, columns)

    def close(self) -> None:
        """Give the blocks back. May be called more than once."""
        self._lender.close(self._number)


class BlockLender:
    """Lends blocks of a pool. What it decides depends on the pool and on what it was asked before."""

    def __init__(self, pool: BlockPool, *, note: Callable[[int, int], None] | None = None) -> None:
        """`note` is told of each loan's number and new end in tokens, 0 when it is closed: with these,
        `repeat` makes the same loans again where no drafter is. Not of what `reclaim` takes back."""
        self._pool = pool
        self._note = note
        self._tables: dict[int, BlockTable] = {}  # loans that hold blocks, least recently grown first
        self._opened = 0

    @property
    def end_block(self) -> int:
        """Ids of blocks that a loan may hold are below it."""
        return self._pool.end_block

    @property
    def blocks(self) -> int:
        """Blocks that are lent."""
        return sum(map(len, self._tables.values()))

    def open(self) -> Loan:
        """A loan of no blocks yet."""
        self._opened += 1
        return Loan(self, self._opened)

    def slots(self, number: int) -> int:
        """Places of a loan."""
        table = self._tables.get(number)
        return 0 if table is None else table.slots

    def extend(self, number: int, end: int) -> bool:
        """See `Loan.extend`."""
        blocks = -(-(end - self.slots(number)) // BLOCK_TOKENS)
        if blocks <= 0:
            return True
        if blocks + self._pool.num_blocks // _KEPT_SHARE + 1 > self._pool.available:
            return False
        self.repeat(number, end)
        if self._note is not None:
            self._note(number, end)
        return True

    def close(self, number: int) -> None:
        """See `Loan.close`."""
        if number in self._tables:
            self.repeat(number, 0)
            if self._note is not None:
                self._note(number, 0)

    def repeat(self, number: int, end: int) -> None:
        """Do what `note` was told of."""
        table = self._tables.pop(number, None)
        if not end:
            if table is not None:
                table.close()
            return
        if table is None:
            table = self._pool.open_table()
        self._tables[number] = table
        table.extend(min(table.slots, end), end)

    def batch_table(self, number: int, columns: int) -> Int32:
        """See `Loan.batch_table`."""
        return self._pool.batch_tables([self._tables[number].row], columns)

    def reclaim(self, blocks: int) -> bool:
        """Take back so many blocks or a few more; none, and false, if fewer are lent."""
        if blocks > self.blocks:
            return False
        while blocks > 0:
            number = next(iter(self._tables))
            table = self._tables.pop(number)
            blocks -= len(table)
            table.close()
        return True
