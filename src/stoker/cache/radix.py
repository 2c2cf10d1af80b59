"""The prefix cache: a radix tree over token ids whose nodes are full KV blocks.

It finds the longest known prefix of a prompt, exact to the token, keeps the blocks of finished sequences
while nobody needs the room, and evicts leaves first, the least recently used of them first, by a logical
clock. It knows token ids and block numbers; the bytes behind them only as payloads for a slower tier.

Invariant: a table that holds a block of the tree holds all blocks on the path to it. So a node that no table
holds has no descendant that one does, and everything the pool counts as cached can be evicted.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from heapq import heappop, heappush, nlargest

import numpy as np

from stoker.api.errors import EngineError
from stoker.api.stats import HotPrefix
from stoker.cache.blocks import BlockPool, BlockTable
from stoker.cache.node import (
    KEY_BYTES,
    NO_BLOCK,
    TOKEN_BYTES,
    Node,
    chained_digest,
    root_digest,
)
from stoker.cache.tiers import BlockStore, BlockTier
from stoker.kernels.program import BLOCK_TOKENS, Int32

SHOWN_TOKENS = 32  # of each end of a hot prefix: a line or two of text


@dataclass(frozen=True, slots=True)
class Match:
    """The longest cached prefix of some token ids, as it was when it was looked up."""

    blocks: tuple[int, ...]  # of positions [0, tokens); the last may go on differently after them
    tokens: int
    node: Node | None  # of the last block; none if nothing matched
    queried_tokens: int  # how many were looked up


class RadixTree:
    """The blocks of a pool that are worth keeping, by the token ids that lead to them.

    One namespace never sees another's blocks. Not for concurrent use, as the pool.
    """

    def __init__(
        self,
        pool: BlockPool,
        *,
        identity: bytes = b"",
        tier: BlockTier | None = None,
        store: BlockStore | None = None,
    ) -> None:
        """identity: what the bits of a block depend on besides token ids (model digest, KV type, version).
        tier: where evicted blocks go; store: where their bytes are, needed with a tier.
        """
        if tier is not None and store is None:
            raise EngineError("a tier needs a store; allowed: both or neither")
        self.pool = pool
        self.identity = identity
        self.queries_tokens = 0
        self.hits_tokens = 0
        self.disk_hits_tokens = 0
        self.evictions = 0
        self.changes = 0  # nodes added or removed: a match is as good as a new one while this stands still
        self._tier = tier
        self._store = store
        self._roots: dict[bytes, Node] = {}  # by namespace; those that have children
        self._nodes: dict[int, Node] = {}  # by block, in order of insertion: parents before children
        self._queue: list[tuple[int, int, Node]] = []  # heap of (last use, serial, node), see `evict`
        self._unsaved: dict[int, Node] = {}  # by serial: nodes that were hit, and not offered to the tier yet
        self._clock = 0
        self._serial = 0
        pool.attach(self)

    def __len__(self) -> int:
        return len(self._nodes)

    @property
    def fetches(self) -> bool:
        """Whether `fetch` may find anything: there is a tier."""
        return self._tier is not None

    def match(self, namespace: bytes, ids: Int32) -> Match:
        """The longest cached prefix of ids [tokens]. Counts nothing and keeps nothing from eviction."""
        data = _bytes_of(ids)
        node = self._roots.get(namespace)
        if node is None:
            return Match((), 0, None, len(ids))
        blocks = []
        for start in range(0, len(data) - KEY_BYTES + 1, KEY_BYTES):
            child = node.children.get(data[start : start + KEY_BYTES])
            if child is None:
                break
            node = child
            blocks.append(node.block)
        tokens = len(blocks) * BLOCK_TOKENS
        rest = data[tokens * TOKEN_BYTES : tokens * TOKEN_BYTES + KEY_BYTES]
        found = node.closest(rest) if rest else None
        if found is not None:
            node, shared = found
            blocks.append(node.block)
            tokens += shared
        return Match(tuple(blocks), tokens, node if blocks else None, len(ids))

    def touch(self, match: Match) -> None:
        """Make the matched path the most recently used, without counting a hit."""
        self._clock += 1
        for node in _path(match.node):
            node.last_use = self._clock

    def open(self, match: Match, *, count: bool = True) -> BlockTable:
        """A table that shares the matched blocks, which keeps them from eviction while it is open.

        `count` adds to the counters of queries and hits: not for a sequence that comes back after a
        preemption. Raises `EngineError` if the tree has dropped a matched block since.
        """
        node = match.node
        _must_be_current(match)
        if count:
            self.queries_tokens += match.queried_tokens
            self.hits_tokens += match.tokens
        table = self.pool.open_table(match.blocks)
        if node is None:
            return table
        self.touch(match)
        whole = _whole(match)
        if count and whole is not None:
            self._count_hit(whole)
        table.cached_blocks = match.tokens // BLOCK_TOKENS
        table.cursor = whole
        return table

    def blocks_needed(self, match: Match, tokens: int) -> int:
        """Available blocks that it takes to open the match and then extend the table to `tokens`."""
        missing = -(-tokens // BLOCK_TOKENS) - match.tokens // BLOCK_TOKENS
        return max(missing, 0) + self.pool.only_kept(match.blocks)

    def insert(self, namespace: bytes, ids: Int32, table: BlockTable, tokens: int) -> None:
        """Keep the full blocks of `table` up to position `tokens`, whose ids are ids [>= tokens].

        A call that adds no full block costs next to nothing. Where the tree has an equal block already, the
        table takes that one in the place of its own (the bits are the same), so that there is one of each. A
        table belongs to one namespace.
        """
        full, done = tokens // BLOCK_TOKENS, table.cached_blocks
        if full <= done:
            return
        data = _bytes_of(ids[done * BLOCK_TOKENS : full * BLOCK_TOKENS])
        if full > len(table) or len(data) != (full - done) * KEY_BYTES:
            raise EngineError(
                f"{tokens} tokens are to be kept; allowed: at most the {len(ids)} known, "
                f"and the {table.slots} slots held"
            )
        cursor = table.cursor
        node = cursor if isinstance(cursor, Node) else self._root(namespace)
        self._clock += 1
        for index, block in enumerate(table._blocks[done:full]):
            key = data[index * KEY_BYTES : (index + 1) * KEY_BYTES]
            child = node.children.get(key)
            if child is None:
                child = self._add(node, key, chained_digest(node.digest, key), block)
            elif child.block != block:
                self.pool.adopt(table, done + index, child.block)
            child.last_use = self._clock
            node = child
        table.cursor, table.cached_blocks = node, full

    def evict(self, blocks: int) -> int:
        """Drop up to `blocks` blocks that no table holds; how many were dropped.

        The queue has every evictable node, once, by the last use it had when it was queued: one that is in
        use again is dropped from it, one that was used since goes back with its new time.
        """
        evicted = 0
        while evicted < blocks and self._queue:
            last_use, _, node = heappop(self._queue)
            node.queued = False
            if node.block == NO_BLOCK or node.children or not self.pool.is_only_kept(node.block):
                continue
            if node.last_use != last_use:
                self._enqueue(node)
                continue
            if not self._save(node) and self._tier is not None:
                self._tier.touch(node.digest)  # what builds on it was written before it
            self._remove(node)
            evicted += 1
        self.evictions += evicted
        return evicted

    def fetch(self, namespace: bytes, ids: Int32, match: Match, limit_blocks: int) -> Match:
        """Continue a match of `ids` with up to `limit_blocks` blocks from the tier; the match as it is then.

        Writes their bytes into the store at once. So it must not be called while a plan has copies that are
        not made yet: their sources may be evicted here, and written over.
        """
        _must_be_current(match)
        tier, store = self._tier, self._store
        if tier is None or store is None:
            return match
        data, known = _bytes_of(ids), match.tokens // BLOCK_TOKENS
        last = min(len(data) // KEY_BYTES, known + limit_blocks)
        node = _whole(match)
        digest = root_digest(self.identity, namespace) if node is None else node.digest
        fetched = 0
        with self.pool.open_table(match.blocks[:known]) as table:  # keeps the path while blocks are taken
            for index in range(known, last):
                key = data[index * KEY_BYTES : (index + 1) * KEY_BYTES]
                digest = chained_digest(digest, key)
                if not tier.has(digest) or not self.pool.available:
                    break
                table.extend(index * BLOCK_TOKENS, (index + 1) * BLOCK_TOKENS)
                payload = tier.get(digest)
                if payload is None:
                    break
                block = table.block_ids[-1]
                store.write_block(block, payload)
                node = self._add(node or self._root(namespace), key, digest, block)
                fetched += 1
        self.disk_hits_tokens += fetched * BLOCK_TOKENS
        return self.match(namespace, ids) if fetched else match

    def spill(self, limit: int, *, everything: bool = False) -> int:
        """Write up to `limit` blocks to the tier, of prefixes that were read again; how many were written.

        With `everything` also of those that were not: when the engine closes. Between steps only. Prefixes
        before what builds on them, so that a part of the work is of use.
        """
        if everything and self._tier is not None:
            self._unsaved.update((node.serial, node) for node in self._nodes.values())
        written = 0
        last: Node | None = None
        while self._unsaved and written < limit:
            last = self._unsaved.pop(next(iter(self._unsaved)))
            written += self._save(last)
        if last is not None:
            self._touch(last)
        return written

    def hottest(self, count: int) -> tuple[HotPrefix, ...]:
        """The prefixes read most often: of a path with equal hits its end, longest first among equals.

        Of the namespace without a salt only: who gives one does not want to be seen by others.
        """
        ends = []
        reached = [self._roots[b""]] if b"" in self._roots else []
        while reached:
            node = reached.pop()
            read = [child for child in node.children.values() if child.hits]
            reached += read  # a node was read at least as often as what follows it
            if node.hits and all(child.hits < node.hits for child in read):
                ends.append(node)
        found = []
        for node in nlargest(count, ends, key=lambda node: (node.hits, -node.serial)):
            path = list(_path(node))
            keys = b"".join(step.key for step in reversed(path))
            ids = np.frombuffer(keys, "<i4").tolist()
            tokens = len(ids)
            head, tail = tuple(ids[:SHOWN_TOKENS]), tuple(ids[-SHOWN_TOKENS:])
            found.append(HotPrefix(tokens, node.hits, head, tail))
        return tuple(found)

    # --- for the pool: see `BlockCache` ---

    def released(self, blocks: list[int]) -> None:
        """The last table let go of these blocks: now is their last use, and a leaf can be evicted."""
        self._clock += 1
        for block in blocks:
            node = self._nodes[block]
            node.last_use = self._clock
            if not node.children:
                self._enqueue(node)

    def forget(self, block: int) -> None:
        """Drop a leaf that one table holds and is about to write into."""
        node = self._nodes[block]
        if node.children:
            raise EngineError(f"block {block} is to be forgotten, but others build on it")
        self._remove(node)
        self.evictions += 1

    def check(self) -> None:
        """Raise `EngineError` if nodes, blocks and the queue contradict each other."""
        seen: dict[int, Node] = {}
        for namespace, root in self._roots.items():
            if not root.children or root.digest != root_digest(self.identity, namespace):
                raise EngineError(f"the root of namespace {namespace!r} has no children, or another's digest")
            _check_below(root, seen)
        if seen != self._nodes:
            raise EngineError(f"{len(self._nodes)} nodes are listed, {len(seen)} are in the tree")
        for node in seen.values():
            evictable = not node.children and self.pool.is_only_kept(node.block)
            if evictable and not node.queued:
                raise EngineError(f"block {node.block} can be evicted, but is not in the queue")
        queued = [node for _, _, node in self._queue]
        if len({id(node) for node in queued}) != len(queued) or not all(node.queued for node in queued):
            raise EngineError("the queue has a node twice, or one that does not know it")

    # --- inside ---

    def _root(self, namespace: bytes) -> Node:
        root = self._roots.get(namespace)
        if root is None:
            root = Node(None, namespace, root_digest(self.identity, namespace), NO_BLOCK, 0)
            self._roots[namespace] = root
        return root

    def _add(self, parent: Node, key: bytes, digest: bytes, block: int) -> Node:
        self.pool.keep(block)
        self._serial += 1
        self.changes += 1
        node = Node(parent, key, digest, block, self._serial)
        parent.link(node)
        self._nodes[block] = node
        return node

    def _remove(self, node: Node) -> None:
        """Take a leaf out of the tree and give its block up."""
        parent, block = node.parent, node.block
        assert parent is not None
        self.changes += 1
        self._unsaved.pop(node.serial, None)
        del self._nodes[block]
        parent.unlink(node)
        self.pool.let_go(block)
        if parent.children:
            return
        if parent.parent is None:
            del self._roots[parent.key]
            return
        parent.last_use = max(parent.last_use, node.last_use)  # whoever used the leaf used the path to it
        if self.pool.is_only_kept(parent.block):
            self._enqueue(parent)

    def _save(self, node: Node) -> bool:
        """Write a node's bytes to the tier; false if it has them, or cannot."""
        tier, store = self._tier, self._store
        if tier is None or store is None or tier.has(node.digest):
            return False
        return tier.put(node.digest, store.read_block(node.block))

    def _touch(self, node: Node) -> None:
        """Keep a path in the tier. From its end: there, too, the end of a prefix gives way first."""
        if self._tier is not None:
            for step in _path(node):
                self._tier.touch(step.digest)

    def _enqueue(self, node: Node) -> None:
        if not node.queued:
            node.queued = True
            heappush(self._queue, (node.last_use, node.serial, node))

    def _count_hit(self, node: Node) -> None:
        fresh = []
        for step in _path(node):
            step.hits += 1
            if step.hits == 1:
                fresh.append(step)
        self._touch(node)
        if self._tier is not None:
            self._unsaved.update((step.serial, step) for step in reversed(fresh))


def _must_be_current(match: Match) -> None:
    if match.node is not None and match.node.block != match.blocks[-1]:
        raise EngineError(f"a match of {match.tokens} tokens is out of date; allowed: one of this moment")


def _path(node: Node | None) -> Iterator[Node]:
    """From the node up to the one below its root."""
    while node is not None and node.parent is not None:
        yield node
        node = node.parent


def _whole(match: Match) -> Node | None:
    """The node where the match's last whole block lies; none if it has no whole block."""
    node = match.node
    if node is not None and match.tokens % BLOCK_TOKENS:
        node = node.parent
    return None if node is None or node.parent is None else node


def _bytes_of(ids: Int32) -> bytes:
    if ids.dtype != np.int32:
        raise EngineError(f"token ids are {ids.dtype}; allowed: int32")
    return ids.tobytes()


def _check_below(root: Node, seen: dict[int, Node]) -> None:
    pending = [root]
    while pending:
        node = pending.pop()
        if node.keys != sorted(node.children):
            raise EngineError(f"the sorted keys of block {node.block}'s children are not theirs")
        for key, child in node.children.items():
            if child.key != key or child.parent is not node or len(key) != KEY_BYTES:
                raise EngineError(f"block {child.block} hangs below block {node.block} by mistake")
            if child.digest != chained_digest(node.digest, key) or child.block in seen:
                raise EngineError(f"block {child.block} has another prefix's digest, or stands there twice")
            seen[child.block] = child
            pending.append(child)
