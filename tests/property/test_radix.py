"""The radix tree against a dictionary of prefixes: insert, match, open, compute, fork, close, evict, fetch.

The dictionary has every cached prefix of whole blocks and the time of its last use, and finds by looking at
all of them what the tree finds by structure: the longest common prefix, and the leaf to evict next.

Beside it, a storage has in each slot of each block the tokens up to that position, as a real block has what
was computed from them. So a block that is shared, adopted, copied, evicted or read from the tier by mistake
shows as the wrong content in some table or node.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from stoker.api.errors import CapacityError
from stoker.cache import BlockPool, BlockTable, RadixTree
from stoker.cache.node import Node
from stoker.kernels.program import BLOCK_TOKENS, Int32, UInt8

Ids = tuple[int, ...]
Prefix = tuple[bytes, Ids]  # namespace and token ids
Slot = tuple[bytes, Ids] | None

LONGEST = 120
NAMESPACES = st.sampled_from([b"", b"salt"])
NUMBERS = st.integers(0, 63)  # which of several, modulo how many there are
RUNS = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 30)), min_size=1, max_size=4)  # (token, times)


class Storage:
    """Slots of blocks as lists; their bytes are a number under which the list can be had again."""

    def __init__(self, num_blocks: int) -> None:
        self.slots: list[list[Slot]] = [[None] * BLOCK_TOKENS for _ in range(num_blocks)]
        self._read: list[list[Slot]] = []

    def read_block(self, block: int) -> UInt8:
        self._read.append(list(self.slots[block]))
        return np.array([len(self._read) - 1]).view(np.uint8)

    def write_block(self, block: int, payload: UInt8) -> None:
        self.slots[block] = list(self._read[payload.view(np.int64).item()])


class ForgetfulTier:
    """Keeps the last few payloads; now and then one that it claims to have is gone."""

    def __init__(self, slots: int) -> None:
        self.slots = slots
        self.payloads: dict[bytes, UInt8] = {}
        self.gone: set[bytes] = set()

    def has(self, digest: bytes) -> bool:
        return digest in self.payloads

    def touch(self, digest: bytes) -> None:
        if digest in self.payloads:
            self.payloads[digest] = self.payloads.pop(digest)

    def put(self, digest: bytes, payload: UInt8) -> bool:
        if len(self.payloads) == self.slots:
            del self.payloads[next(iter(self.payloads))]
        self.payloads[digest] = payload
        return True

    def get(self, digest: bytes) -> UInt8 | None:
        return None if digest in self.gone else self.payloads.get(digest)


@dataclass(eq=False)
class Stream:
    """A sequence as the scheduler has it."""

    namespace: bytes
    ids: Ids
    table: BlockTable
    computed: int


def _array(ids: Ids) -> Int32:
    return np.array(ids, np.int32)


def _common(one: Ids, other: Ids) -> int:
    return next(
        (i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other))
    )


def table_prefixes(stream: Stream) -> list[Prefix]:
    """Of each full block that was computed, the prefix that ends with it."""
    ends = range(BLOCK_TOKENS, stream.computed + 1, BLOCK_TOKENS)
    return [(stream.namespace, stream.ids[:end]) for end in ends]


class TreeAndDictionary(RuleBasedStateMachine):
    """Streams come and go over one pool; `last_use` is the dictionary."""

    @initialize(num_blocks=st.integers(1, 20), tier_slots=st.none() | st.integers(1, 12))
    def start(self, num_blocks: int, tier_slots: int | None) -> None:
        self.pool = BlockPool(num_blocks)
        self.storage = Storage(num_blocks)
        self.tier = None if tier_slots is None else ForgetfulTier(tier_slots)
        self.tree = RadixTree(self.pool, identity=b"model", tier=self.tier, store=self.storage)
        self.last_use: dict[Prefix, int] = {}
        self.now = 0
        self.open: list[Stream] = []
        self.known: list[Ids] = [()]  # to be continued differently

    # --- what the tests know of the tree ---

    def nodes(self) -> dict[Prefix, Node]:
        found: dict[Prefix, Node] = {}
        pending = [((namespace, ()), root) for namespace, root in self.tree._roots.items()]
        while pending:
            (namespace, ids), node = pending.pop()
            for child in node.children.values():
                longer = (namespace, ids + tuple(np.frombuffer(child.key, np.int32).tolist()))
                found[longer] = child
                pending.append((longer, child))
        return found

    def blocks(self) -> dict[Prefix, int]:
        return {prefix: node.block for prefix, node in self.nodes().items()}

    def held(self) -> Counter[int]:
        return Counter(block for stream in self.open for block in stream.table.block_ids)

    def touch(self, prefixes: list[Prefix]) -> None:
        self.now += 1
        for prefix in prefixes:
            self.last_use[prefix] = self.now

    def evict_one(self, held: Counter[int], blocks: dict[Prefix, int]) -> Prefix:
        """Of the leaves that nobody holds the least recently used; its parent inherits its time."""
        parents = {(namespace, ids[:-BLOCK_TOKENS]) for namespace, ids in self.last_use}
        leaves = [p for p in self.last_use if p not in parents and not held[blocks[p]]]
        victim = min(leaves, key=lambda prefix: self.last_use[prefix])
        time = self.last_use.pop(victim)
        parent = (victim[0], victim[1][:-BLOCK_TOKENS])
        if parent in self.last_use:
            self.last_use[parent] = max(self.last_use[parent], time)
        return victim

    def note_released(self, before: Counter[int], blocks: dict[Prefix, int]) -> None:
        """The last use of a cached block is when its last table lets go."""
        after = self.held()
        released = [p for p in self.last_use if before[blocks[p]] and not after[blocks[p]]]
        if released:
            self.touch(released)

    def content(self, namespace: bytes, ids: Ids) -> list[Slot]:
        return [(namespace, ids[: position + 1]) for position in range(len(ids))]

    # --- what is done to it ---

    @rule(namespace=NAMESPACES, base=NUMBERS, cut=st.floats(0, 1), runs=RUNS, whole=st.booleans())
    def arrive(
        self, namespace: bytes, base: int, cut: float, runs: list[tuple[int, int]], whole: bool
    ) -> None:
        """A prompt that leaves an earlier one somewhere; all of it is computed if `whole`."""
        earlier = self.known[base % len(self.known)]
        more = [token for token, times in runs for _ in range(times)]
        ids = (*earlier[: int(len(earlier) * cut + 0.5)], *more)[:LONGEST]
        self.known.append(ids)
        match = self.tree.match(namespace, _array(ids[:-1]))
        longest = max((_common(ids[:-1], p) for space, p in self.last_use if space == namespace), default=0)
        assert match.tokens == longest
        assert len(match.blocks) == -(-longest // BLOCK_TOKENS)
        needed, available = self.tree.blocks_needed(match, len(ids)), self.pool.available
        hits, queries = self.tree.hits_tokens, self.tree.queries_tokens
        table = self.tree.open(match)
        assert (self.tree.hits_tokens, self.tree.queries_tokens) == (hits + longest, queries + len(ids) - 1)
        assert table.block_ids == match.blocks
        # A partly matching block is counted as copied; it is written in place if nothing else is available.
        copied = 1 if longest % BLOCK_TOKENS and not table.is_writable(longest, len(ids)) else 0
        missing = -(-len(ids) // BLOCK_TOKENS) - len(match.blocks)
        assert needed == available - self.pool.available + missing + copied
        stream = Stream(namespace, ids, table, longest)
        self.open.append(stream)
        if match.blocks:
            of_block = {node.block: prefix for prefix, node in self.nodes().items()}
            self.touch([of_block[block] for block in match.blocks])
        if whole:
            self.advance(stream, len(ids), keep=True)

    @precondition(lambda self: self.open)
    @rule(pick=NUMBERS, tokens=st.integers(1, LONGEST), keep=st.booleans())
    def compute(self, pick: int, tokens: int, keep: bool) -> None:
        self.advance(self.open[pick % len(self.open)], tokens, keep=keep)

    def advance(self, stream: Stream, tokens: int, *, keep: bool) -> None:
        """The next chunk of a stream; with `keep` its full blocks go to the tree."""
        table, start, end = stream.table, stream.computed, min(len(stream.ids), stream.computed + tokens)
        if start == end:
            return
        free, available, before = self.pool.free, self.pool.available, table.block_ids
        blocks, held = self.blocks(), self.held()
        touched = before[start // BLOCK_TOKENS : -(-end // BLOCK_TOKENS)]
        shared = [block for block in touched if held[block] > 1 or block in blocks.values()]
        only_cached = [block for block in shared if held[block] == 1]
        most = max(-(-end // BLOCK_TOKENS) - len(before), 0) + len(shared)
        assert table.blocks_needed(start, end) == most - len(only_cached)
        if most - len(only_cached) > available:
            with pytest.raises(CapacityError):
                table.extend(start, end)
            assert table.block_ids == before
            assert self.blocks() == blocks
            return
        copies = table.extend(start, end)
        removed = blocks.keys() - self.blocks().keys()
        forgotten = {prefix for prefix in removed if held[blocks[prefix]]}
        assert {blocks[prefix] for prefix in forgotten} <= set(only_cached)
        assert len(forgotten) == max(most - available, 0)
        evictions = max(most - len(forgotten) - free, 0)
        assert {self.evict_one(held, blocks) for _ in range(evictions)} == removed - forgotten
        for prefix in forgotten:
            del self.last_use[prefix]
        self.note_released(held, blocks)
        self.write(stream, copies, end)
        if keep:
            self.insert_blocks(stream)

    def write(self, stream: Stream, copies: tuple[tuple[int, int], ...], end: int) -> None:
        """What a step does to the bytes: copies first, then the new positions."""
        for source, destination in copies:
            self.storage.slots[destination] = list(self.storage.slots[source])
        for position in range(stream.computed, end):
            block = stream.table.block_ids[position // BLOCK_TOKENS]
            self.storage.slots[block][position % BLOCK_TOKENS] = (
                stream.namespace,
                stream.ids[: position + 1],
            )
        stream.computed = end

    @precondition(lambda self: self.open)
    @rule(pick=NUMBERS)
    def insert(self, pick: int) -> None:
        self.insert_blocks(self.open[pick % len(self.open)])

    def insert_blocks(self, stream: Stream) -> None:
        """The full blocks to the tree; equal ones that it has already come back."""
        table, known = stream.table, table_prefixes(stream)
        fresh = known[table.cached_blocks :]
        equal = {prefix: block for prefix, block in self.blocks().items() if prefix in fresh}
        self.tree.insert(stream.namespace, _array(stream.ids), table, stream.computed)
        for prefix, block in equal.items():  # adopted
            assert table.block_ids[len(prefix[1]) // BLOCK_TOKENS - 1] == block
        self.touch(fresh)
        assert table.cached_blocks == len(known)

    @precondition(lambda self: self.open)
    @rule(pick=NUMBERS, share=st.floats(0, 1))
    def fork(self, pick: int, share: float) -> None:
        stream = self.open[pick % len(self.open)]
        tokens = int(stream.computed * share)
        self.open.append(Stream(stream.namespace, stream.ids, stream.table.fork(tokens), tokens))

    @precondition(lambda self: self.open)
    @rule(pick=NUMBERS)
    def close(self, pick: int) -> None:
        stream = self.open[pick % len(self.open)]
        held, blocks = self.held(), self.blocks()
        stream.table.close()
        self.open.remove(stream)
        self.note_released(held, blocks)

    @rule(count=st.integers(1, 6))
    def evict(self, count: int) -> None:
        blocks, held, cached = self.blocks(), self.held(), self.pool.cached
        assert self.tree.evict(count) == min(count, cached)
        removed = blocks.keys() - self.blocks().keys()
        assert {self.evict_one(held, blocks) for _ in range(min(count, cached))} == removed

    @rule(namespace=NAMESPACES, base=NUMBERS, limit=st.integers(0, 5))
    def fetch(self, namespace: bytes, base: int, limit: int) -> None:
        ids = self.known[base % len(self.known)]
        match = self.tree.match(namespace, _array(ids))
        found = self.tree.fetch(namespace, _array(ids), match, limit)
        assert match.tokens <= found.tokens <= max(match.tokens, (match.tokens // 16 + limit) * 16)
        for index, block in enumerate(found.blocks[: found.tokens // BLOCK_TOKENS]):
            assert self.storage.slots[block] == self.content(namespace, ids)[16 * index : 16 * index + 16]
        # What was evicted for it, even in vain, and when each was used last: as the tree says.
        self.last_use = {prefix: node.last_use for prefix, node in self.nodes().items()}
        self.now = self.tree._clock

    @rule(limit=st.integers(0, 5), everything=st.booleans())
    def spill(self, limit: int, everything: bool) -> None:
        blocks = self.blocks()
        assert self.tree.spill(limit, everything=everything) <= limit
        assert self.blocks() == blocks
        if self.tier is not None and limit == 5 and everything:
            self.tier.gone = set(list(self.tier.payloads)[::3])

    # --- what holds after each ---

    @invariant()
    def everybody_reads_what_was_computed(self) -> None:
        for stream in self.open:
            slots = [slot for block in stream.table.block_ids for slot in self.storage.slots[block]]
            assert slots[: stream.computed] == self.content(stream.namespace, stream.ids[: stream.computed])
        for (namespace, ids), block in self.blocks().items():
            assert self.storage.slots[block] == self.content(namespace, ids)[-BLOCK_TOKENS:]

    @invariant()
    def conserves_blocks(self) -> None:
        self.pool.check()
        self.tree.check()
        held, blocks = set(self.held()), self.blocks()
        assert blocks.keys() == self.last_use.keys()
        assert len(set(blocks.values())) == len(blocks) == len(self.tree)
        assert self.pool.held == len(held)
        assert self.pool.cached == len(set(blocks.values()) - held)
        assert self.pool.free + self.pool.cached + self.pool.held == self.pool.num_blocks


TestTreeAndDictionary = TreeAndDictionary.TestCase
TestTreeAndDictionary.settings = settings(max_examples=100, stateful_step_count=50, deadline=None)
