"""Drafts by Medusa heads: each guesses one of the next tokens from the target's last hidden state alone.

Cai et al., "Medusa", 2024. One pass brings all guesses, but none knows the one before it: later ones are less
often right than those of a head that goes on from its own (`eagle.py`), and cost nothing more to ask for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from stoker.kernels.program import Float32
from stoker.speculation.drafter import Opening, Proposal
from stoker.speculation.head_sampling import HeadSampler, Samples
from stoker.speculation.medusa_head import MedusaHead
from stoker.speculation.speculator import MOST_DRAFTED

_DEPTHS: Final = 4  # kinds by which head it is, the fourth standing for those after it too
# What an EAGLE head's confidence was worth from its own states, as a first guess for all depths; and what its
# alternatives were worth.
_CHANCES: Final = (0.1, 0.2, 0.3, 0.4, 0.55, 0.6, 0.75, 0.95)
_OF_ALTERNATIVES: Final = (0.05, 0.18, 0.25, 0.3, 0.3, 0.3, 0.3, 0.3)


class MedusaDrafters:
    """One set of heads for all streams."""

    name = "medusa"
    chances = (*(chance for chance in _CHANCES for _ in range(_DEPTHS)), *_OF_ALTERNATIVES)
    passes = 1
    # Only the state before the last known token is read; the states of a step's wrong guesses lie behind it.
    feature_tokens = MOST_DRAFTED + 1

    def __init__(self, head: MedusaHead, sampler: Samples) -> None:
        self.head = head
        self.sampler = HeadSampler(head.token_ids, head.vocabulary, sampler)

    def open(self, opening: Opening) -> MedusaDrafter:
        """See `Drafters`."""
        return MedusaDrafter(self, opening)


class MedusaDrafter:
    """One stream, of which only the tokens are kept."""

    def __init__(self, drafters: MedusaDrafters, opening: Opening) -> None:
        self._drafters = drafters
        self._opening = opening
        self._tokens: list[int] = []

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`."""
        self._tokens += token_ids

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`. None while the target's latest state is not there."""
        features, packed, known = self._opening.features, self._opening.packed, len(self._tokens)
        if features is None or packed is None or known < 2 or not features.first <= known - 2 < features.end:
            return None
        # The last known token's own state is computed in the step that verifies: the one before it says what
        # comes after that token, which is why head 0 guesses two positions ahead.
        head = self._drafters.head
        state = features.rows(known - 2, known - 1)[:, : head.width]
        guesses = head.guess(state, min(most, head.heads))

        def says(path: Sequence[int]) -> Float32 | None:
            return guesses[len(path)] if len(path) < len(guesses) else None

        return self._drafters.sampler.propose(says, packed, self._opening, self._tokens, most, _DEPTHS)

    def close(self) -> None:
        """See `Drafter`. Nothing is kept."""
