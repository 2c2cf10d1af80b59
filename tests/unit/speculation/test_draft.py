"""Trees of guesses: taken apart into paths, followed by the tokens that come."""

from __future__ import annotations

import random

import pytest
from tests.drafts import random_tree

from stoker.api.errors import EngineError
from stoker.speculation.draft import Draft, Path

TREE = Draft((5, 6, 7, 8, 9, 5, 4), (-1, -1, 0, 0, 1, 2, 4))


def test_a_tree_is_taken_apart_into_paths() -> None:
    assert TREE.paths() == (Path(-1, (0, 2, 5)), Path(-1, (1, 4, 6)), Path(0, (3,)))
    assert TREE.stem == (5, 7, 5)
    assert [TREE.depth(guess) for guess in range(-1, 7)] == [-1, 0, 0, 1, 1, 1, 2, 2]
    assert TREE.path(6) == (6, 9, 4)
    assert TREE.path(-1) == ()
    assert not TREE.is_chain


def test_chains() -> None:
    for chain in (Draft((3, 4)), Draft((3, 4), (-1, 0))):
        assert chain.is_chain
        assert chain.stem == (3, 4)
        assert chain.paths() == (Path(-1, (0, 1)),)
        assert chain.accepted((3, 4, 5)) == (0, 1)
        assert chain.accepted((4,)) == ()
        assert [chain.parent(i) for i in range(2)] == [-1, 0]
    assert Draft(()).paths() == Draft((), ()).paths() == ()


def test_what_came_is_followed() -> None:
    assert TREE.accepted((6, 9, 4, 1)) == (1, 4, 6)
    assert TREE.accepted((5, 8, 7)) == (0, 3)
    assert TREE.following(-1, 6) == 1
    assert TREE.following(3, 6) is None


def test_a_token_guessed_twice_counts_once() -> None:
    """The second of two equal siblings is left out, with all behind it."""
    draft = Draft((5, 5, 6, 7), (-1, -1, 1, 0))
    assert draft.paths() == (Path(-1, (0, 3)),)
    assert draft.accepted((5, 7)) == (0, 3)
    assert draft.accepted((5, 6)) == (0,)


def test_places_in_what_was_verified() -> None:
    verified = Draft((5, 7, 6), (-1, 0, -1))
    assert TREE.places_in(verified) == (0, 2, 1, None, None, None, None)
    assert verified.places_in(TREE) == (0, 2, 1)


@pytest.mark.parametrize("parents", [(0,), (-2,), (-1, 1)])
def test_parents_come_first(parents: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="has parent"):
        Draft((1,) * len(parents), parents).paths()


def test_paths_hold_every_guess_behind_its_parent() -> None:
    for seed in range(100):
        draw = random.Random(seed)
        draft = random_tree([1, 2, 3], 30, draw, draw.randint(1, 20))
        seen = {-1}
        for parent, guesses in draft.paths():
            assert parent in seen
            for guess in guesses:
                assert draft.parent(guess) == parent
                assert guess not in seen
                seen.add(guess)
                parent = guess
        twins = [g for g in range(len(draft.tokens)) if g not in seen]
        assert all(
            any(
                draft.following(draft.parent(g), draft.tokens[g]) != g
                for g in _up(draft, twin)
            )
            for twin in twins
        )  # fmt: skip


def _up(draft: Draft, guess: int) -> list[int]:
    found = []
    while guess >= 0:
        found.append(guess)
        guess = draft.parent(guess)
    return found
