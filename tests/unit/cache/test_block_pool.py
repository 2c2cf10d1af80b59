"""The block pool, one situation at a time; tests/property/test_blocks.py mixes them."""

from __future__ import annotations

import gc

import numpy as np
import pytest

from stoker.api.errors import CapacityError, EngineError
from stoker.cache import BlockPool


def test_lowest_ids_first_and_freed_ones_before_new_ones() -> None:
    pool = BlockPool(100)
    first, second = pool.open_table(), pool.open_table()
    first.extend(0, 33)
    second.extend(0, 1)
    assert first.block_ids == (0, 1, 2)
    assert second.block_ids == (3,)
    first.close()
    third = pool.open_table()
    third.extend(0, 16 * 4)
    assert third.block_ids == (0, 1, 2, 4)
    assert pool.touched == 5
    pool.check()


def test_a_pool_of_blocks_in_the_middle() -> None:
    pool = BlockPool(3, first_block=40)
    assert (pool.free, pool.held, pool.touched, pool.end_block) == (3, 0, 0, 43)
    table = pool.open_table()
    table.extend(0, 48)
    assert table.block_ids == (40, 41, 42)
    assert (pool.free, pool.held, pool.touched) == (0, 3, 3)
    pool.check()
    with pytest.raises(CapacityError, match="1 KV blocks are needed, 0 of 3 are free"):
        pool.open_table().extend(0, 1)
    table.close()
    assert (pool.free, pool.held, pool.touched) == (3, 0, 3)
    pool.check()


def test_a_shared_tail_is_copied_by_whoever_writes_first() -> None:
    pool = BlockPool(10)
    leader = pool.open_table()
    leader.extend(0, 20)  # blocks 0 and 1; 4 slots of block 1 are used
    fork = leader.fork(20)
    assert pool.held == 2
    assert fork.extend(20, 21) == ((1, 2),)
    assert fork.block_ids == (0, 2)
    assert leader.extend(20, 21) == ()  # alone again: it writes in place
    assert leader.block_ids == (0, 1)
    pool.check()


def test_full_shared_blocks_are_never_copied() -> None:
    pool = BlockPool(10)
    leader = pool.open_table()
    leader.extend(0, 32)
    fork = leader.fork(32)
    assert fork.extend(32, 50) == ()
    assert fork.block_ids == (0, 1, 2, 3)


def test_a_fork_of_nothing_is_empty() -> None:
    pool = BlockPool(2)
    assert pool.open_table().fork(0).block_ids == ()


def test_too_few_blocks_change_nothing() -> None:
    pool = BlockPool(3)
    table = pool.open_table()
    table.extend(0, 16)
    with pytest.raises(CapacityError, match="3 KV blocks are needed, 2 of 3 are free"):
        table.extend(16, 64)
    assert table.block_ids == (0,)
    assert pool.free == 2
    pool.check()


def test_a_lost_table_gives_its_blocks_back() -> None:
    pool = BlockPool(4)
    table = pool.open_table()
    table.extend(0, 64)
    assert pool.free == 0
    del table
    gc.collect()
    assert pool.free == 4
    pool.check()


def test_a_table_is_a_context() -> None:
    pool = BlockPool(4)
    with pool.open_table() as table:
        table.extend(0, 64)
        assert pool.free == 0
    assert pool.free == 4
    assert table.closed
    with pytest.raises(EngineError, match="closed"):
        table.extend(0, 1)


def test_batch_tables_grow_in_both_directions_and_end_in_minus_one() -> None:
    pool = BlockPool(2000)
    tables = [pool.open_table() for _ in range(40)]
    for number, table in enumerate(tables):
        table.extend(0, 16 * (number + 1))
    rows = [table.row for table in reversed(tables)]
    array = pool.batch_tables(rows, 50)
    assert array.shape == (40, 50)
    assert array.dtype == np.int32
    assert array.flags.c_contiguous
    for line, table in zip(array.tolist(), reversed(tables), strict=True):
        assert tuple(line[: len(table)]) == table.block_ids
        assert set(line[len(table) :]) <= {-1}
    assert pool.batch_tables(rows, 100).shape == (40, 100)
    pool.check()


def test_check_finds_a_lost_block() -> None:
    pool = BlockPool(4)
    table = pool.open_table()
    table.extend(0, 64)
    table._blocks.pop()  # as a bug would
    with pytest.raises(EngineError):
        pool.check()


def test_a_pool_without_blocks_is_refused() -> None:
    with pytest.raises(CapacityError, match="0 blocks"):
        BlockPool(0)
