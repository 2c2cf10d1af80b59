"""KV blocks and who holds them: counts and ids only, no tensor is touched here.

A block is 16 consecutive KV slots of every layer. A sequence holds its blocks through a `BlockTable`;
forks share blocks and copy one only when they write into it (copy-on-write). The prefix cache (`radix.py`)
keeps blocks that no table holds any more, and gives them up when the pool runs short. The pool is the only
writer of references.

Conservation law: free + cached + held = total; a block's references = the tables it stands in, plus one if
the prefix cache keeps it. `check` tells.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from stoker.api.errors import CapacityError, EngineError
from stoker.kernels.program import BLOCK_TOKENS, Int32

Copy = tuple[int, int]  # (source block, destination block)

_FIRST_ROWS = 16  # rows and columns double when they run out: a chat needs few, 64 long contexts many
_FIRST_COLUMNS = 16


class BlockCache(Protocol):
    """Keeps blocks that nobody else may hold; `RadixTree` is one."""

    def evict(self, blocks: int) -> int:
        """Let go of up to `blocks` blocks that only the cache holds; how many were."""
        ...

    def forget(self, block: int) -> None:
        """Let go of a block that the cache and one table hold; the cache keeps nothing that builds on it."""
        ...

    def released(self, blocks: list[int]) -> None:
        """Told when the last table let go of these kept blocks: they may be evicted from now on."""
        ...


class BlockPool:
    """A fixed number of blocks, with ids from `first_block` on. Single-threaded: the engine's thread is the
    only caller.

    Ids that were never used are handed out lowest first, and only when no freed one is at hand. KV storage
    that the operating system backs on first touch therefore stays as small as the most that was ever held at
    once.
    """

    def __init__(self, num_blocks: int, *, first_block: int = 0) -> None:
        if num_blocks < 1:
            raise CapacityError(f"the KV cache has {num_blocks} blocks; allowed: at least 1")
        self.num_blocks = num_blocks
        self.first_block = first_block
        self.end_block = first_block + num_blocks
        self._freed: list[int] = []  # a stack: the most recently used is the likeliest to be in a CPU cache
        # By block id; its length is the first id that was never handed out.
        self._references: list[int] = [0] * first_block
        self._kept = bytearray(
            self.end_block
        )  # by block id: 1 if one of its references is the prefix cache's
        self._cached = 0  # blocks whose only reference is the prefix cache's
        self._cache: BlockCache | None = None
        self._tables: weakref.WeakSet[BlockTable] = weakref.WeakSet()
        # [rows, columns]: each open table's block ids, -1 beyond its end. Patched as tables change, so that a
        # step's batch is one gather instead of a rebuild. Row numbers are stable, the array is replaced by
        # growth.
        self._rows: Int32 = np.full((_FIRST_ROWS, _FIRST_COLUMNS), -1, np.int32)
        self._free_rows = list(range(_FIRST_ROWS - 1, -1, -1))

    @property
    def free(self) -> int:
        """Blocks nobody holds."""
        return self.end_block - len(self._references) + len(self._freed)

    @property
    def cached(self) -> int:
        """Blocks that only the prefix cache holds."""
        return self._cached

    @property
    def available(self) -> int:
        """Blocks that can be taken: free ones, and cached ones, which are evicted for it."""
        return self.free + self._cached

    @property
    def held(self) -> int:
        """Distinct blocks that stand in at least one table."""
        return self.touched - len(self._freed) - self._cached

    @property
    def touched(self) -> int:
        """Blocks that were ever handed out: what the KV storage occupies at most."""
        return len(self._references) - self.first_block

    def attach(self, cache: BlockCache) -> None:
        """Let `cache` keep blocks of this pool, from now on; a pool has one cache at most."""
        if self._cache is not None:
            raise EngineError("the block pool has a prefix cache already; allowed: one")
        self._cache = cache

    def open_table(self, shared: Sequence[int] = ()) -> BlockTable:
        """A new table that begins with `shared`, blocks that are held or kept. Close it, or leave it to its
        finaliser.
        """
        blocks = list(shared)
        self._share(blocks)
        table = BlockTable(self, blocks)
        self._tables.add(table)
        return table

    def only_kept(self, blocks: Sequence[int]) -> int:
        """How many of these blocks only the prefix cache holds: sharing them makes as many unavailable."""
        references, kept = self._references, self._kept
        return sum(1 for block in blocks if references[block] == 1 and kept[block])

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
        held = len(standing)
        standing.update(block for block, kept in enumerate(self._kept) if kept)
        counted = {block: count for block, count in enumerate(self._references) if count}
        if counted != dict(standing):
            raise EngineError(f"block references {counted} differ from the tables' {dict(standing)}")
        if len(set(self._freed)) != len(self._freed) or standing.keys() & set(self._freed):
            raise EngineError(f"free blocks {self._freed} repeat or are held")
        if len(standing) - held != self._cached or self.free + self._cached + held != self.num_blocks:
            raise EngineError(
                f"{self.free} free + {self._cached} cached + {held} held blocks are not all {self.num_blocks}"
            )

    # --- for the prefix cache ---

    def keep(self, block: int) -> None:
        """Give the cache a reference to a block that a table holds. Raises `EngineError` if it has one."""
        if self._kept[block]:
            raise EngineError(f"block {block} stands in the prefix cache already")
        self._kept[block] = 1
        self._references[block] += 1

    def let_go(self, block: int) -> None:
        """Take the cache's reference back; the block is free if it was the only one."""
        self._kept[block] = 0
        self._references[block] -= 1
        if not self._references[block]:
            self._cached -= 1
            self._freed.append(block)

    def is_only_kept(self, block: int) -> bool:
        """True if no table holds this block, which the cache keeps."""
        return self._references[block] == 1

    def adopt(self, table: BlockTable, index: int, block: int) -> None:
        """Put `block`, which the cache keeps, in the place of the table's own, which has the same bits."""
        own = table._blocks[index]
        self._share([block])
        table._blocks[index] = block
        self._write_row(table.row, index, [block])
        self._give_back([own])

    # --- for BlockTable, the only other writer of what is below ---

    def _make_free(self, blocks: int) -> None:
        """Evict until `blocks` are free; `CapacityError` if the cache cannot give as many."""
        short = blocks - self.free
        if short <= 0:
            return
        if short > self._cached or self._cache is None or self._cache.evict(short) < short:
            raise CapacityError(
                f"{blocks} KV blocks are needed, {self.available} of {self.num_blocks} are free"
            )

    def _share(self, blocks: list[int]) -> None:
        references, kept = self._references, self._kept
        for block in blocks:
            if references[block] == 1 and kept[block]:
                self._cached -= 1
            references[block] += 1

    def _take(self) -> int:
        if self._freed:
            block = self._freed.pop()
            self._references[block] = 1
            return block
        block = len(self._references)
        if block == self.end_block:
            raise CapacityError(f"all {self.num_blocks} KV blocks are held")
        self._references.append(1)
        return block

    def _give_back(self, blocks: list[int]) -> None:
        references, kept = self._references, self._kept
        released = []
        # From the end: the last ones freed are taken first, so the table's first blocks are reused first.
        for block in reversed(blocks):
            count = references[block] - 1
            references[block] = count
            if not count:
                self._freed.append(block)
            elif count == 1 and kept[block]:
                released.append(block)
        if released:
            self._cached += len(released)
            assert self._cache is not None  # it keeps the block
            self._cache.released(released)

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

    __slots__ = ("__weakref__", "_blocks", "_finalizer", "_pool", "cached_blocks", "cursor", "row")

    def __init__(self, pool: BlockPool, blocks: list[int]) -> None:
        self._pool = pool
        self._blocks = blocks
        # The prefix cache's notes: it keeps the first `cached_blocks` blocks, the last of them at `cursor`.
        self.cached_blocks = 0
        self.cursor: object = None
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
        """How many available blocks a write of positions [start, end) takes; start <= slots held.

        A shared block counts only if another table holds it: what only the prefix cache shares is copied
        while blocks are available, and else written in place, which the cache then forgets.
        """
        missing = max(-(-end // BLOCK_TOKENS) - len(self._blocks), 0)
        shared = self._copied_on_write(start, end)
        return missing + len(shared) - self._shared_with_cache(shared)

    def extend(self, start: int, end: int) -> tuple[Copy, ...]:
        """Make positions [start, end) writable; what is before start stays readable.

        Returns the copies that must be made, in order, before the write. Raises `CapacityError`, with nothing
        of the table changed, if the pool has too few available blocks.
        """
        self._must_be_open()
        pool, blocks = self._pool, self._blocks
        shared = self._copied_on_write(start, end)
        first = len(blocks)
        missing = max(-(-end // BLOCK_TOKENS) - first, 0)
        needed = missing + len(shared)
        if needed > pool.available:
            # Only what another table holds must be copied; the rest the cache forgets.
            in_place = min(self._shared_with_cache(shared), needed - pool.available)
            needed -= in_place
        else:
            in_place = 0
        pool._make_free(needed)
        if start // BLOCK_TOKENS < self.cached_blocks:
            self._leave_cache(start, end)
        for index in reversed(tuple(shared)):  # the cache forgets the end of a path first
            if in_place and self._shared_with_cache([index]):
                assert pool._cache is not None
                pool._cache.forget(blocks[index])
                shared.remove(index)
                in_place -= 1
        copies = []
        for index in shared:
            source = blocks[index]
            blocks[index] = pool._take()
            pool._give_back([source])  # another table, or the cache, still holds it
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
        return self._pool.open_table(self._blocks[:count])

    def take_place_of(self, other: BlockTable) -> None:
        """Go on for a table that this one was forked from, which is closed; what the prefix cache keeps of it
        must be shared."""
        kept = other.cached_blocks
        if self._blocks[:kept] != other._blocks[:kept]:
            raise EngineError(f"a table does not share the {kept} cached blocks of the one it replaces")
        self.cached_blocks, self.cursor = kept, other.cursor
        other.close()

    def close(self) -> None:
        """Give the blocks back. May be called more than once."""
        self._finalizer()

    def _copied_on_write(self, start: int, end: int) -> list[int]:
        """Indices of held blocks that a write of [start, end) touches and another table shares."""
        touched = range(start // BLOCK_TOKENS, min(len(self._blocks), -(-end // BLOCK_TOKENS)))
        references = self._pool._references
        return [index for index in touched if references[self._blocks[index]] > 1]

    def _shared_with_cache(self, indices: list[int]) -> int:
        """How many of these places have a block that this table and the cache hold, and nobody else."""
        references, kept = self._pool._references, self._pool._kept
        blocks = (self._blocks[index] for index in indices)
        return sum(1 for block in blocks if references[block] == 2 and kept[block])

    def _leave_cache(self, start: int, end: int) -> None:
        """A write into cached blocks: from there on the table's blocks are its own again.

        A table holds a path of the tree from its root, or eviction could not tell what is in use; so the
        write must reach to the end of the path.
        """
        if -(-end // BLOCK_TOKENS) < self.cached_blocks:
            raise EngineError(
                f"positions {start} to {end - 1} are written below {self.cached_blocks} cached blocks; "
                "allowed: a write to the end of them"
            )
        self.cached_blocks = 0
        self.cursor = None  # the next insert walks the path again

    def _must_be_open(self) -> None:
        if self.closed:
            raise EngineError("the block table is closed")
