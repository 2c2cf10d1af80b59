"""One node of the radix tree: a full block's token ids, and what hangs below it."""

from __future__ import annotations

from bisect import bisect_left, insort
from hashlib import sha256

from stoker.kernels.program import BLOCK_TOKENS

TOKEN_BYTES = 4  # of an int32 token id
KEY_BYTES = BLOCK_TOKENS * TOKEN_BYTES
NO_BLOCK = -1


class Node:
    """A path from the root to here is a prefix of whole blocks. The tree is the only writer."""

    __slots__ = (
        "block", "children", "digest", "hits", "key", "keys", "last_use", "parent", "queued", "serial"
    )  # fmt: skip

    def __init__(self, parent: Node | None, key: bytes, digest: bytes, block: int, serial: int) -> None:
        self.parent = parent  # none of a root, and of a node that left the tree
        self.key = key  # its token ids, int32; of a root its namespace
        self.digest = digest  # SHA-256 over the parent's digest and the key: names the whole prefix
        self.block = block  # NO_BLOCK of a root, and of a node that left the tree
        self.serial = serial  # order of insertion; unique
        self.children: dict[bytes, Node] = {}
        self.keys: list[bytes] = []  # the children's, sorted: the longest common prefix is at a neighbour
        self.hits = 0  # tables opened on a path through the whole block
        self.last_use = 0  # the tree's logical clock
        self.queued = False  # stands in the tree's queue of nodes to evict

    def link(self, child: Node) -> None:
        """Hang a new child below."""
        self.children[child.key] = child
        insort(self.keys, child.key)

    def unlink(self, child: Node) -> None:
        """Take a childless child out, for good."""
        del self.children[child.key]
        del self.keys[bisect_left(self.keys, child.key)]
        child.parent = None
        child.block = NO_BLOCK

    def closest(self, key: bytes) -> tuple[Node, int] | None:
        """The child that begins with most of `key`'s token ids, and how many; none if all begin otherwise.

        In byte order no key lies between `key` and one that shares its longest prefix, but others that do.
        """
        place = bisect_left(self.keys, key)
        best, most = None, 0
        for neighbour in self.keys[max(place - 1, 0) : place + 1]:
            shared = common_tokens(neighbour, key)
            if shared > most:
                best, most = neighbour, shared
        return None if best is None else (self.children[best], most)


def common_tokens(one: bytes, other: bytes) -> int:
    """Token ids that two keys have in common from their beginning; they may differ in length."""
    length = min(len(one), len(other))
    difference = int.from_bytes(one[:length], "big") ^ int.from_bytes(other[:length], "big")
    return (length - (difference.bit_length() + 7) // 8) // TOKEN_BYTES


def chained_digest(parent_digest: bytes, key: bytes) -> bytes:
    """The digest of a block after its prefix: 32 bytes."""
    return sha256(parent_digest + key).digest()


def root_digest(identity: bytes, namespace: bytes) -> bytes:
    """Where a namespace's chain begins; lengths keep two pairs that join to the same bytes apart."""
    return sha256(len(identity).to_bytes(8, "little") + identity + namespace).digest()
