"""Drafting that loses is left for longer and longer, and taken up again when it pays."""

from __future__ import annotations

from stoker.speculation.profit import Profit


def drafted(profit: Profit, streams: int, saved: float, steps: int) -> int:
    """In how many of so many steps drafts were looked for, each of which saved so much."""
    count = 0
    for _ in range(steps):
        if profit.pays(streams):
            profit.learn(streams, saved)
            count += 1
    return count


def test_what_pays_goes_on() -> None:
    assert drafted(Profit(), 1, 0.01, 1000) == 1000


def test_what_loses_is_tried_less_and_less() -> None:
    profit = Profit()
    shares = [drafted(profit, 4, -0.05, 4096) / 4096 for _ in range(3)]
    assert shares[0] < 0.2
    assert shares[-1] < 0.08
    assert drafted(profit, 5, 0.1, 10) == 10, "other numbers of streams are another matter"
    drafted(profit, 4, 0.1, 1100)
    assert not profit.rests(4)
    assert drafted(profit, 4, 0.1, 500) == 500, "it pays again"
    assert drafted(profit, 4, -1.0, 32 + 64) <= 32, "and the first rest is short again"
    assert drafted(profit, 4, 0.1, 64) >= 32


def test_one_step_that_the_machine_held_up_is_no_loss() -> None:
    profit = Profit()
    profit.learn(1, -500.0)
    assert drafted(profit, 1, 0.1, 200) == 200


def test_many_streams_tell_sooner_and_one_less_is_no_new_try() -> None:
    profit = Profit()
    assert drafted(profit, 32, -0.05, 64) == 8
    assert sum(drafted(profit, streams, -0.05, 4) for streams in range(31, 16, -1)) <= 8
    assert drafted(profit, 16, -0.05, 64) == 8, "half as many are"


def test_looking_for_drafts_that_nobody_has_is_no_reason_to_stop_looking() -> None:
    assert drafted(Profit(), 1, -0.015, 1000) == 1000
    assert drafted(Profit(), 1, -0.03, 1000) < 500
    assert drafted(Profit(), 8, -0.015, 1000) < 500, "of many streams the same share of a step is a loss"


def test_beside_many_streams_the_first_rest_is_longer() -> None:
    for streams, rest in ((1, 64), (4, 64), (8, 128), (16, 256), (32, 512), (200, 1024)):
        profit = Profit()
        tried = drafted(profit, streams, -1.0, 64)
        assert drafted(profit, streams, -1.0, rest - (64 - tried)) == 0
        assert profit.pays(streams)


def test_what_is_tried_anew_forgets_what_was_lost_but_not_how_often() -> None:
    profit = Profit()
    assert drafted(profit, 1, -1.0, 64 + 63) == 64
    assert profit.rests(1)
    profit.try_anew(2)  # another number
    profit.try_anew(9)  # nothing is known of it
    assert profit.rests(1)
    profit.try_anew(1)
    assert drafted(profit, 1, -1.0, 50) == 50
    profit.try_anew(1)
    assert drafted(profit, 1, -1.0, 64 + 127) == 64, "a whole try, and twice the rest"
    assert profit.rests(1)
    assert drafted(profit, 1, 0.1, 100) == 99
