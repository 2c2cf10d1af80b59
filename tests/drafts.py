"""Drafters that know the answers, and a cost by which every draft pays."""

from __future__ import annotations

import random
from collections.abc import Sequence

from stoker.speculation import Opening, Proposal, Stream
from stoker.speculation.draft import Draft


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


class TreeCribbingDrafters:
    """Knows the answers, and proposes trees that have them and more."""

    name = "trees"
    chances = (0.5,)
    passes = 0
    feature_tokens = 0

    def __init__(self, answers: Sequence[Sequence[int]], vocabulary: int) -> None:
        self.answers = [list(answer) for answer in answers]
        self.vocabulary = vocabulary

    def open(self, opening: Opening) -> TreeCribbingDrafter:
        return TreeCribbingDrafter(self.answers, self.vocabulary)


class TreeCribbingDrafter:
    """Finds the answer that begins as its sequence does."""

    def __init__(self, answers: Sequence[list[int]], vocabulary: int) -> None:
        self._answers = answers
        self._vocabulary = vocabulary
        self._tokens: list[int] = []

    def extend(self, token_ids: Sequence[int]) -> None:
        self._tokens += token_ids

    def propose(self, most: int) -> Proposal | None:
        known = len(self._tokens)
        rests = [answer[known:] for answer in self._answers if answer[:known] == self._tokens]
        draw = random.Random(f"{known} {self._tokens[-1]}")
        tree = random_tree(rests[0] if rests else [], self._vocabulary, draw, most)
        return Proposal(tree.tokens, [0] * most, tree.parents)

    def close(self) -> None:
        """Nothing is kept."""


class TreeSpeculator:
    """In place of an engine's speculator: trees of any shape, right and wrong, for every stream."""

    def __init__(self, answers: Sequence[Sequence[int]], vocabulary: int, *, most: int, seed: int) -> None:
        self.answers = [list(answer) for answer in answers]
        self.vocabulary = vocabulary
        self.most = most  # guesses of a tree; 0: only `seen` is written
        self.seed = seed
        self.seen: dict[int, list[int]] = {}  # by stream, what it had said when it was asked about last
        self.drafted_tokens = 0
        self.accepted_tokens = 0
        self.drafting_ms = 0.0

    def may_pay(self, streams: int, predicted: Sequence[int] = ()) -> bool:
        return True

    def would_look(self, streams: int) -> bool:
        return True

    def learn_profit(self, streams: int, saved: float) -> None:
        """It goes on whatever it costs."""

    def draft(self, streams: Sequence[Stream], *, most_tokens: int) -> dict[int, Draft]:
        self.seen |= {stream.number: stream.ids.tolist() for stream in streams}
        return {stream.number: self._tree(stream) for stream in streams} if self.most else {}

    def _tree(self, stream: Stream) -> Draft:
        known = len(stream.ids)
        ids = stream.ids.tolist()
        rests = [answer[known:] for answer in self.answers if answer[:known] == ids]
        draw = random.Random(f"{self.seed} {stream.number} {known}")
        tree = random_tree(rests[0] if rests else [], self.vocabulary, draw, draw.randint(1, self.most))
        return tree if stream.allowed is None else stream.allowed(tree, self.most).draft

    def judge(self, number: int, drafted: int, accepted: Sequence[int], sampled: Sequence[int] = ()) -> None:
        self.drafted_tokens += drafted
        self.accepted_tokens += len(accepted)

    def forget(self, number: int) -> None:
        """Nothing is kept."""


def random_tree(right: Sequence[int], vocabulary: int, draw: random.Random, count: int) -> Draft:
    """So many guesses in any shape and order, parents first; the right ones among them as far as they go.
    Now and then one is guessed twice."""
    tokens: list[int] = []
    parents: list[int] = []
    depth_if_right = {-1: 0}  # the guess -> how many right ones it completes
    for guess in range(count):
        parent = guess - 1 if draw.random() < 0.5 else draw.randint(-1, guess - 1)
        if draw.random() < 0.4:
            parent = max(depth_if_right)
        depth = depth_if_right.get(parent)
        token = draw.randrange(vocabulary)
        if depth is not None and depth < len(right) and draw.random() < 0.7:
            token = right[depth]
        if depth is not None and right[depth : depth + 1] == [token]:
            depth_if_right[guess] = depth + 1
        tokens.append(token)
        parents.append(parent)
    return Draft(tuple(tokens), tuple(parents))


class FreeCost:
    """Drafts cost nothing, so that as many as there is room for are verified."""

    def predict_ms(self, tokens: int, *, streams: int) -> float:
        return 1.0 + 1e-9 * tokens
