"""The radix tree, one situation at a time; tests/property/test_radix.py mixes them."""

from __future__ import annotations

import numpy as np
import pytest

from stoker.api.errors import CapacityError, EngineError
from stoker.cache import BlockPool, BlockTable, RadixTree
from stoker.cache.node import Node, common_tokens
from stoker.kernels.program import Int32, UInt8


def ids(*runs: tuple[int, int]) -> Int32:
    """(token id, how often), one after another."""
    return np.array([token for token, times in runs for _ in range(times)], np.int32)


def computed(tree: RadixTree, prompt: Int32, namespace: bytes = b"") -> BlockTable:
    """A table as a sequence has it once all of its prompt is computed."""
    match = tree.match(namespace, prompt[:-1])
    table = tree.open(match)
    table.extend(match.tokens, len(prompt))
    tree.insert(namespace, prompt, table, len(prompt))
    return table


def check(tree: RadixTree) -> None:
    tree.pool.check()
    tree.check()


def test_a_finished_prompt_stays_and_is_found_again() -> None:
    pool = BlockPool(10)
    tree = RadixTree(pool)
    prompt = ids((1, 16), (2, 16), (3, 5))
    with computed(tree, prompt) as table:
        first = table.block_ids
        assert (pool.free, pool.cached, pool.held) == (7, 0, 3)
    assert (pool.free, pool.cached, pool.held, pool.available) == (8, 2, 0, 10)
    match = tree.match(b"", prompt)
    assert (match.blocks, match.tokens) == (first[:2], 32)
    with tree.open(match) as table:
        assert (pool.free, pool.cached, pool.held) == (8, 0, 2)
        assert table.extend(32, 37) == ()
        assert not table.is_writable(0, 1)
    check(tree)


def test_a_partly_matching_block_is_copied_before_it_is_written() -> None:
    tree = RadixTree(BlockPool(10))
    computed(tree, ids((1, 16), (2, 16))).close()
    match = tree.match(b"", ids((1, 16), (2, 5), (9, 30)))
    assert (match.blocks, match.tokens) == ((0, 1), 21)
    table = tree.open(match)
    assert table.extend(21, 40) == ((1, 2),)
    assert table.block_ids[0] == 0
    assert len(tree) == 2
    check(tree)


def test_the_closest_of_many_neighbours_matches() -> None:
    tree = RadixTree(BlockPool(40))
    for second in (0, 5, 255, 256, 65536):  # bytes sort otherwise than numbers
        for third in (0, 7):
            computed(tree, ids((1, 3), (second, 4), (third, 9))).close()
    for second in (0, 5, 255, 256, 65536):
        assert tree.match(b"", ids((1, 3), (second, 4), (3, 9))).tokens == 7
        assert tree.match(b"", ids((1, 3), (second, 4), (7, 4), (3, 9))).tokens == 11
        assert tree.match(b"", ids((1, 3), (second, 2))).tokens == 5
    assert tree.match(b"", ids((1, 3), (6, 4))).tokens == 3
    assert tree.match(b"", ids((2, 16))).tokens == 0


def test_namespaces_do_not_see_each_other() -> None:
    tree = RadixTree(BlockPool(10))
    computed(tree, ids((1, 32)), b"one").close()
    assert tree.match(b"two", ids((1, 32))).tokens == 0
    assert tree.match(b"", ids((1, 32))).tokens == 0
    assert tree.match(b"one", ids((1, 32))).tokens == 32
    computed(tree, ids((1, 32)), b"two").close()
    assert tree.pool.cached == 4
    assert tree.evict(10) == 4
    assert tree.match(b"one", ids((1, 32))).node is None
    check(tree)


def test_digests_name_prefix_identity_and_namespace() -> None:
    def digest(identity: bytes, namespace: bytes, prompt: Int32) -> bytes:
        tree = RadixTree(BlockPool(4), identity=identity)
        table = computed(tree, prompt, namespace)
        assert isinstance(table.cursor, Node)
        return table.cursor.digest

    prompt = ids((1, 16), (2, 16))
    same = digest(b"model", b"salt", prompt)
    assert same == digest(b"model", b"salt", prompt)
    others = [
        digest(b"model", b"", prompt),
        digest(b"models", b"alt", prompt),
        digest(b"", b"modelsalt", prompt),
        digest(b"model", b"salt", ids((3, 16), (2, 16))),
        digest(b"model", b"salt", ids((2, 16), (1, 16))),
    ]
    assert len({same, *others}) == 6


def test_who_computed_the_same_at_the_same_time_takes_the_first_ones_block() -> None:
    pool = BlockPool(10)
    tree = RadixTree(pool)
    prompt = ids((1, 16), (2, 16), (3, 3))
    one, other = pool.open_table(), pool.open_table()
    one.extend(0, 35)
    other.extend(0, 35)
    assert pool.held == 6
    tree.insert(b"", prompt, one, 16)
    tree.insert(b"", prompt, other, 35)
    tree.insert(b"", prompt, one, 35)
    assert one.block_ids[:2] == other.block_ids[:2]
    assert one.block_ids[2] != other.block_ids[2]
    assert pool.held == 4
    np.testing.assert_array_equal(pool.batch_tables([one.row], 3)[0], one.block_ids)
    check(tree)


def test_least_recently_used_leaves_go_first() -> None:
    pool = BlockPool(100)
    tree = RadixTree(pool)
    a, b, c = (ids((1, 16), (second, 16), (second, 16)) for second in (2, 3, 4))
    for prompt in (a, b, c):
        computed(tree, prompt).close()
    tree.touch(tree.match(b"", a))

    def known() -> list[int]:
        return [tree.match(b"", prompt).tokens // 16 for prompt in (a, b, c)]

    assert known() == [3, 3, 3]
    assert tree.evict(1) == 1
    assert known() == [3, 2, 3]
    assert tree.evict(1) == 1  # the path to a leaf was used when the leaf was
    assert known() == [3, 1, 3]
    held = tree.open(tree.match(b"", c))
    assert tree.evict(3) == 2  # c and the block that all share are held
    assert known() == [1, 1, 3]
    held.close()
    assert tree.evict(10) == 3
    assert known() == [0, 0, 0]
    assert (tree.evictions, pool.free, len(tree)) == (7, 100, 0)
    check(tree)


def test_taking_blocks_evicts_what_is_needed_and_no_more() -> None:
    pool = BlockPool(6)
    tree = RadixTree(pool)
    computed(tree, ids((1, 64))).close()
    with pool.open_table() as table:
        table.extend(0, 64)  # two are free, two are evicted
        assert (pool.free, pool.cached, tree.evictions) == (0, 2, 2)
        with pytest.raises(CapacityError, match="3 KV blocks are needed, 2 of 6 are free"):
            table.extend(64, 112)
        assert tree.evictions == 2
    check(tree)


def test_a_lone_sequence_that_needs_every_block_writes_in_place() -> None:
    pool = BlockPool(3)
    tree = RadixTree(pool)
    computed(tree, ids((1, 48))).close()
    match = tree.match(b"", ids((1, 40)))
    table = tree.open(match)
    assert pool.available == 0
    assert table.blocks_needed(40, 48) == 0
    assert table.extend(40, 48) == ()  # nothing is left to copy it to
    assert len(tree) == 2
    check(tree)
    tree.insert(b"", ids((1, 40), (2, 8)), table, 48)
    assert len(tree) == 3
    check(tree)


def test_computing_the_last_known_token_again_adopts_the_block_again() -> None:
    pool = BlockPool(8)
    tree = RadixTree(pool)
    prompt = ids((1, 32))
    computed(tree, prompt).close()
    table = tree.open(tree.match(b"", prompt))
    shared = table.block_ids
    assert len(table.extend(31, 32)) == 1
    assert table.block_ids != shared
    tree.insert(b"", prompt, table, 32)
    assert table.block_ids == shared
    assert pool.held == 2
    check(tree)


def test_a_write_into_the_middle_of_the_path_is_refused() -> None:
    tree = RadixTree(BlockPool(8))
    table = computed(tree, ids((1, 48)))
    with pytest.raises(EngineError, match="positions 0 to 15 are written below 3 cached blocks"):
        table.extend(0, 16)


def test_a_match_that_was_evicted_is_refused() -> None:
    tree = RadixTree(BlockPool(8))
    computed(tree, ids((1, 32))).close()
    match = tree.match(b"", ids((1, 32)))
    tree.evict(1)
    with pytest.raises(EngineError, match="a match of 32 tokens is out of date"):
        tree.open(match)


def test_inserting_more_than_there_is_is_refused() -> None:
    pool = BlockPool(8)
    tree = RadixTree(pool)
    table = pool.open_table()
    table.extend(0, 32)
    with pytest.raises(EngineError, match="48 tokens are to be kept"):
        tree.insert(b"", ids((1, 48)), table, 48)
    with pytest.raises(EngineError, match="32 tokens are to be kept; allowed: at most the 20 known"):
        tree.insert(b"", ids((1, 20)), table, 32)
    with pytest.raises(EngineError, match="int64"):
        tree.match(b"", np.zeros(32, np.int64))
    assert len(tree) == 0


def test_hits_are_counted_once_for_each_request() -> None:
    tree = RadixTree(BlockPool(20))
    system = ids((1, 32))
    for user in (2, 3, 4):
        computed(tree, np.concatenate([system, ids((user, 17))])).close()
    assert (tree.queries_tokens, tree.hits_tokens) == (3 * 48, 2 * 32)
    tree.open(tree.match(b"", system), count=False).close()
    assert tree.hits_tokens == 64
    (hottest,) = tree.hottest(1)
    assert (hottest.tokens, hottest.hits, hottest.head_ids) == (32, 2, (1,) * 32)
    computed(tree, np.concatenate([system, ids((2, 17))])).close()
    assert [(hot.tokens, hot.hits) for hot in tree.hottest(5)] == [(32, 3), (48, 1)]
    assert tree.hottest(5)[1].tail_ids == (1,) * 16 + (2,) * 16


def test_blocks_needed_counts_what_opening_takes_from_the_available() -> None:
    pool = BlockPool(10)
    tree = RadixTree(pool)
    computed(tree, ids((1, 48))).close()
    match = tree.match(b"", ids((1, 40)))
    assert tree.blocks_needed(match, 60) == 3 + 2  # two idle whole ones and a part; its copy, and one more
    with tree.open(match):
        assert tree.blocks_needed(match, 60) == 2


def test_common_tokens() -> None:
    one = np.array([1, 2, 3], np.int32).tobytes()
    for other, shared in (([1, 2, 3], 3), ([1, 2, 4], 2), ([1, 2], 2), ([257, 2], 0), ([], 0), ([1, 258], 1)):
        assert common_tokens(one, np.array(other, np.int32).tobytes()) == shared


def test_a_tier_needs_a_store() -> None:
    class Nothing:
        def has(self, digest: bytes) -> bool:
            return False

        def touch(self, digest: bytes) -> None:
            pass

        def put(self, digest: bytes, payload: UInt8) -> bool:
            return False

        def get(self, digest: bytes) -> UInt8 | None:
            return None

    with pytest.raises(EngineError, match="a tier needs a store"):
        RadixTree(BlockPool(1), tier=Nothing())
    with pytest.raises(EngineError, match="has a prefix cache already"):
        RadixTree(RadixTree(BlockPool(1)).pool)
