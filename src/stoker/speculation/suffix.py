"""What followed when others came to say the same: n-grams over the answers of a namespace.

After Oliaro et al., "SuffixDecoding", 2024, with hashed n-grams of a few lengths in place of a suffix tree:
an insertion is an array assignment, memory is fixed, and what an old entry points to is compared before it
is believed, so that overwritten answers can do no harm.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator, Sequence

import numpy as np
import numpy.typing as npt

from stoker.speculation.drafter import Opening, Proposal

Int32 = npt.NDArray[np.int32]
Int64 = npt.NDArray[np.int64]

SIZES = (3, 5, 8)  # shortest first
POOL_TOKENS = 1 << 16  # of answers kept for each namespace: 256 kB, some hundred answers
_PLACES_BITS = 17  # of each size: 512 kB, twice the tokens, so that few n-grams share a place
MOST_POOLS = 16  # namespaces with a pool; the one that was not used for longest makes room
_SEPARATOR = -1  # between answers; no token
_MULTIPLIER = 0x9E3779B97F4A7C15  # odd: the golden ratio in 64 bits (Knuth, TAOCP 3, 6.4)
_MASK64 = (1 << 64) - 1


class AnswerPool:
    """The latest answers of one namespace, as one ring of tokens, and where each n-gram's rest stands."""

    def __init__(self) -> None:
        self._tokens: Int32 = np.full(POOL_TOKENS, _SEPARATOR, np.int32)
        self._places: list[Int32] = [np.zeros(1 << _PLACES_BITS, np.int32) for _ in SIZES]
        self._end = 0  # where the next answer goes

    def add(self, token_ids: Sequence[int]) -> None:
        """Remember an answer; of one longer than half the ring its end."""
        answer = np.array(token_ids[-(POOL_TOKENS // 2) :], np.int32)
        if self._end + len(answer) + 1 > POOL_TOKENS:
            self._end = 0
        start, self._end = self._end, self._end + len(answer) + 1
        self._tokens[start : self._end - 1] = answer
        self._tokens[self._end - 1] = _SEPARATOR
        for size, places, slots in zip(SIZES, self._places, _slots(answer), strict=True):
            places[slots] = np.arange(start + size, start + len(answer), dtype=np.int32)

    def find(self, tail: list[int], most: int) -> Proposal | None:
        """At most so many tokens that followed the longest end of `tail` that is known."""
        found: tuple[int, int] | None = None  # kind, place
        # A longer end may stand where a shorter one was overwritten, so all are looked up.
        for kind, slot in enumerate(_slots_of_ends(tail)):
            size = SIZES[kind]
            place = int(self._places[kind][slot])
            if place < size or self._tokens[place - size : place].tolist() != tail[-size:]:
                continue
            if self._tokens[place] != _SEPARATOR:
                found = kind, place
        if found is None:
            return None
        kind, place = found
        rest = self._tokens[place : place + most].tolist()
        if _SEPARATOR in rest:
            rest = rest[: rest.index(_SEPARATOR)]
        return Proposal(rest, [2 * kind] + [2 * kind + 1] * (len(rest) - 1))


def _slots(tokens: Int32) -> Iterator[Int64]:
    """For each size: of each n-gram that something follows, its place in the table: [len(tokens) - size], or
    none. Tokens are mixed in from an n-gram's last to its first, so that a size goes on from the smaller."""
    ends = len(tokens) - 1  # n-grams end at 0, 1, ... and are followed by a token
    mixed = np.zeros(max(ends, 0), np.uint64)
    with np.errstate(over="ignore"):
        for back in range(SIZES[-1]):
            mixed = mixed[1:] if back else mixed
            mixed = (mixed ^ tokens[: len(mixed)].astype(np.uint64)) * np.uint64(_MULTIPLIER)
            if back + 1 in SIZES:
                yield (mixed >> np.uint64(64 - _PLACES_BITS)).astype(np.int64)


def _slots_of_ends(tail: Sequence[int]) -> Iterator[int]:
    """For each size: the place of the last n-gram of `tail`, as far as it is as long."""
    mixed = 0
    for size, token in enumerate(reversed(tail), 1):
        mixed = ((mixed ^ token) * _MULTIPLIER) & _MASK64
        if size in SIZES:
            yield mixed >> (64 - _PLACES_BITS)


class SuffixDrafter:
    """One sequence: asks its namespace's pool, and adds its answer to it at the end."""

    def __init__(self, pool: AnswerPool, prompt_tokens: int) -> None:
        self._pool = pool
        self._prompt_tokens = prompt_tokens
        self._tokens: list[int] = []

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`."""
        self._tokens += token_ids

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`."""
        return self._pool.find(self._tokens[-SIZES[-1] :], most)

    def close(self) -> None:
        """The answer serves others from now on."""
        if len(self._tokens) - self._prompt_tokens > SIZES[0]:
            # With the end of its prompt, so that a like question finds the answer's first words.
            self._pool.add(self._tokens[max(self._prompt_tokens - SIZES[-1], 0) :])


class SuffixDrafters:
    """A pool of answers for each namespace."""

    name = "suffix"
    chances = (0.3, 0.55, 0.5, 0.7, 0.7, 0.85)  # by size, the first token and the others
    passes = 0
    feature_tokens = 0

    def __init__(self) -> None:
        self._pools: OrderedDict[bytes, AnswerPool] = OrderedDict()  # last used last

    def open(self, opening: Opening) -> SuffixDrafter:
        """See `Drafters`."""
        namespace = opening.namespace
        pool = self._pools.get(namespace)
        if pool is None:
            pool = self._pools[namespace] = AnswerPool()
            if len(self._pools) > MOST_POOLS:
                self._pools.popitem(last=False)
        self._pools.move_to_end(namespace)
        return SuffixDrafter(pool, opening.prompt_tokens)
