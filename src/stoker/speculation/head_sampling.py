"""What all draft heads have in common: their logits become tokens as the target's would, with the same noise,
and how sure they are tells how often they are right (Li et al., "EAGLE-2", 2024).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Final, Protocol

import numpy as np

from stoker.kernels.program import Float32, Int32
from stoker.sampling.rows import PackedParams, SampleResult, SampleRow
from stoker.speculation.drafter import Opening, Proposal
from stoker.speculation.head import Sure

# Each the least of a bucket. Kinds are by bucket and by depth; alternatives have a bucket each besides.
CONFIDENCES: Final = (0.0, 0.15, 0.3, 0.45, 0.6, 0.75, 0.87, 0.95)
# By its own confidence: a token that is less likely to be reached is not worth its row of a step.
LEAST_OF_A_ROW: Final = 0.15
_SURE: Final = 0.6  # from here on an alternative has less than two fifths, and mostly a few hundredths
# What a head says after the likeliest tokens so far: logits [V] over its draft vocabulary; none: it is at its
# end.
Says = Callable[[Sequence[int]], Float32 | None]


class Samples(Protocol):
    """`stoker.sampling.Sampler` is one."""

    def sample(self, logits: Float32, rows: Sequence[SampleRow]) -> SampleResult:
        """One token for each row of logits [R, vocabulary]."""
        ...


class HeadSampler:
    """Samples from a draft vocabulary as the target does from its own."""

    def __init__(
        self,
        token_ids: Int32,
        vocabulary: int,
        sampler: Samples,
        *,
        least_reached: float = LEAST_OF_A_ROW,
    ) -> None:
        """token_ids: [V] of the target's `vocabulary`, ascending. least_reached: after a token that is less
        likely to be reached, by its own confidence, the head is not asked to go on.
        """
        self.least_reached = least_reached
        self._token_ids = token_ids
        self._sampler = sampler
        # Tokens outside the draft vocabulary stay impossible.
        self._logits: Float32 = np.full((1, vocabulary), -math.inf, np.float32)

    def propose(
        self, says: Says, packed: PackedParams, opening: Opening, known: list[int], most: int, depths: int
    ) -> Proposal | None:
        """What follows the known tokens: the head's tokens, and at each an alternative where it is not sure.

        Kinds are numbers below (depths + 1) * len(CONFIDENCES): by confidence, and for each by how deep a
        token stands, the last of `depths` standing for all after it; then those of alternatives.
        """
        growing = _Growing(most, depths)
        while growing.has_room and growing.reached >= self.least_reached:
            path = growing.path
            logits = says(path)
            if logits is None:
                break
            row = _row_after(packed, opening.prompt_tokens, known, path)
            if not growing.add(self._sample(logits, row)):
                break
        return growing.proposal()

    def propose_likeliest(self, chain: Iterable[Sure], most: int, depths: int) -> Proposal | None:
        """The same of what a head says along its likeliest tokens, where these are wanted."""
        growing = _Growing(most, depths)
        for sure in chain:
            sampled = [(sure.first, sure.share)] if sure.first >= 0 else []
            if sampled and sure.share < _SURE and sure.second >= 0:
                sampled.append((sure.second, sure.second_share))
            if not growing.has_room or not growing.add(sampled):
                break
        return growing.proposal()

    def _sample(self, logits: Float32, row: SampleRow) -> list[tuple[int, float]]:
        """Logits [V] over the draft vocabulary, which are written to, to a token of the target's and the
        confidence in it: its share of the draft's distribution. Where that is not much and the likeliest
        token is wanted, the second likeliest after it; none where the sampler has none."""
        token_ids = self._token_ids
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


class _Growing:
    """A proposal while its tokens come, one position after the other."""

    def __init__(self, most: int, depths: int) -> None:
        self._most = most
        self._depths = depths
        self._tokens: list[int] = []
        self._kinds: list[int] = []
        self._parents: list[int] = []
        self._last = -1  # place of the path's end
        self.path: list[int] = []  # the likeliest tokens, which the head goes on from
        self.reached = 1.0  # its chance, by the head's confidence

    @property
    def has_room(self) -> bool:
        return len(self._tokens) < self._most

    def add(self, sampled: Sequence[tuple[int, float]]) -> bool:
        """The token of the next position and alternatives to it, each with the head's confidence in it; false
        if there is none."""
        if not sampled:
            return False
        place, depth = len(self._tokens), min(len(self.path), self._depths - 1)
        for number, (token_id, share) in enumerate(sampled):
            if len(self._tokens) == self._most or (number and self.reached * share < LEAST_OF_A_ROW):
                break
            bucket = _bucket(share)
            self._tokens.append(token_id)
            self._kinds.append(
                self._depths * len(CONFIDENCES) + bucket if number else self._depths * bucket + depth
            )
            self._parents.append(self._last)
        self.path.append(sampled[0][0])
        self._last = place
        self.reached *= sampled[0][1]
        return True

    def proposal(self) -> Proposal | None:
        if not self._tokens:
            return None
        is_chain = len(self._tokens) == len(self.path)
        return Proposal(self._tokens, self._kinds, None if is_chain else self._parents)


def wants_likeliest(packed: PackedParams) -> bool:
    """Whether the likeliest token is sampled, whatever came before."""
    params = packed.params
    return not (params.temperature or params.logit_bias or packed.needs_history)


def _is_plain(row: SampleRow) -> bool:
    return wants_likeliest(row.packed) and not row.banned_ids


def _row_after(packed: PackedParams, prompt_tokens: int, known: list[int], drafted: list[int]) -> SampleRow:
    """How the token after the known and these drafted ones is sampled."""
    position = len(known) + len(drafted)
    if not packed.needs_history:
        return SampleRow(packed, position)
    history: Int32 = np.array([*known, *drafted], np.int32)
    return SampleRow(packed, position, history, prompt_tokens)


def _bucket(confidence: float) -> int:
    """Which of `CONFIDENCES` it is; the first for what is no number."""
    return max(sum(confidence >= least for least in CONFIDENCES) - 1, 0)
