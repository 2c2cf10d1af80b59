"""Drafters by themselves."""

from __future__ import annotations

import numpy as np
import pytest

from stoker.api.errors import RequestError
from stoker.speculation import Features, Opening, drafters_of
from stoker.speculation.lookahead import POOL_ENTRIES, WINDOW, LookaheadDrafter, NgramPool
from stoker.speculation.ngram import NgramDrafter
from stoker.speculation.prediction import PredictionDrafters
from stoker.speculation.suffix import POOL_TOKENS, SIZES, AnswerPool, SuffixDrafters, _slots, _slots_of_ends


def test_ngrams_find_the_latest_continuation_of_the_longest_end() -> None:
    drafter = NgramDrafter()
    drafter.extend([1, 2, 3, 4, 5, 9, 9, 1, 2, 3, 6, 7, 8, 2, 3])
    found = drafter.propose(3)
    assert found is not None
    assert list(found.tokens) == [6, 7, 8]  # of 2, 3 the latest
    drafter.extend([4, 5, 9])
    found = drafter.propose(4)
    assert found is not None
    assert list(found.tokens) == [9, 1, 2, 3]
    assert list(found.kinds) == [6, 7, 7, 7]  # five tokens are the same


def test_an_end_that_is_new_proposes_nothing() -> None:
    drafter = NgramDrafter()
    drafter.extend(range(20))
    assert drafter.propose(5) is None
    drafter.extend([3])
    assert drafter.propose(5) is None


@pytest.mark.parametrize("period", [1, 2, 3, 5])
def test_a_loop_is_proposed_on_and_on(period: int) -> None:
    drafter = NgramDrafter()
    loop = [100 + i % period for i in range(3 * period + 6)]
    drafter.extend(loop)
    found = drafter.propose(15)
    assert found is not None
    assert list(found.tokens) == [100 + (len(loop) + i) % period for i in range(15)]


@pytest.mark.parametrize("pieces", [1, 2, 3, 7])
def test_telling_it_piece_by_piece_is_the_same(pieces: int) -> None:
    tokens = np.random.default_rng(5).integers(0, 4, 300).tolist()
    whole, parts = NgramDrafter(), NgramDrafter()
    for end in range(1, len(tokens)):
        if end % pieces == 0:
            parts.extend(tokens[len(parts._tokens) : end])
            whole = NgramDrafter()
            whole.extend(tokens[:end])
            assert parts.propose(9) == whole.propose(9)


def test_slots_of_all_are_those_of_each() -> None:
    tokens = np.random.default_rng(1).integers(0, 50_000, 100).astype(np.int32)
    of_all = [slots.tolist() for slots in _slots(tokens)]
    of_each = [list(_slots_of_ends(tokens[:end].tolist())) for end in range(1, len(tokens))]
    assert of_all == [[slots[kind] for slots in of_each if len(slots) > kind] for kind in range(len(SIZES))]
    for few in range(SIZES[-1] + 2):
        assert [len(slots) for slots in _slots(tokens[:few])] == [max(few - size, 0) for size in SIZES]


def test_a_pool_finds_other_answers_and_never_runs_past_their_end() -> None:
    pool = AnswerPool()
    pool.add([1, 2, 3, 4, 5, 6])
    pool.add([7, 8, 9])
    found = pool.find([0, 0, 2, 3, 4], 10)
    assert found is not None
    assert list(found.tokens) == [5, 6]
    assert pool.find([4, 5, 6], 10) is None
    assert pool.find([3], 10) is None


def test_a_longer_match_stands_where_a_shorter_one_was_overwritten() -> None:
    pool = AnswerPool()
    answer = list(range(100, 140))
    pool.add(answer)
    slot = next(_slots_of_ends(answer[:20]))
    pool._places[0][slot] = 3  # as an answer does whose 3-gram has the same slot
    found = pool.find(answer[:20], 4)
    assert found is not None
    assert (list(found.tokens), list(found.kinds)) == (answer[20:24], [4, 5, 5, 5])
    pool._places[2][list(_slots_of_ends(answer[:20]))[2]] = 40  # and of the longest nothing is left
    found = pool.find(answer[:20], 4)
    assert found is not None
    assert (list(found.tokens), list(found.kinds)) == (answer[20:24], [2, 3, 3, 3])


def test_a_pool_is_bounded_and_old_places_are_not_believed() -> None:
    pool = AnswerPool()
    rng = np.random.default_rng(2)
    first = rng.integers(0, 1000, 1000).tolist()
    pool.add(first)
    for _ in range(3 * POOL_TOKENS // 1000):
        pool.add(rng.integers(1000, 2000, 1000).tolist())
    for at in range(8, 900, 50):
        assert pool.find(first[at - 8 : at], 5) is None
    pool.add(list(range(2000, 2000 + 2 * POOL_TOKENS)))  # longer than the ring
    assert len(pool._tokens) == POOL_TOKENS


def test_namespaces_share_nothing() -> None:
    drafters = SuffixDrafters()
    one = drafters.open(Opening(b"a", prompt_tokens=3))
    one.extend([1, 2, 3])
    one.extend([4, 5, 6, 7, 8])
    one.close()
    for namespace, expected in ((b"a", [6, 7, 8]), (b"b", None)):
        other = drafters.open(Opening(namespace, prompt_tokens=4))
        other.extend([9, 3, 4, 5])
        found = other.propose(5)
        assert (None if found is None else list(found.tokens)) == expected


# --- predictions ---


def predicting(prediction: list[int], answer: list[int]) -> list[int] | None:
    """What is drafted after a prompt of two tokens and this much of an answer."""
    drafter = PredictionDrafters().open(Opening(prompt_tokens=2, prediction=tuple(prediction)))
    assert drafter is not None
    drafter.extend([90, 91, *answer[:1]])
    for token in answer[1:]:
        drafter.extend([token])
    found = drafter.propose(4)
    return None if found is None else list(found.tokens)


def test_a_prediction_is_followed_left_and_found_again() -> None:
    prediction = [1, 2, 3, 4, 5, 6, 7, 8]
    assert predicting(prediction, []) == [1, 2, 3, 4]
    assert predicting(prediction, [1]) == [2, 3, 4, 5]
    assert predicting(prediction, [1, 2, 3, 30]) == [5, 6, 7, 8], "as if one token was replaced"
    assert predicting(prediction, [1, 2, 3, 30, 4, 5]) == [6, 7, 8], "it was put in"
    assert predicting(prediction, [1, 2, 3, 30, 31, 32, 33]) is None
    assert predicting(prediction, [1, 2, 3, 30, 31, 32, 33, 4, 5, 6]) == [7, 8]
    assert predicting(prediction, [40, 41, 5, 6, 7]) == [8]
    assert predicting(prediction, prediction) is None
    assert PredictionDrafters().open(Opening(prompt_tokens=2)) is None


def test_names_of_drafters() -> None:
    assert drafters_of("off") == ()
    assert [d.name for d in drafters_of("auto")] == ["prediction", "ngram", "suffix"]
    assert [d.name for d in drafters_of("suffix,ngram")] == ["suffix", "ngram"]
    with pytest.raises(RequestError, match=r"speculation is 'oracle'; allowed: auto, off, or of prediction"):
        drafters_of("oracle")


# --- lookahead ---


def test_samples_behind_a_wrong_guess_are_the_next_window() -> None:
    drafter = LookaheadDrafter()
    drafter.extend([10, 11, 12, 13])
    found = drafter.propose(4)
    assert found is not None
    assert list(found.tokens) == [10, 11, 12, 13]  # nothing is known: the last words again
    assert found.kinds[0] == 0
    # The target says 20 where 10 was guessed, and 31 to 34 behind the guesses.
    drafter.observe([10, 11, 12, 13], [20, 31, 32, 33, 34])
    drafter.extend([20])
    found = drafter.propose(6)
    assert found is not None
    assert list(found.tokens)[:4] == [31, 32, 33, 34]
    assert list(found.kinds)[:4] == [1, 2, 2, 2]


def test_diagonals_of_successive_iterates_are_ngrams() -> None:
    drafter = LookaheadDrafter()
    drafter.extend([1])
    proposed = drafter.propose(2)
    assert proposed is not None
    drafter.observe(proposed.tokens, [5, 6, 7])  # 6 after a guess of 1, 7 after a second one
    drafter.extend([5])
    proposed = drafter.propose(2)
    assert proposed is not None
    assert list(proposed.tokens) == [6, 7]
    drafter.observe(proposed.tokens, [9, 8, 4])  # 8 after 6, 4 after 7: (1, 6, 8), (1, 7, 4)
    drafter.extend([9, 2, 1, 6])  # said in other words
    found = drafter.propose(1)
    assert found is not None
    assert list(found.tokens) == [8]
    assert list(found.kinds) == [5]  # found by two tokens


def test_the_text_itself_is_in_the_pool() -> None:
    drafter = LookaheadDrafter()
    drafter.extend([1, 2, 3, 4, 5, 6, 7, 8, 9, 50, 1, 2, 3])
    found = drafter.propose(WINDOW + 5)
    assert found is not None
    assert list(found.tokens) == [4, 5, 6, 7, 8, 9, 50]
    assert list(found.kinds) == [3, 4, 4, 4, 4, 4, 4]


def test_a_window_that_the_target_broke_off_or_a_grammar_changed() -> None:
    drafter = LookaheadDrafter()
    drafter.extend([1, 2, 3])
    drafter.propose(4)
    drafter.observe([7, 8], [4, -1, 6])  # 7 stands where another token was proposed; then nothing was left
    drafter.extend([4])
    found = drafter.propose(3)
    assert found is not None
    assert len(found.tokens) == len(found.kinds) == 3


def test_the_pool_is_bounded_and_keeps_what_came_last() -> None:
    pool = NgramPool()
    for i in range(5 * POOL_ENTRIES):
        pool.add([i, i + 1, i + 2, i + 3])
    assert sum(map(len, (*pool._young, *pool._old))) <= 6 * POOL_ENTRIES
    last = 5 * POOL_ENTRIES - 1
    assert pool.find([last, last + 1, last + 2]) == (last + 3, 0)
    assert pool.find([0, 1, 2]) is None


def test_of_a_very_long_prompt_the_end_is_looked_up() -> None:
    drafter = NgramDrafter()
    drafter.extend([1, 2, 3, *range(10, 40_010), 1, 2, 3])
    assert drafter.propose(2) is None
    drafter.extend([39_000, 39_001])
    found = drafter.propose(2)
    assert found is not None
    assert list(found.tokens) == [39_002, 39_003]


def test_states_are_forgotten_from_a_position_on() -> None:
    features = Features(4)
    features.put(0, np.arange(6, dtype=np.float32)[:, None])
    features.cut(4)
    assert (features.first, features.end) == (2, 4)
    features.put(6, np.full((2, 1), 9, np.float32))
    assert (features.first, features.end) == (6, 8), "a gap begins anew"
    features.cut(1)
    assert features.first == features.end
