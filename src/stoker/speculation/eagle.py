"""Drafts by an EAGLE head: the target's hidden states, gone on with by a layer of their own.

Li et al., "EAGLE", 2024, and "EAGLE-2", 2024 (the head's confidence tells how often it is right). A drafted
token is sampled as the target would sample it, with the same noise: so drafts are also right at a
temperature.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np

from stoker.kernels.program import Float32, Int32
from stoker.speculation.drafter import Opening, Proposal
from stoker.speculation.head import DraftHead
from stoker.speculation.head_sampling import HeadSampler, Samples, wants_likeliest

# By its own confidence. A pass costs 4 to 7 % of a step and a row 5 %, and what follows a token is right in
# less than half of the cases: after one that is less likely to be reached, no pass pays.
_LEAST_REACHED: Final = 0.3
_DEPTHS: Final = 2  # kinds by whether the head goes on from a state of the target or from one of its own


class EagleDrafters:
    """One head for all streams."""

    name = "eagle"
    # As measured on held-out answers: by confidence, from the target's state and from its own.
    chances = (
        *(0.2, 0.15, 0.35, 0.35, 0.5, 0.5, 0.65, 0.65, 0.78, 0.78, 0.9, 0.9, 0.94, 0.94, 0.98, 0.98),
        *(0.1, 0.2, 0.35, 0.5, 0.5, 0.5, 0.5, 0.5),  # of alternatives, by their share
    )

    def __init__(self, head: DraftHead, sampler: Samples) -> None:
        self.head = head
        self.sampler = HeadSampler(head.token_ids, head.vocabulary, sampler, least_reached=_LEAST_REACHED)
        self.passes = head.passes
        self.feature_tokens = head.window

    def open(self, opening: Opening) -> EagleDrafter:
        """See `Drafters`."""
        return EagleDrafter(self, opening)


class EagleDrafter:
    """One stream: which of its states the head has seen, counted from the first that it was given."""

    def __init__(self, drafters: EagleDrafters, opening: Opening) -> None:
        self._head = drafters.head
        self._sampler = drafters.sampler
        self._opening = opening
        self._tokens: list[int] = []
        self._base = 0  # position of place 0
        self._seen = 0  # positions before it were given to the head

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`."""
        self._tokens += token_ids

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`. None while the target's latest states are not there."""
        features, packed, known = self._opening.features, self._opening.packed, len(self._tokens)
        if features is None or packed is None or features.end < known - 1 or known < 2:
            return None
        oldest = max(features.first, known - 1 - self._head.window)
        if not self._head.holds(self) or self._seen < oldest or self._seen >= known - 1:
            self._base = self._seen = oldest
        if self._seen >= known - 1:
            return None
        states = features.rows(self._seen, known - 1)[:, : self._head.target_width]
        following: Int32 = np.array(self._tokens[self._seen + 1 :], np.int32)
        start, self._seen = self._seen - self._base, known - 1
        if wants_likeliest(packed):
            passes = min(self._head.passes, most)
            least = self._sampler.least_reached
            chain = self._head.chain(self, start, following, states, passes=passes, least_reached=least)
            return self._sampler.propose_likeliest(chain, most, _DEPTHS)
        guess = self._head.guess(self, start, following, states)

        def says(path: Sequence[int]) -> Float32 | None:
            nonlocal guess
            if len(path) >= self._head.passes:
                return None
            if path:
                at = known - 2 - self._base + len(path)
                token = np.array((path[-1],), np.int32)
                guess = self._head.guess(self, at, token, guess.state, own=True)
            return guess.logits

        return self._sampler.propose(says, packed, self._opening, self._tokens, most, _DEPTHS)

    def close(self) -> None:
        """See `Drafter`."""
        self._head.forget(self)
