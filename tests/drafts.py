"""Drafters that know the answers, and a cost by which every draft pays."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.speculation import Opening, Proposal


class CribbingDrafters:
    """Knows the answers, and errs at every `err`-th token."""

    name = "crib"
    chances = (0.5,)
    passes = 0
    feature_tokens = 0

    def __init__(self, answers: Sequence[Sequence[int]], err: int, vocabulary: int) -> None:
        self.answers = answers
        self.err = err
        self.vocabulary = vocabulary

    def open(self, opening: Opening) -> CribbingDrafter:
        return CribbingDrafter(self.answers, self.err, self.vocabulary)


class CribbingDrafter:
    """Finds the answer that begins as its sequence does."""

    def __init__(self, answers: Sequence[Sequence[int]], err: int, vocabulary: int) -> None:
        self._answers = answers
        self._err = err
        self._vocabulary = vocabulary
        self._tokens: list[int] = []

    def extend(self, token_ids: Sequence[int]) -> None:
        self._tokens += token_ids

    def propose(self, most: int) -> Proposal | None:
        known = len(self._tokens)
        for answer in self._answers:
            if len(answer) > known and list(answer[:known]) == self._tokens:
                rest = list(answer[known : known + most])
                wrong = [(known + i) % self._err == 0 for i in range(len(rest))]
                guess = [(t + e) % self._vocabulary if e else t for t, e in zip(rest, wrong, strict=True)]
                return Proposal(guess, [0] * len(guess))
        return Proposal([7] * most, [0] * most)

    def close(self) -> None:
        """Nothing is kept."""


class FreeCost:
    """Drafts cost nothing, so that as many as there is room for are verified."""

    known = True

    def predict_ms(self, tokens: int, context_tokens: int) -> float:
        return 1.0 + 1e-9 * tokens
