"""A copy that deviates, and what is drafted behind the deviation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest

from stoker.speculation import Opening
from stoker.speculation.copying import COPIED, Copying
from stoker.speculation.ngram import NgramDrafter, NgramDrafters
from stoker.speculation.prediction import PredictionDrafters

TEXT = list(range(10, 40))


def after(answer: Sequence[int], agreed: int = COPIED) -> Copying:
    copying = Copying()
    copying.start(0, agreed)
    for token in answer:
        copying.read(TEXT, token)
    return copying


@pytest.mark.parametrize(
    ("answer", "place", "agreed", "deviated"),
    [
        ([], 0, COPIED, False),
        ([10, 11, 12], 3, COPIED + 3, False),
        ([10, 11, 99], 3, 0, True),  # one replaced by one
        ([10, 11, 99, 13], 4, 1, True),
        ([10, 11, 99, 98], 3, 0, True),  # by two
        ([10, 11, 99, 98, 97], 3, 0, True),  # by three
        ([10, 11, 99, 98, 97, 96], None, 0, False),  # another text
        ([10, 11, 99, 13, 98, 15], 6, 1, True),
        ([10, 11, 99, 13, 14, 15, 16], 7, 4, True),
        ([10, 11, 99, 13, 14, 15, 16, 17], 8, COPIED, False),  # a copy again
        (TEXT, 30, COPIED + 30, False),
        ([*TEXT, 1], 31, 0, True),  # behind the end nothing agrees
        ([*TEXT, 1, 2, 3, 4], None, 0, False),
    ],
)
def test_the_place_is_kept_behind_what_was_replaced(
    answer: list[int], place: int | None, agreed: int, deviated: bool
) -> None:
    copying = after(answer)
    assert (copying.place, copying.deviated) == (place, deviated)
    if place is not None:
        assert copying.agreed == agreed


def test_what_was_no_copy_is_lost_at_the_first_difference() -> None:
    assert after([99], COPIED - 1).place is None
    assert after([10, 99], COPIED - 1).place == 2


def ngrams(tokens: Sequence[int]) -> NgramDrafter:
    drafter = NgramDrafter()
    drafter.extend(tokens)
    return drafter


def test_prompt_lookup_goes_on_behind_a_replaced_token() -> None:
    copied = [*TEXT, 1, *TEXT[:8], 99]
    assert ngrams(copied).propose(4) is None, "where it goes on is not known yet"
    found = ngrams([*copied, TEXT[9]]).propose(3)
    assert found is not None
    assert list(found.tokens) == TEXT[10:13]
    known = NgramDrafters.chances
    assert known[found.kinds[0]] > known[0]
    other = ngrams([*copied, 5, 6, 7, 8])
    assert other.propose(4) is None


def test_a_chance_likeness_of_two_tokens_does_not_lead_away_from_a_copy() -> None:
    known = [50, TEXT[9], 60, 61, 62, *TEXT, 1, *TEXT[:8], 50, TEXT[9]]
    found = ngrams(known).propose(3)
    assert found is not None
    assert list(found.tokens) == TEXT[10:13]


def follows(drafter: NgramDrafter, path: list[int], most: int) -> tuple[int, list[int], float] | None:
    """Behind how many guesses, what, and the chance that its first token is given."""
    found = drafter.follow(path, most)
    if found is None:
        return None
    kinds = found.proposal.kinds
    assert len(kinds) == len(found.proposal.tokens)
    return found.depth, list(found.proposal.tokens), NgramDrafters.followed_chances[kinds[0]]


def test_what_a_head_confirms_is_followed_at_once() -> None:
    drafter = ngrams([*TEXT, 1, *TEXT[:8], 99])
    before = drafter.propose(4)
    replaced = follows(drafter, [TEXT[9], 70], 4)
    assert replaced is not None
    assert replaced[:2] == (0, TEXT[9:13])
    assert follows(drafter, [77, 78], 4) is None
    assert follows(drafter, [TEXT[12]], 4) is None, "one token tells nothing"
    beyond = follows(drafter, [TEXT[12], TEXT[13]], 20)
    assert beyond is not None
    assert beyond[:2] == (2, TEXT[14:20]), "behind guesses that nothing confirms it says little"
    agreed = follows(drafter, [TEXT[12], TEXT[13], TEXT[14], 70], 4)
    assert agreed is not None
    assert agreed[:2] == (2, TEXT[14:18])
    assert agreed[2] > beyond[2]
    assert drafter.propose(4) == before, "nothing of a path is remembered"


def test_a_path_into_a_loop_goes_round() -> None:
    drafter = ngrams([5, 6, 7, 8, 9])
    assert follows(drafter, [5, 6, 7], 5) == (2, [7, 8, 9, 5, 6], 0.85)
    assert follows(drafter, [5, 6], 15) is not None


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_edits_told_piece_by_piece_are_the_same(pieces: int) -> None:
    rng = np.random.default_rng(3)
    text = rng.integers(0, 500, 60).tolist()
    answer = [int(token) if rng.random() < 0.85 else 777 for token in text * 2]
    tokens = [*text, 900, *answer]
    parts, shown, found = NgramDrafter(), 0, 0
    for end in range(len(text), len(tokens), pieces):
        parts.extend(tokens[shown:end])
        shown = end
        proposal = parts.propose(6)
        parts.follow([tokens[end], 777], 5)
        found += proposal is not None
        assert proposal == ngrams(tokens[:end]).propose(6)
    assert found


def test_a_prediction_goes_on_behind_an_edit() -> None:
    drafter = PredictionDrafters().open(Opening(prompt_tokens=1, prediction=tuple(TEXT)))
    assert drafter is not None
    drafter.extend([1, *TEXT[:3], 99])
    replaced = drafter.propose(4)
    assert replaced is not None
    assert list(replaced.tokens) == TEXT[4:8]
    drafter.extend([TEXT[4]])
    sure = drafter.propose(4)
    assert sure is not None
    assert list(sure.tokens) == TEXT[5:9]
    drafter.extend([TEXT[20], TEXT[21], TEXT[22]])
    moved = drafter.propose(4)
    assert moved is not None
    assert list(moved.tokens) == TEXT[23:27], "three tokens of another place count more than an edit"
    chances = PredictionDrafters.chances
    assert chances[replaced.kinds[0]] < chances[sure.kinds[0]]
