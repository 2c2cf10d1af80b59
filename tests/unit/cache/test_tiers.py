"""The tree above the disk: evicted and spilled prefixes come back after a restart, with the same bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from stoker.cache import BlockPool, BlockTable, RadixTree
from stoker.cache.disk import DiskTier
from stoker.kernels.program import Int32, UInt8

BLOCK_BYTES = 64


class Bytes:
    """Blocks whose bytes say which prefix was computed into them."""

    def __init__(self, num_blocks: int) -> None:
        self.blocks = np.zeros((num_blocks, BLOCK_BYTES), np.uint8)

    def read_block(self, block: int) -> UInt8:
        return self.blocks[block].copy()

    def write_block(self, block: int, payload: UInt8) -> None:
        self.blocks[block] = payload


class Served:
    """A process's life: a pool, its bytes, a tree, and the tier that outlives them."""

    def __init__(
        self, folder: Path, num_blocks: int = 8, *, slots: int = 100, identity: bytes = b"m"
    ) -> None:
        cap_bytes = 8192 + slots * (4096 + 80)
        self.tier = DiskTier(folder, identity=identity, block_bytes=BLOCK_BYTES, cap_bytes=cap_bytes)
        self.pool, self.bytes = BlockPool(num_blocks), Bytes(num_blocks)
        self.tree = RadixTree(self.pool, identity=identity, tier=self.tier, store=self.bytes)

    def ask(self, prompt: Int32, namespace: bytes = b"") -> int:
        """Serve a prompt and finish; tokens that were not computed."""
        tree = self.tree
        match = tree.fetch(namespace, prompt[:-1], tree.match(namespace, prompt[:-1]), limit_blocks=100)
        table = tree.open(match)
        for source, destination in table.extend(match.tokens, len(prompt)):
            self.bytes.blocks[destination] = self.bytes.blocks[source]
        for end in range(match.tokens // 16 * 16 + 16, len(prompt) + 1, 16):
            self.bytes.blocks[table.block_ids[end // 16 - 1]] = content(prompt[:end])
        tree.insert(namespace, prompt, table, len(prompt))
        self.check(prompt, table)
        table.close()
        self.pool.check()
        tree.check()
        return match.tokens

    def check(self, prompt: Int32, table: BlockTable) -> None:
        for end in range(16, len(prompt) + 1, 16):
            block = self.bytes.blocks[table.block_ids[end // 16 - 1]]
            np.testing.assert_array_equal(block, content(prompt[:end]))


def content(prefix: Int32) -> UInt8:
    """Bytes that depend on the whole prefix."""
    return np.random.default_rng(prefix).integers(0, 256, BLOCK_BYTES, dtype=np.uint8)


def prompt(*values: int) -> Int32:
    """Sixteen tokens of each."""
    return np.repeat(np.array(values, np.int32), 16)


def test_what_was_read_again_is_there_after_a_restart(tmp_path: Path) -> None:
    served = Served(tmp_path)
    assert served.ask(prompt(1, 2, 3)) == 0
    assert served.tree.spill(100) == 0  # nobody has asked for it again
    assert served.ask(prompt(1, 2, 4)) == 32
    assert served.tree.spill(1) == 1
    assert served.tree.spill(100) == 1
    assert served.tree.spill(100) == 0
    served.tier.close()  # as when it is killed: nothing else happens
    served = Served(tmp_path)
    assert served.ask(prompt(1, 2, 3)) == 32
    assert (served.tree.disk_hits_tokens, served.tree.hits_tokens) == (32, 32)
    assert served.tree.spill(100) == 0  # what came from disk is there


def test_all_is_there_after_an_orderly_end(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask(prompt(1, 2, 3))
    assert served.tree.spill(2, everything=True) == 2
    assert served.tree.spill(100, everything=True) == 1
    served.tier.close()
    assert Served(tmp_path).ask(prompt(1, 2, 3, 4)) == 48


def test_evicted_prefixes_come_back(tmp_path: Path) -> None:
    served = Served(tmp_path, num_blocks=5)
    served.ask(prompt(1, 2, 3, 4))
    served.ask(prompt(5, 6, 7, 8))  # evicts three blocks, the ends first
    assert len(served.tier) == 3
    assert served.ask(prompt(1, 2, 3, 9)) == 48
    assert served.tree.disk_hits_tokens == 32


def test_a_whole_block_on_disk_beats_a_part_of_one_in_memory(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask(prompt(1, 2))
    served.tree.evict(1)
    other = prompt(1, 2)
    other[20:] = 9
    served.ask(other)
    assert served.tree.match(b"", prompt(1, 2)).tokens == 20
    assert served.ask(prompt(1, 2, 3)) == 32


def test_a_namespace_and_an_identity_keep_to_themselves_on_disk(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask(prompt(1, 2), b"salt")
    served.tree.spill(100, everything=True)
    served.tier.close()
    served = Served(tmp_path)
    assert served.ask(prompt(1, 2, 3), b"") == 0
    assert served.ask(prompt(1, 2, 3), b"salt") == 32
    served.tier.close()
    assert Served(tmp_path, identity=b"other").ask(prompt(1, 2, 3), b"salt") == 0


def test_a_corrupt_block_ends_the_match_there(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask(prompt(1, 2, 3))
    served.tree.spill(100, everything=True)
    served.tier.close()
    data = bytearray(served.tier.path.read_bytes())
    data[data.index(content(prompt(1, 2)).tobytes()) + 5] ^= 128
    served.tier.path.write_bytes(data)
    served = Served(tmp_path)
    assert served.ask(prompt(1, 2, 3, 4)) == 16
    assert served.tier.rejected == 1
    assert served.pool.held == 0
    assert served.ask(prompt(1, 2, 3, 4)) == 63


def test_fetching_stops_at_its_limit_and_at_the_pools(tmp_path: Path) -> None:
    served = Served(tmp_path)
    served.ask(prompt(1, 2, 3, 4, 5, 6))
    served.tree.spill(100, everything=True)
    served.tier.close()
    served = Served(tmp_path, num_blocks=4)
    ids = prompt(1, 2, 3, 4, 5, 6)
    match = served.tree.fetch(b"", ids, served.tree.match(b"", ids), limit_blocks=2)
    assert match.tokens == 32
    held = served.tree.open(match)
    match = served.tree.fetch(b"", ids, match, limit_blocks=0)
    assert match.tokens == 32
    match = served.tree.fetch(b"", ids, match, limit_blocks=100)
    assert match.tokens == 64
    assert served.pool.free == 0
    held.close()
    served.pool.check()
    served.tree.check()


def test_a_tier_smaller_than_the_pool(tmp_path: Path) -> None:
    served = Served(tmp_path, num_blocks=6, slots=3)
    for first in range(20):
        served.ask(prompt(first % 5, 1, 2, 3))
    assert len(served.tier) == 3
    assert served.tier.rejected == 0


def test_a_prefix_in_use_outlives_any_number_of_cold_ones_on_disk(tmp_path: Path) -> None:
    """It is read from memory, while what others leave behind is written to the tier again and again."""
    served = Served(tmp_path, num_blocks=12, slots=6)
    for user in range(40):
        served.ask(prompt(1, 2, 3, 100 + user, 200 + user))
        served.tree.spill(100)
    assert served.tree.evictions > 60
    served.tier.close()  # as when it is killed
    served = Served(tmp_path, num_blocks=12, slots=6)
    assert served.ask(prompt(1, 2, 3, 4)) == 48


def test_on_disk_too_the_end_of_a_prefix_gives_way_first(tmp_path: Path) -> None:
    served = Served(tmp_path, slots=5)
    for last in (5, 6):
        served.ask(prompt(1, 2, 3, 4, last))
        served.tree.spill(100)
    assert len(served.tier) == 4
    for cold in (7, 8):
        served.ask(prompt(cold))
    served.tree.spill(100, everything=True)  # their ends, and two of another prefix: some must go
    served.tier.close()
    served = Served(tmp_path, slots=5)
    assert served.ask(prompt(1, 2, 3, 4, 9)) >= 16
