"""What a decode step takes by its size, learnt on machines with a known cost."""

from __future__ import annotations

import pytest

from stoker.engine.decode_cost import DecodeCost, tiled
from stoker.engine.plan import Chunk, StepPlan

FLAT = {1: 5.0, 2: 5.0, 4: 5.5, 8: 7.5, 12: 9.5, 16: 11.5}
STEEP = {1: 5.0, 2: 9.0, 4: 17.0, 8: 33.0, 12: 49.0, 16: 65.0}  # no tile at all: each token costs the same


def plan(tokens: int, *, prompt: int = 0) -> StepPlan:
    """One stream with a draft of `tokens` - 1, and a prompt beside it if wanted."""
    chunks = [Chunk(0, 100, tokens, tokens, tuple(range(tokens - 1)))]
    if prompt:
        chunks.append(Chunk(1, 0, prompt, 1))
    return StepPlan(0, tuple(chunks), (), ())


def test_sizes_are_those_of_the_kernels_tiles() -> None:
    assert [tiled(n) for n in (0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 13, 15, 16, 17, 19, 32, 33)] == [
        0, 1, 2, 4, 4, 6, 6, 8, 8, 12, 16, 16, 16, 17, 20, 32, 33,
    ]  # fmt: skip


@pytest.mark.parametrize("machine", [FLAT, STEEP])
def test_what_was_seen_is_predicted(machine: dict[int, float]) -> None:
    cost = DecodeCost()
    for _ in range(30):
        for size, elapsed_ms in machine.items():
            cost.observe(plan(size), elapsed_ms)
    for size, elapsed_ms in machine.items():
        assert cost.predict_ms(size) == pytest.approx(elapsed_ms, rel=0.1)


def test_four_tokens_are_tried_after_plain_steps_and_dear_ones_are_soon_known() -> None:
    cost = DecodeCost()
    for _ in range(1000):
        cost.observe(plan(1), 5.0)
    assert cost.predict_ms(4) < 1.2 * 5.0
    for _ in range(8):
        cost.observe(plan(4), 17.0)
    assert cost.predict_ms(4) > 2.5 * cost.predict_ms(1)
    assert cost.predict_ms(8) > cost.predict_ms(4), "what is next to it is dearer too"


def test_a_slow_phase_does_not_make_the_sizes_dear_that_fall_into_it() -> None:
    cost = DecodeCost()
    for number in range(400):
        slow = 1.4 if number % 100 >= 50 else 1.0
        size = 4 if slow > 1 and number % 2 else 1  # drafts only in slow phases
        cost.observe(plan(size), FLAT[size] * slow)
    assert cost.predict_ms(4) / cost.predict_ms(1) == pytest.approx(1.1, abs=0.05)


def test_a_size_that_had_no_luck_is_not_given_up_for_good() -> None:
    """Its first steps were slow, so it is not asked for: what it takes is guessed anew after a while."""
    cost = DecodeCost()
    for _ in range(20):
        cost.observe(plan(2), 5.0)
    for _ in range(4):
        cost.observe(plan(4), 1.7 * 5.5)
    assert cost.predict_ms(4) > 1.4 * 5.0
    for _ in range(128):
        cost.observe(plan(2), 5.0)
    assert cost.predict_ms(4) > 1.4 * 5.0
    cost.observe(plan(2), 5.0)
    assert cost.predict_ms(4) < 1.2 * 5.0
    assert cost.predict_ms(2) == pytest.approx(5.0, rel=0.05)


def test_one_outlier_changes_little() -> None:
    cost = DecodeCost()
    for _ in range(50):
        cost.observe(plan(1), 5.0)
    cost.observe(plan(2), 500.0)
    assert cost.predict_ms(1) < 5.3
    assert cost.predict_ms(2) < 15.0


def test_steps_with_a_prompt_say_nothing() -> None:
    cost = DecodeCost()
    for _ in range(8):
        cost.observe(plan(1, prompt=64), 80.0)
    assert not cost.known
    for _ in range(4):
        cost.observe(plan(1), 5.0)
    assert cost.known
    assert cost.predict_ms(1) == pytest.approx(5.0, rel=1e-3)


def test_many_streams_with_a_draft_are_another_matter_than_as_many_tokens_without() -> None:
    cost = DecodeCost()
    alone = StepPlan(0, tuple(Chunk(i, 100, 1, 1) for i in range(20)), (), ())
    beside = StepPlan(0, (*alone.chunks[:18], Chunk(18, 100, 2, 2, (7,))), (), ())
    for _ in range(50):
        cost.observe(alone, 10.0)
    assert cost.predict_ms(20, streams=19) == pytest.approx(10.0, rel=0.01), "nothing is known of drafts"
    for _ in range(2):
        cost.observe(beside, 16.0)
    assert cost.predict_ms(20, streams=19) > 14.5
    assert cost.predict_ms(22, streams=19) > 14.5, "nor is another draft cheaper"
    assert cost.predict_ms(20, streams=20) < 11.0
