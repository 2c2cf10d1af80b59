"""Drafts by an EAGLE head: the target's hidden states, gone on with by a layer of their own.

Li et al., "EAGLE", 2024, and "EAGLE-2", 2024 (the head's confidence tells how often it is right). A drafted
token is sampled as the target would sample it, with the same noise: so drafts are also right at a
temperature.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, Protocol

import numpy as np

from stoker.kernels.program import Float32, Int32
from stoker.sampling.rows import PackedParams, SampleResult, SampleRow
from stoker.speculation.drafter import Opening, Proposal
from stoker.speculation.head import DraftHead, Guess

# Kinds are by confidence and by whether the head goes on from a state of the target or from one of its own.
_CONFIDENCES: Final = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.87, 0.95)
# By its own confidence. A pass costs 4 to 7 % of a step and a row 5 %, and what follows a token is right in
# less than half of the cases: after one that is less likely to be reached, no pass pays.
_LEAST_REACHED: Final = 0.3
_LEAST_ALTERNATIVE: Final = 0.15  # it takes a row only
_SURE: Final = 0.6  # from here on an alternative has less than two fifths, and mostly a few hundredths


class Samples(Protocol):
    """`stoker.sampling.Sampler` is one."""

    def sample(self, logits: Float32, rows: Sequence[SampleRow]) -> SampleResult:
        """One token for each row of logits [R, vocabulary]."""
        ...


class EagleDrafters:
    """One head for all streams."""

    name = "eagle"
    # As measured on held-out answers: by confidence, from the target's state and from its own.
    chances = (
        *(0.1, 0.1, 0.2, 0.2, 0.35, 0.3, 0.5, 0.4, 0.6, 0.55, 0.77, 0.6, 0.88, 0.75, 0.97, 0.95),
        *(0.05, 0.18, 0.25, 0.3, 0.3, 0.3, 0.3, 0.3),  # of alternatives, by their share
    )

    def __init__(self, head: DraftHead, sampler: Samples) -> None:
        self._head = head
        self._sampler = sampler
        # Tokens outside the draft vocabulary stay impossible.
        self._logits: Float32 = np.full((1, head.vocabulary), -math.inf, np.float32)
        self.passes = head.passes
        self.feature_tokens = head.window

    def open(self, opening: Opening) -> EagleDrafter:
        """See `Drafters`."""
        return EagleDrafter(self._head, opening, self)

    def sample(self, logits: Float32, row: SampleRow) -> list[tuple[int, float]]:
        """Logits [V] over the draft vocabulary, which are written to, to a token of the target's and the
        confidence in it: its share of the draft's distribution. Where that is not much and the likeliest
        token is wanted, the second likeliest after it; none where the sampler has none."""
        token_ids = self._head.token_ids
        if not _is_plain(row):
            self._logits[0, token_ids] = logits
            token_id = int(self._sampler.sample(self._logits, [row]).token_ids[0])
            if token_id < 0:
                return []
            place = int(token_ids.searchsorted(token_id))
            return [(token_id, float(1.0 / np.exp(logits - logits[place]).sum()))]
        place = int(logits.argmax())  # what the sampler would say, in a tenth of its time
        best = float(logits[place])
        share = float(1.0 / np.exp(logits - logits[place]).sum())
        found = [(int(token_ids[place]), share)]
        if share < _SURE:
            logits[place] = -math.inf
            place = int(logits.argmax())
            found.append((int(token_ids[place]), share * math.exp(float(logits[place]) - best)))
        return found


def _is_plain(row: SampleRow) -> bool:
    """Whether the likeliest token is sampled, whatever came before."""
    params = row.packed.params
    return not (params.temperature or params.logit_bias or row.banned_ids or row.packed.needs_history)


class EagleDrafter:
    """One stream: which of its states the head has seen, counted from the first that it was given."""

    def __init__(self, head: DraftHead, opening: Opening, drafters: EagleDrafters) -> None:
        self._head = head
        self._opening = opening
        self._drafters = drafters
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
        states = features.rows(self._seen, known - 1)
        following: Int32 = np.array(self._tokens[self._seen + 1 :], np.int32)
        guess = self._head.guess(self, self._seen - self._base, following, states)
        self._seen = known - 1
        return self._gone_on(guess, packed, most)

    def _gone_on(self, guess: Guess, packed: PackedParams, most: int) -> Proposal | None:
        """From the guess that follows the last known token: its tokens, and at each an alternative where the
        head is not sure."""
        tokens: list[int] = []
        kinds: list[int] = []
        parents: list[int] = []
        path: list[int] = []  # the likeliest tokens, which passes go on from
        last, reached = -1, 1.0
        while True:
            row = self._row(packed, path)
            sampled = self._drafters.sample(guess.logits, row)
            if not sampled:
                break
            token_id, confidence = sampled[0]
            found = [(token_id, 2 * _bucket(confidence) + (len(path) > 0))]
            found += [
                (other, 2 * len(_CONFIDENCES) + _bucket(share))
                for other, share in sampled[1:]
                if reached * share >= _LEAST_ALTERNATIVE
            ]
            place = len(tokens)
            for token, kind in found[: most - place]:
                tokens.append(token)
                kinds.append(kind)
                parents.append(last)
            path.append(token_id)
            last = place
            reached *= confidence
            if len(path) >= self._head.passes or len(tokens) >= most or reached < _LEAST_REACHED:
                break
            at = len(self._tokens) - 2 - self._base + len(path)
            guess = self._head.guess(self, at, np.array((token_id,), np.int32), guess.state)
        return Proposal(tokens, kinds, parents) if tokens else None

    def close(self) -> None:
        """See `Drafter`."""
        self._head.forget(self)

    def _row(self, packed: PackedParams, drafted: list[int]) -> SampleRow:
        position = len(self._tokens) + len(drafted)
        if not packed.needs_history:
            return SampleRow(packed, position)
        history: Int32 = np.array([*self._tokens, *drafted], np.int32)
        return SampleRow(packed, position, history, self._opening.prompt_tokens)


def _bucket(confidence: float) -> int:
    return sum(confidence >= least for least in _CONFIDENCES) - 1
