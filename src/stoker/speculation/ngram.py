"""Prompt lookup: what followed the last few tokens when they came before in the same sequence.

Saxena, "Prompt lookup decoding", 2023; the longest of a few lengths that was seen before decides. Where an
answer deviated from what it copies, it goes on behind the deviation.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stoker.speculation.copying import COPIED, Copying
from stoker.speculation.drafter import Following, Opening, Proposal

# Longest first. Measured on greedy answers of a small model: single tokens propose noise.
SIZES = (COPIED, 3, 2)
# How far back an occurrence agrees says most about how it goes on; from so many tokens each is a kind.
_MATCHED = (2, 3, 5, 8, 16)
_MOST_MATCHED = _MATCHED[-1]
# Of a longer prompt only the end is looked up: entering a token takes a microsecond, while all streams wait.
_MOST_PROMPT = 16_384
_DEPTHS = (0, 1, 4)  # and so does how much of the draft was right; from so many tokens
_DEVIATED: Final = len(_MATCHED) * len(_DEPTHS)  # kinds behind a deviation begin here
_MOST_AGREED = 2  # tokens behind a deviation; from so many on they are one kind
_KINDS: Final = _DEVIATED + (_MOST_AGREED + 1) * len(_DEPTHS)
# What follows another drafter's guesses that nothing confirms is mostly wrong soon.
_MOST_BEYOND = 6


class NgramDrafter:
    """One sequence's n-grams, each with the place that followed its latest occurrence."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in SIZES)
        self._copying = Copying()  # after its last `COPIED` equal tokens

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`. A microsecond a token."""
        tokens, copying = self._tokens, self._copying
        tokens += token_ids
        first = max(len(tokens) - len(token_ids), len(tokens) - _MOST_PROMPT)
        # An n-gram is entered when what follows it is known, so that looking one up never finds itself.
        for size, places in zip(SIZES, self._places, strict=True):
            for end in range(max(first, size), len(tokens)):
                ngram = tuple(tokens[end - size : end])
                if size == COPIED:
                    place = places.get(ngram)
                    if place is not None and (copying.place is None or copying.deviated):
                        copying.start(place, COPIED)
                    if copying.place is not None:
                        copying.read(tokens, tokens[end])
                places[ngram] = end

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`. A loop is proposed on and on."""
        copying, known = self._copying, len(self._tokens)
        found = self._look_up(known)
        if copying.deviated and copying.agreed and (found is None or found[1] < COPIED):
            return self._go_on(copying, most)
        if found is None:
            return None
        place, matched = found
        return self._from(place, known, _kinds_of(_matched_kind(matched), most))

    def follow(self, path: Sequence[int], most: int) -> Following | None:
        """See `Follower`."""
        tokens, copying = self._tokens, self._copying
        if copying.deviated and tokens[copying.place or 0] == path[0]:
            return Following(0, self._go_on(copying, most))
        known = len(tokens)
        tokens += path
        try:
            for depth, token in enumerate(path):
                found = self._look_up(known + depth)
                if found is not None and tokens[found[0]] == token:
                    kinds = _kinds_of(_matched_kind(found[1]), most)
                    return Following(depth, self._from(found[0], known + depth, kinds))
            found = self._look_up(len(tokens))
            if found is None:
                return None
            kinds = _kinds_of(_KINDS + _matched_kind(found[1]), min(most, _MOST_BEYOND))
            return Following(len(path), self._from(found[0], len(tokens), kinds))
        finally:
            del tokens[known:]

    def close(self) -> None:
        """Nothing is kept."""

    def _go_on(self, copying: Copying, most: int) -> Proposal:
        """Behind a deviation."""
        kind = _DEVIATED + len(_DEPTHS) * min(copying.agreed, _MOST_AGREED)
        return self._from(copying.place or 0, len(self._tokens), _kinds_of(kind, most))

    def _from(self, place: int, end: int, kinds: Sequence[int]) -> Proposal:
        """What stands from this place on, and from `end` on the same again; a token for each kind."""
        most = len(kinds)
        found = self._tokens[place : min(place + most, end)]
        while len(found) < most:
            found += found[: most - len(found)]
        return Proposal(found, kinds)

    def _look_up(self, end: int) -> tuple[int, int] | None:
        """The place behind the latest occurrence of the most tokens before `end` that were seen before, and
        how many before it equal those before `end`."""
        tokens, places = self._tokens, self._places
        found = None
        # Shortest first: mostly it was not seen, and then no longer one was.
        for size, of_size in zip(reversed(SIZES), reversed(places), strict=True):
            place = of_size.get(tuple(tokens[end - size : end]))
            if place is None:
                break
            found = place, size
        return found and (found[0], self._matched(*found, end))

    def _matched(self, place: int, matched: int, end: int) -> int:
        """How many tokens before `place` equal those before `end`, of which so many do."""
        tokens = self._tokens
        while (
            matched < min(place, _MOST_MATCHED) and tokens[place - matched - 1] == tokens[end - matched - 1]
        ):
            matched += 1
        return matched


def _matched_kind(matched: int) -> int:
    """First kind of a draft that follows an occurrence which agrees with so many tokens."""
    return len(_DEPTHS) * (sum(matched >= least for least in _MATCHED) - 1)


def _kinds_of(first: int, count: int) -> Sequence[int]:
    """Kinds of a draft of `count` tokens, by depth."""
    return ([first] + [first + 1] * 3 + [first + 2] * max(count - 4, 0))[:count]


class NgramDrafters:
    """Prompt lookup for each sequence."""

    name = "ngram"
    # By matched tokens, and for each by depth; then behind a deviation, by tokens that agreed since.
    chances = (
        *(0.3, 0.55, 0.7, 0.35, 0.6, 0.75, 0.5, 0.7, 0.8, 0.7, 0.8, 0.85, 0.85, 0.9, 0.95),
        *(0.3, 0.8, 0.85, 0.85, 0.85, 0.9, 0.95, 0.85, 0.9),
    )
    # Measured with SmolLM2's head: what it confirms is nearly certain.
    followed_chances = (
        *(0.85, 0.7, 0.8, 0.88, 0.75, 0.85, 0.92, 0.85, 0.9, 0.95, 0.9, 0.9, 0.98, 0.95, 0.95),
        *(0.9, 0.85, 0.9, 0.97, 0.85, 0.9, 0.98, 0.85, 0.9),
        *chances,
    )
    passes = 0
    feature_tokens = 0

    def open(self, opening: Opening) -> NgramDrafter:
        """See `Drafters`. Nothing is shared."""
        return NgramDrafter()
