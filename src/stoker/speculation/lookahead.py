"""Lookahead: the target's own samples behind wrong guesses are the next guesses, and n-grams for later.

After Fu et al., "Break the sequential dependency of LLM inference using lookahead decoding", 2024, in the
form of a chain. A draft is a window of guesses; verifying it gives the target's token at each of its
positions, also behind the first wrong one: the next Jacobi iterate of the window. A token of one iterate and
the token that the next gives one position later follow each other in the target's eyes: such diagonals are
the n-grams of the pool. Where the pool knows the last tokens it proposes, elsewhere the window goes on.
"""

from __future__ import annotations

from collections.abc import Sequence

from stoker.speculation.drafter import Opening, Proposal

SIZES = (3, 2, 1)  # tokens that find the next one in the pool, longest first: n-grams of up to 4
POOL_ENTRIES = 1024  # of each size and generation of a sequence: half a megabyte
WINDOW = 7  # most positions guessed: what goes beyond is hardly ever reached

_FILL = 0  # kinds: where nothing is known
_WINDOW = 1  # a guess of the last iterate, the draft's first token; + 1: one behind it
_POOL = 3  # by size as in SIZES: the first token; + 1: one behind it


class NgramPool:
    """What the target said after the last few tokens, the latest time it was seen to.

    Two generations of entries for each size: when the young one is full it becomes the old one, which is
    dropped. Nothing is deleted one by one, and what is said again stays.
    """

    def __init__(self) -> None:
        self._young: list[dict[tuple[int, ...], int]] = [{} for _ in SIZES]
        self._old: list[dict[tuple[int, ...], int]] = [{} for _ in SIZES]

    def add(self, ngram: Sequence[int]) -> None:
        """The last of these tokens followed the others."""
        count, token = len(ngram), ngram[-1]
        for which, size in enumerate(SIZES):
            if count <= size:
                continue
            entries = self._young[which]
            if len(entries) >= POOL_ENTRIES:
                self._old[which] = entries
                entries = self._young[which] = {}
            entries[tuple(ngram[-size - 1 : -1])] = token

    def find(self, tail: Sequence[int]) -> tuple[int, int] | None:
        """The token that followed the longest known end of `tail`, and which size that was."""
        for which, size in enumerate(SIZES):
            if len(tail) >= size:
                key = tuple(tail[-size:])
                token = self._young[which].get(key)
                if token is None:
                    token = self._old[which].get(key)
                if token is not None:
                    return token, which
        return None


class LookaheadDrafter:
    """One sequence's window and pool."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._pool = NgramPool()
        # Guesses by position, each with the tokens of the diagonal that ends in it.
        self._guesses: dict[int, tuple[int, ...]] = {}
        self._proposed: list[tuple[int, ...]] = []  # diagonals of the draft that is being verified

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`. What is known is also something that the target said, or would follow."""
        tokens = self._tokens
        first = len(tokens)
        tokens += token_ids
        first = max(first, len(tokens) - 2 * POOL_ENTRIES, 1)  # of a long prompt what the pool can hold
        for end in range(first + 1, len(tokens) + 1):
            self._pool.add(tokens[max(end - SIZES[0] - 1, 0) : end])

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`. Always proposes: without guesses there are no iterates."""
        known = len(self._tokens)
        tail = self._tokens[-SIZES[0] :]
        tokens: list[int] = []
        kinds: list[int] = []
        self._proposed = []
        for depth in range(min(most, WINDOW)):
            behind = min(depth, 1)
            found = self._pool.find(tail)
            diagonal = self._guesses.get(known + depth)
            if found is not None:
                token, which = found
                kinds.append(_POOL + 2 * which + behind)
                diagonal = (*tail[-SIZES[which] :], token)
            elif diagonal is not None:
                token = diagonal[-1]
                kinds.append(_WINDOW + behind)
            else:
                # As good as any: what was said a window ago. A model often comes back to its own words.
                token = self._tokens[max(known - WINDOW, 0) + depth % min(known, WINDOW)]
                kinds.append(_FILL)
                diagonal = (token,)
            self._proposed.append(diagonal)
            tokens.append(token)
            tail = [*tail[1 - SIZES[0] :], token]
        return Proposal(tokens, kinds)

    def observe(self, draft: Sequence[int], sampled: Sequence[int]) -> None:
        """See `Observer`."""
        known = len(self._tokens)
        self._guesses.clear()
        before: tuple[int, ...] = tuple(self._tokens[-SIZES[0] :])
        for i, token in enumerate(sampled):
            if token < 0:  # nothing could be sampled there
                break
            if i:
                proposed = self._proposed[i - 1] if i <= len(self._proposed) else ()
                # A grammar may have put another token in its place.
                before = proposed if proposed[-1:] == (draft[i - 1],) else (draft[i - 1],)
            diagonal = (*before[-SIZES[0] :], token)
            self._pool.add(diagonal)
            self._guesses[known + i] = diagonal

    def close(self) -> None:
        """Nothing is kept."""


class LookaheadDrafters:
    """A window and a pool for each sequence."""

    name = "lookahead"
    # Measured where every draft was verified, except for the windows': those turn out to be 0.02 to 0.15, but
    # without a first window there would never be a second.
    chances = (0.2, 0.2, 0.2, 0.65, 0.65, 0.5, 0.5, 0.33, 0.33)
    passes = 0
    feature_tokens = 0

    def open(self, opening: Opening) -> LookaheadDrafter:
        """See `Drafters`. Nothing is shared."""
        return LookaheadDrafter()
