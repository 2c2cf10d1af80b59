"""How much is drafted: by cost, by success, and the same for the same past."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count

import numpy as np
import pytest

from stoker.speculation import AllowedDraft, Draft, Opening, Proposal, Speculator, Stream
from stoker.speculation.speculator import MOST_DRAFTED


class Cost:
    """base_ms + token_ms for each token."""

    def __init__(self, base_ms: float, token_ms: float) -> None:
        self.base_ms, self.token_ms = base_ms, token_ms

    def predict_ms(self, tokens: int, *, streams: int) -> float:
        return self.base_ms + self.token_ms * tokens


class CountingDrafters:
    """Always proposes 0, 1, 2, ..."""

    chances = (0.5,)
    passes = 0
    feature_tokens = 0

    def __init__(self, name: str = "counting") -> None:
        self.name = name
        self.asked = 0

    def open(self, opening: Opening) -> CountingDrafters:
        return self

    def extend(self, token_ids: Sequence[int]) -> None:
        """Not needed."""

    def propose(self, most: int) -> Proposal | None:
        self.asked += 1
        return Proposal(range(most), [0] * most)

    def close(self) -> None:
        """Nothing is kept."""


def streams(number: int, most: int = 100) -> list[Stream]:
    return [Stream(i, Opening(), np.zeros(5, np.int32), most) for i in range(number)]


def drafted(speculator: Speculator, number_of: int, *, share: float, steps: int = 40) -> int:
    """Tokens drafted in the last step, when of each draft this share is accepted."""
    chosen: dict[int, tuple[int, ...]] = {}
    for _ in range(steps):
        chosen = speculator.draft(streams(number_of), most_tokens=512)
        for number, tokens in chosen.items():
            speculator.judge(number, len(tokens), range(round(share * len(tokens))))
    return sum(map(len, chosen.values()))


def test_what_costs_nothing_is_drafted_and_what_costs_as_much_as_a_step_is_not() -> None:
    assert drafted(Speculator([CountingDrafters()], Cost(10, 0.001)), 1, share=1.0) == MOST_DRAFTED
    assert drafted(Speculator([CountingDrafters()], Cost(0.001, 10)), 1, share=1.0) == 0


def test_success_is_followed() -> None:
    found = [drafted(Speculator([CountingDrafters()], Cost(5, 0.5)), 1, share=s) for s in (0.0, 0.5, 1.0)]
    assert found[0] <= 1 < found[1] < found[2]


def test_under_load_it_steps_aside_and_is_not_even_asked() -> None:
    drafters = CountingDrafters()
    speculator = Speculator([drafters], Cost(4.5, 0.57))
    assert drafted(speculator, 32, share=0.5) == 0
    asked = drafters.asked
    drafted(speculator, 32, share=0.5, steps=10)
    assert drafters.asked == asked
    assert drafted(Speculator([CountingDrafters()], Cost(4.5, 0.57)), 1, share=0.5) > 1


def test_what_is_too_dear_is_not_computed_in_each_step() -> None:
    cost = Cost(4.5, 0.57)
    speculator = Speculator([CountingDrafters()], cost)
    assert not speculator.may_pay(32)
    cost.token_ms = 0.0
    assert [speculator.may_pay(32) for _ in range(9)] == 8 * [False] + [True]
    assert speculator.may_pay(4)  # of other numbers that says nothing


def test_a_prediction_does_not_wait_for_the_end_of_a_rest() -> None:
    speculator = Speculator([CountingDrafters()], Cost(10, 0.1))
    for _ in range(16):
        assert speculator.may_pay(8)
        speculator.learn_profit(8, -1.0)
    assert not speculator.may_pay(8)
    assert not speculator.may_pay(8, predicted=[3]), "seven would pay for one"
    assert speculator.may_pay(8, predicted=[3, 4])
    assert speculator.may_pay(8), "and it is drafting that goes on"


def test_for_a_prediction_dearer_guesses_are_looked_for() -> None:
    cost = Cost(9.0, 3.0)  # 0.69 of a token must be right, of four streams
    assert not Speculator([CountingDrafters()], cost).may_pay(4)
    assert Speculator([CountingDrafters()], cost).may_pay(4, predicted=[0])
    cost.token_ms = 5.0  # 0.83
    assert not Speculator([CountingDrafters()], cost).may_pay(4, predicted=[0])


def test_only_a_new_prediction_begins_a_new_try() -> None:
    speculator = Speculator([CountingDrafters()], Cost(10, 0.1))
    speculator.draft(streams(1), most_tokens=16)  # it is known from now on
    for _ in range(64):
        assert speculator.may_pay(1, predicted=[0])
        speculator.learn_profit(1, -1.0)
    assert not speculator.may_pay(1, predicted=[0])
    assert speculator.may_pay(1, predicted=[1])


def test_the_better_of_two_is_asked() -> None:
    good, bad = CountingDrafters("good"), CountingDrafters("bad")
    speculator = Speculator([bad, good], Cost(10, 0.1))
    for _ in range(60):
        for number, tokens in speculator.draft(streams(1), most_tokens=64).items():
            name = speculator._asked[number].source.name
            speculator.judge(number, len(tokens), range(len(tokens) if name == "good" else 0))
    speculator.draft(streams(1), most_tokens=64)
    assert speculator._asked[0].source.name == "good"


@pytest.mark.parametrize("most", [0, 1, 3])
def test_room_is_kept(most: int) -> None:
    speculator = Speculator([CountingDrafters()], Cost(10, 0.001))
    assert sum(map(len, speculator.draft(streams(3), most_tokens=most).values())) <= max(most, 0)
    assert all(len(t) <= most for t in speculator.draft(streams(3, most=most), most_tokens=64).values())


def test_the_same_past_gives_the_same_drafts() -> None:
    runs = []
    for _ in range(2):
        speculator = Speculator([CountingDrafters()], Cost(5, 0.4))
        runs.append([drafted(speculator, 4, share=share, steps=7) for share in (0.9, 0.1, 0.5)])
    assert runs[0] == runs[1]


def test_what_has_ended_is_forgotten() -> None:
    speculator = Speculator([CountingDrafters()], Cost(10, 0.1))
    speculator.draft(streams(3), most_tokens=64)
    for number in range(3):
        speculator.forget(number)
        speculator.forget(number)
    assert not speculator._sources
    assert not speculator._asked
    speculator.judge(1, 3, range(2))  # of a stream that ended in the step


class ObservingDrafters(CountingDrafters):
    """Notes what it is told of its drafts."""

    chances = (0.01,)  # hopeless

    def __init__(self) -> None:
        super().__init__("observing")
        self.told: list[tuple[list[int], list[int]]] = []

    def open(self, opening: Opening) -> ObservingDrafters:
        return self

    def observe(self, draft: Sequence[int], sampled: Sequence[int]) -> None:
        self.told.append((list(draft), list(sampled)))


def test_who_observes_is_tried_with_its_whole_window_and_told_all_samples() -> None:
    drafters = ObservingDrafters()
    speculator = Speculator([drafters], Cost(5, 0.5))
    for _ in range(400):
        chosen = speculator.draft(streams(1, most=6), most_tokens=512)
        for number, tokens in chosen.items():
            assert isinstance(tokens, tuple)
            speculator.judge(number, len(tokens) - 1, range(0), [9] * len(tokens))
    assert drafters.told == [(list(range(5)), [9] * 6)] * 3  # one of 128 steps; one token had no room


def test_what_a_guide_wrote_says_nothing_about_the_drafter() -> None:
    def allowed(draft: Draft, most: int) -> AllowedDraft:
        """The first guess, then 7, 7, 7; most of the draft may not come."""
        return AllowedDraft(Draft((*draft.tokens[:1], 7, 7, 7)[:most]), frozenset({1, 2, 3}))

    speculator = Speculator([CountingDrafters()], Cost(10, 0.001))
    stream = streams(1)[0]._replace(allowed=allowed)
    assert speculator.draft([stream], most_tokens=64) == {0: (0, 7, 7, 7)}
    speculator.judge(0, 4, range(4))
    rate = speculator._sources[0][0].rates[0]
    assert (rate.accepted, rate.tried) == (1.0, 1.0)


class SureDrafters(CountingDrafters):
    """Runs a model, and is sure of one token."""

    chances = (0.2, 0.9)
    passes = 1

    def propose(self, most: int) -> Proposal | None:
        self.asked += 1
        return Proposal([9], [self.kind])

    def __init__(self, kind: int) -> None:
        super().__init__("sure")
        self.kind = kind

    def open(self, opening: Opening) -> SureDrafters:
        return self


@pytest.mark.parametrize(("kind", "expected"), [(0, "counting"), (1, "sure")])
def test_of_what_was_asked_for_the_better_is_verified(kind: int, expected: str) -> None:
    counting, sure = CountingDrafters(), SureDrafters(kind)
    counting.chances = (0.3,)
    speculator = Speculator([counting, sure], Cost(10, 1.0))
    speculator.draft(streams(1), most_tokens=64)
    assert sure.asked == 1
    assert speculator._asked[0].source.name == expected


def test_bad_luck_at_first_is_no_verdict() -> None:
    sure = SureDrafters(1)
    ticks = count()
    speculator = Speculator([sure], Cost(10, 0.5), clock_ms=lambda: 0.5 * next(ticks))
    asked = []
    for _ in range(200):
        speculator.draft(streams(1), most_tokens=64)
        speculator.judge(0, 1, ())
        asked.append(sure.asked)
    assert asked[11] == 12
    assert asked[-1] < 40


def test_a_drafter_that_was_wrong_for_long_is_asked_again_soon() -> None:
    sure = SureDrafters(1)
    ticks = count()
    speculator = Speculator([sure], Cost(10, 0.5), clock_ms=lambda: 0.5 * next(ticks))
    asked: list[int] = []
    for step in range(1200):
        speculator.draft(streams(1), most_tokens=64)
        speculator.judge(0, 1, (0,) if step >= 600 else ())
        asked.append(sure.asked)
    assert asked[599] - asked[299] <= 20, "at most a hundredth of the time, and some asks for a change"
    assert asked[1199] - asked[1099] == 100, "its luck has changed"


class OneTokenDrafters(CountingDrafters):
    """Always proposes the same token, at a time of its own."""

    chances = (0.6,)

    def __init__(self, name: str, token: int, *, passes: int = 0, chance: float = 0.6) -> None:
        super().__init__(name)
        self.token, self.passes, self.chances = token, passes, (chance, 0.9)

    def open(self, opening: Opening) -> OneTokenDrafters:
        return self

    def propose(self, most: int) -> Proposal | None:
        self.asked += 1
        return Proposal([self.token] * min(most, 3), [0] * min(most, 3))


@pytest.mark.parametrize("beside", [0, 1, 4])
@pytest.mark.parametrize("passes", [0, 3])
def test_nobody_waits_for_ever_behind_one_whose_proposals_are_not_worth_it(passes: int, beside: int) -> None:
    """The good one is wrong for 150 steps, and right from then on."""
    good = OneTokenDrafters("good", 1, passes=passes)
    worthless = OneTokenDrafters("worthless", 2, chance=0.02)
    ticks = count()
    speculator = Speculator([worthless, good], Cost(10, 1.0), clock_ms=lambda: 0.1 * next(ticks))
    number_of = 1 + beside
    verified = []
    for step in range(600):
        chosen = speculator.draft(streams(number_of), most_tokens=64)
        for number, tokens in chosen.items():
            assert isinstance(tokens, tuple)
            right = tokens[0] == 1 and step >= 150
            if right and number == 0:
                verified.append(step)
            speculator.judge(number, len(tokens), range(len(tokens)) if right else ())
    assert verified[0] < 150 + 128 + 8, "it is tried, in due time"
    assert verified[-100:] == list(range(500, 600)), "and preferred when it is known"


def test_who_is_better_by_far_is_found_behind_one_whose_drafts_pay() -> None:
    good = OneTokenDrafters("good", 1, chance=0.05)
    speculator = Speculator([OneTokenDrafters("fair", 2), good], Cost(10, 1.0))
    verified = []
    for step in range(1200):
        (tokens,) = speculator.draft(streams(1), most_tokens=64).values()
        assert isinstance(tokens, tuple)
        if tokens[0] == 1:
            verified.append(step)
        speculator.judge(0, len(tokens), range(len(tokens) if tokens[0] == 1 else 1))
    assert verified[0] >= 900, "a try costs a draft that would have paid"
    assert len(verified) > 2


def test_one_slow_answer_of_a_drafter_does_not_make_it_dear() -> None:
    now_ms = [0.0]
    took_ms = [0.5]

    def clock_ms() -> float:
        now_ms[0] += took_ms[0]
        return now_ms[0]

    sure = SureDrafters(1)
    speculator = Speculator([sure], Cost(10, 0.5), clock_ms=clock_ms)
    for step in range(40):
        took_ms[0] = 50.0 if step == 7 else 0.5
        speculator.draft(streams(1), most_tokens=64)
        speculator.judge(0, 1, (0,))
    assert sure.asked == 40
