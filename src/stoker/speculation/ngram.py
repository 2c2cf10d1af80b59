"""Prompt lookup: what followed the last few tokens when they came before in the same sequence.

Saxena, "Prompt lookup decoding", 2023; the longest of a few lengths that was seen before decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from stoker.speculation.drafter import Opening, Proposal

# Longest first. Measured on greedy answers of a small model: single tokens propose noise.
SIZES = (5, 3, 2)
# How far back an occurrence agrees says most about how it goes on; from so many tokens each is a kind.
_MATCHED = (2, 3, 5, 8, 16)
_MOST_MATCHED = _MATCHED[-1]
# Of a longer prompt only the end is looked up: entering a token takes a microsecond, while all streams wait.
_MOST_PROMPT = 16_384
_DEPTHS = (0, 1, 4)  # and so does how much of the draft was right; from so many tokens


class NgramDrafter:
    """One sequence's n-grams, each with the place that followed its latest occurrence."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in SIZES)

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`. A microsecond a token."""
        tokens = self._tokens
        tokens += token_ids
        first = max(len(tokens) - len(token_ids), len(tokens) - _MOST_PROMPT)
        # An n-gram is entered when what follows it is known, so that looking one up never finds itself.
        for size, places in zip(SIZES, self._places, strict=True):
            for end in range(max(first, size), len(tokens)):
                places[tuple(tokens[end - size : end])] = end

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`. A loop is proposed on and on."""
        tokens = self._tokens
        for size, places in zip(SIZES, self._places, strict=True):
            place = places.get(tuple(tokens[-size:]))
            if place is not None:
                found = tokens[place : place + most]
                period = len(tokens) - place
                while len(found) < most:
                    found += found[len(found) - period :][: most - len(found)] if period <= len(found) else []
                return Proposal(found, kinds_of(self._matched(place, size), len(found)))
        return None

    def _matched(self, place: int, matched: int) -> int:
        """How many tokens before `place` equal those at the end."""
        tokens, end = self._tokens, len(self._tokens)
        while (
            matched < min(place, _MOST_MATCHED) and tokens[place - matched - 1] == tokens[end - matched - 1]
        ):
            matched += 1
        return matched

    def close(self) -> None:
        """Nothing is kept."""


def kinds_of(matched: int, count: int) -> Sequence[int]:
    """Kinds of a draft of `count` tokens that follow an occurrence which agrees with `matched` tokens."""
    first = len(_DEPTHS) * (sum(matched >= least for least in _MATCHED) - 1)
    return ([first] + [first + 1] * 3 + [first + 2] * max(count - 4, 0))[:count]


class NgramDrafters:
    """Prompt lookup for each sequence."""

    name = "ngram"
    # By matched tokens, and for each by depth.
    chances = (0.3, 0.55, 0.7, 0.35, 0.6, 0.75, 0.5, 0.7, 0.8, 0.7, 0.8, 0.85, 0.85, 0.9, 0.95)
    passes = 0
    feature_tokens = 0

    def open(self, opening: Opening) -> NgramDrafter:
        """See `Drafters`. Nothing is shared."""
        return NgramDrafter()
