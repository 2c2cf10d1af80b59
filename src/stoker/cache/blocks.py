"""KV blocks and who holds them: counts and ids only, no tensor is touched here.

A block is 16 consecutive KV slots of every layer. A sequence holds its blocks through a `BlockTable`;
forks share blocks and copy one only when they write into it (copy-on-write). The pool is the only writer.
Conservation law: free + held = total, a held block's references = the tables it stands in. `check` tells.
"""

from __future__ import annotations

import weakref
from collections import Counter

import numpy as np

from stoker.api.errors import CapacityError, EngineError
from stoker.kernels.program import BLOCK_TOKENS, Int32

Copy = tuple[int, int]  # (source block, destination block)

_FIRST_ROWS = 16  # rows and columns double when they run out: a chat needs few, 64 long contexts many
_FIRST_COLUMNS = 16


class BlockPool:
    """A fixed number of blocks. Single-threaded: the engine's thread is the only caller.

    Ids that were never used are handed out lowest first, and only when no freed one is at hand. KV storage
    that the operating system backs on first touch therefore stays as small as the most that was ever held at
    once.
    """

    def __init__(self, num_blocks: int) -> None:
        if num_blocks < 1:
            raise CapacityError(f"the KV cache has {num_blocks} blocks; allowed: at least 1")
        self.num_blocks = num_blocks
        self._freed: list[int] = []  # a stack: the most recently used is the likeliest to be in a CPU cache
        self._references: list[int] = []  # by block id; its length is the number of blocks ever touched
        self._tables: weakref.WeakSet[BlockTable] = weakref.WeakSet()
        # [rows, columns]: each open table's block ids, -1 beyond its end. Patched as tables change, so that a
        # step's batch is one gather instead of a rebuild. Row numbers are stable, the array is replaced by
        # growth.
        self._rows: Int32 = np.full((_FIRST_ROWS, _FIRST_COLUMNS), -1, np.int32)
        self._free_rows = list(range(_FIRST_ROWS - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks nobody holds."""
        return self.num_blocks - len(self._references) + len(self._freed)

    @property
    def held(self) -> int:
        """Distinct blocks that stand in at least one table."""
        return len(self._references) - len(self._freed)

    @property
    def touched(self) -> int:
        """Blocks that were ever handed out: what the KV storage occupies at most."""
        return len(self._references)

    def open_table(self) -> BlockTable:
        """A new table without blocks. Close it, or leave it to its finaliser."""
        table = BlockTable(self, [])
        self._tables.add(table)
        return table

    def batch_tables(self, rows: list[int], columns: int) -> Int32:
        """[len(rows), columns] block ids, -1 where a table is shorter; a copy, the caller's to keep."""
        return self._rows[rows, :columns] if columns <= self._rows.shape[1] else self._padded(rows, columns)

    def check(self) -> None:
        """Raise `EngineError` if a block is lost, doubly free, or its references are miscounted."""
        standing: Counter[int] = Counter()
        for table in self._tables:
            if table.closed:
                continue
            standing.update(table.block_ids)
            row = self._rows[table.row]
            length = len(table.block_ids)
            if row[:length].tolist() != list(table.block_ids) or (row[length:] != -1).any():
                raise EngineError(f"block table row {table.row} differs from its table {table.block_ids}")
        counted = {block: count for block, count in enumerate(self._references) if count}
        if counted != dict(standing):
            raise EngineError(f"block references {counted} differ from the tables' {dict(standing)}")
        if len(set(self._freed)) != len(self._freed) or standing.keys() & set(self._freed):
            raise EngineError(f"free blocks {self._freed} repeat or are held")
        if self.free + len(standing) != self.num_blocks:
            raise EngineError(f"{self.free} free + {len(standing)} held blocks are not all {self.num_blocks}")

    # --- for BlockTable, the only other writer of what is below ---

    def _take(self) -> int:
        if self._freed:
            block = self._freed.pop()
            self._references[block] = 1
            return block
        block = len(self._references)
        if block == self.num_blocks:
            raise CapacityError(f"all {self.num_blocks} KV blocks are held")
        self._references.append(1)
        return block

    def _give_back(self, blocks: list[int]) -> None:
        references = self._references
        # From the end: the last ones freed are taken first, so the table's first blocks are reused first.
        for block in reversed(blocks):
            references[block] -= 1
            if not references[block]:
                self._freed.append(block)

    def _take_row(self) -> int:
        if not self._free_rows:
            count = len(self._rows)
            self._rows = np.concatenate([self._rows, np.full_like(self._rows, -1)])
            self._free_rows.extend(range(2 * count - 1, count - 1, -1))
        return self._free_rows.pop()

    def _write_row(self, row: int, first: int, blocks: list[int]) -> None:
        end = first + len(blocks)
        while end > self._rows.shape[1]:
            self._rows = np.concatenate([self._rows, np.full_like(self._rows, -1)], axis=1)
        self._rows[row, first:end] = blocks

    def _release(self, blocks: list[int], row: int) -> None:
        """What a table does when it closes; must not refer to the table, which may be gone already."""
        self._rows[row, : len(blocks)] = -1
        self._free_rows.append(row)
        self._give_back(blocks)
        blocks.clear()

    def _padded(self, rows: list[int], columns: int) -> Int32:
        wide = np.full((len(rows), columns), -1, np.int32)
        wide[:, : self._rows.shape[1]] = self._rows[rows]
        return wide


class BlockTable:
    """A handle on the blocks of one sequence: position p lives in block_ids[p // 16], slot p % 16.

    Closes itself when it is garbage; `close` (or `with`) does so at once. Append-only while open: a block in
    it changes only when a write into a shared one makes a copy.
    """

    __slots__ = ("__weakref__", "_blocks", "_finalizer", "_pool", "row")

    def __init__(self, pool: BlockPool, blocks: list[int]) -> None:
        self._pool = pool
        self._blocks = blocks
        self.row = pool._take_row()  # where this table stands in BlockPool.batch_tables
        if blocks:
            pool._write_row(self.row, 0, blocks)
        self._finalizer = weakref.finalize(self, pool._release, blocks, self.row)
        self._finalizer.atexit = False  # the pool dies with the process

    def __enter__(self) -> BlockTable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __len__(self) -> int:
        return len(self._blocks)

    @property
    def slots(self) -> int:
        """KV slots of the blocks held; positions [0, slots) have a place."""
        return len(self._blocks) * BLOCK_TOKENS

    @property
    def block_ids(self) -> tuple[int, ...]:
        """The blocks in order of position."""
        return tuple(self._blocks)

    @property
    def closed(self) -> bool:
        """True once the blocks were given back."""
        return not self._finalizer.alive

    def is_writable(self, start: int, end: int) -> bool:
        """True if positions [start, end) have places that nobody shares: nothing to do before the write."""
        blocks, references = self._blocks, self._pool._references
        first, last = start // BLOCK_TOKENS, (end - 1) // BLOCK_TOKENS
        if last >= len(blocks):
            return False
        if first == last:  # a decode step, most of the time
            return references[blocks[first]] == 1
        return not self._copied_on_write(start, end)

    def blocks_needed(self, start: int, end: int) -> int:
        """How many free blocks a write of positions [start, end) takes; start <= slots held."""
        missing = -(-end // BLOCK_TOKENS) - len(self._blocks)
        return max(missing, 0) + len(self._copied_on_write(start, end))

    def extend(self, start: int, end: int) -> tuple[Copy, ...]:
        """Make positions [start, end) writable; what is before start stays readable.

        Returns the copies that must be made, in order, before the write. Raises `CapacityError`, with nothing
        changed, if the pool has too few free blocks.
        """
        self._must_be_open()
        pool, blocks = self._pool, self._blocks
        shared = self._copied_on_write(start, end)
        first = len(blocks)
        missing = max(-(-end // BLOCK_TOKENS) - first, 0)
        if missing + len(shared) > pool.free:
            raise CapacityError(
                f"{missing + len(shared)} KV blocks are needed, {pool.free} of {pool.num_blocks} are free"
            )
        copies = []
        for index in shared:
            source, blocks[index] = blocks[index], pool._take()
            pool._give_back([source])  # another table still holds it
            pool._write_row(self.row, index, [blocks[index]])
            copies.append((source, blocks[index]))
        if missing:
            blocks.extend([pool._take() for _ in range(missing)])
            pool._write_row(self.row, first, blocks[first:])
        return tuple(copies)

    def fork(self, tokens: int) -> BlockTable:
        """A table that shares the blocks of positions [0, tokens); takes no free block."""
        self._must_be_open()
        count = -(-tokens // BLOCK_TOKENS)
        if count > len(self._blocks):
            raise EngineError(
                f"a fork at {tokens} tokens needs {count} blocks; the table has {len(self._blocks)}"
            )
        shared = self._blocks[:count]
        for block in shared:
            self._pool._references[block] += 1
        table = BlockTable(self._pool, shared)
        self._pool._tables.add(table)
        return table

    def close(self) -> None:
        """Give the blocks back. May be called more than once."""
        self._finalizer()

    def _copied_on_write(self, start: int, end: int) -> list[int]:
        """Indices of held blocks that a write of [start, end) touches and another table shares."""
        touched = range(start // BLOCK_TOKENS, min(len(self._blocks), -(-end // BLOCK_TOKENS)))
        references = self._pool._references
        return [index for index in touched if references[self._blocks[index]] > 1]

    def _must_be_open(self) -> None:
        if self.closed:
            raise EngineError("the block table is closed")
