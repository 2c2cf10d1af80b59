"""Prompt lookup: what followed the last few tokens when they came before in the same sequence.

Saxena, "Prompt lookup decoding", 2023; the longest of a few lengths that was seen before decides.
"""

from __future__ import annotations

from collections.abc import Sequence

from stoker.speculation.drafter import Opening, Proposal

# Longest first. Measured on greedy answers of a small model: longer ones than 5 are found by these as well,
# as their own ends, and single tokens propose noise.
SIZES = (5, 3, 2)


class NgramDrafter:
    """One sequence's n-grams, each with the place that followed its latest occurrence."""

    def __init__(self) -> None:
        self._tokens: list[int] = []
        self._places: tuple[dict[tuple[int, ...], int], ...] = tuple({} for _ in SIZES)

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`. A microsecond a token."""
        tokens = self._tokens
        first = len(tokens)
        tokens += token_ids
        # An n-gram is entered when what follows it is known, so that looking one up never finds itself.
        for size, places in zip(SIZES, self._places, strict=True):
            for end in range(max(first, size), len(tokens)):
                places[tuple(tokens[end - size : end])] = end

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`. A loop is proposed on and on."""
        tokens = self._tokens
        for kind, (size, places) in enumerate(zip(SIZES, self._places, strict=True)):
            place = places.get(tuple(tokens[-size:]))
            if place is not None:
                found = tokens[place : place + most]
                period = len(tokens) - place
                while len(found) < most:
                    found += found[len(found) - period :][: most - len(found)] if period <= len(found) else []
                return Proposal(found, kind)
        return None

    def close(self) -> None:
        """Nothing is kept."""


class NgramDrafters:
    """Prompt lookup for each sequence."""

    name = "ngram"
    kinds = len(SIZES)

    def open(self, opening: Opening) -> NgramDrafter:
        """See `Drafters`. Nothing is shared."""
        return NgramDrafter()
