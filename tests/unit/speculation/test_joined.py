"""Drafts of a model's guesses and of what followed such words before."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stoker.speculation import Draft, Opening, Proposal, Speculator, Stream
from stoker.speculation.drafter import Following
from stoker.speculation.joined import joined
from stoker.speculation.ngram import NgramDrafters

FIRST = 100  # kind


class Knows:
    """Knows this to follow that many guesses."""

    def __init__(self, depth: int, tokens: list[int]) -> None:
        self.depth, self.tokens = depth, tokens
        self.told: list[int] = []

    def follow(self, path: Sequence[int], most: int) -> Following | None:
        self.told = list(path)
        if not self.tokens:
            return None
        tokens = self.tokens[:most]
        return Following(self.depth, Proposal(tokens, [3] * len(tokens)))


CHAIN = Proposal([1, 2, 3], [0, 1, 1])
# 1 (or 9), then 2 (or 8), then 3
TREE = Proposal([1, 9, 2, 8, 3], [0, 7, 1, 7, 1], [-1, -1, 0, 0, 2])


@pytest.mark.parametrize("most", [3, 4, 5, 15])
def test_a_chain_goes_on_behind_its_end(most: int) -> None:
    found = joined(CHAIN, Knows(3, [4, 5]), most, FIRST)
    assert list(found.tokens) == [1, 2, 3, 4, 5][:most]
    assert list(found.kinds) == [0, 1, 1, 103, 103][:most]
    assert found.parents is None


@pytest.mark.parametrize("most", [3, 4, 15])
def test_where_both_say_the_same_the_follower_leads(most: int) -> None:
    found = joined(CHAIN, Knows(1, [2, 6, 7]), most, FIRST)
    assert list(found.tokens) == [1, 2, 6, 7][:most]
    assert list(found.kinds) == [0, 103, 103, 103][:most]


def test_who_knows_nothing_changes_nothing() -> None:
    assert joined(TREE, Knows(0, []), 15, FIRST) == TREE
    assert joined(CHAIN, Knows(0, []), 3, FIRST) == CHAIN


@pytest.mark.parametrize(
    ("depth", "follows", "tokens", "parents"),
    [
        (0, [1, 5, 6], [1, 5, 6], None),
        (1, [2, 5, 6], [1, 9, 2, 5, 6], [-1, -1, 0, 2, 3]),
        (2, [3, 5], [1, 9, 2, 8, 3, 5], [-1, -1, 0, 0, 2, 4]),
        (3, [5, 6], [1, 9, 2, 8, 3, 5, 6], [-1, -1, 0, 0, 2, 4, 5]),
    ],
)
@pytest.mark.parametrize("most", [5, 6, 7, 15])
def test_a_tree_goes_on_along_its_likeliest_path(
    depth: int, follows: list[int], tokens: list[int], parents: list[int] | None, most: int
) -> None:
    knows = Knows(depth, follows)
    found = joined(TREE, knows, most, FIRST)
    assert knows.told == [1, 2, 3]
    assert list(found.tokens) == tokens[:most]
    assert found.parents == (None if parents is None else parents[:most])
    Draft(tuple(found.tokens), None if found.parents is None else tuple(found.parents))  # well formed


class Head:
    """Says 3 or, not at all surely, 7; runs a model."""

    name = "head"
    chances = (0.6, 0.1)
    passes = 1
    feature_tokens = 0

    def __init__(self, token: int) -> None:
        self.token = token

    def open(self, opening: Opening) -> Head:
        return self

    def extend(self, token_ids: Sequence[int]) -> None:
        """Not needed."""

    def propose(self, most: int) -> Proposal | None:
        return Proposal([self.token], [0])

    def close(self) -> None:
        """Nothing is kept."""


class Cost:
    """A drafted token is a twentieth of a step."""

    def predict_ms(self, tokens: int, *, streams: int) -> float:
        return 10 + 0.5 * tokens


def test_what_followed_is_learnt_by_kinds_of_its_own() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], np.int32)
    speculator = Speculator([NgramDrafters(), Head(3)], Cost())
    stream = Stream(0, Opening(), ids, 50)
    for _ in range(3):
        draft = speculator.draft([stream], most_tokens=64)[0]
        assert isinstance(draft, tuple)
        assert draft[:4] == (3, 4, 5, 6)
        source = speculator._asked[0].source
        assert source.name == "head"
        speculator.judge(0, len(draft), range(len(draft)))
    own = {source.name: sorted(source.rates) for source in speculator._sources[0]}
    assert own["ngram"] == []
    assert all(kind >= len(Head.chances) for kind in own["head"])


def test_a_head_that_says_something_else_is_not_led_away() -> None:
    ids = np.array([1, 2, 3, 4, 5, 6, 7, 8, 1, 2], np.int32)
    speculator = Speculator([Head(9), NgramDrafters()], Cost())
    draft = speculator.draft([Stream(0, Opening(), ids, 50)], most_tokens=64)[0]
    assert draft == (9,)
