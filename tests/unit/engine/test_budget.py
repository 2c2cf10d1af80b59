"""The cost of a step and what a step may take; the clock is the test's."""

from __future__ import annotations

import pytest

from stoker.api.errors import RequestError
from stoker.engine.budget import BudgetOptions, StepCost, TokenBudget
from stoker.engine.plan import Chunk, StepPlan


def plan(streams: int, context: int, prefill: int = 0) -> StepPlan:
    chunks = [Chunk(i, context - 1, 1, 1) for i in range(streams)]
    if prefill:
        chunks.append(Chunk(streams, 0, prefill, 0))
    return StepPlan(1, tuple(chunks), (), ())


def machine_ms(made: StepPlan) -> float:
    context = sum(chunk.end * chunk.tokens for chunk in made.chunks)
    rest = made.tokens % 16
    computed = made.tokens - rest + min(width for width in (0, 1, 2, 4, 6, 8, 12, 16) if width >= rest)
    return 2.0 + 0.5 * computed + 0.25 * context / 1024


def trained() -> StepCost:
    cost = StepCost()
    for i in range(60):
        made = plan(1 + i % 32, 100 + 37 * i % 2000, 0 if i % 3 else 64)
        cost.observe(made, machine_ms(made))
    return cost


def test_the_fit_finds_the_machine() -> None:
    cost = trained()
    for made in (plan(1, 50), plan(32, 1000), plan(8, 300, 128)):
        context = sum(chunk.end * chunk.tokens for chunk in made.chunks)
        assert cost.predict_ms(made.tokens, context) == pytest.approx(machine_ms(made), rel=0.02)


def test_a_thousand_plain_steps_do_not_make_it_forget_what_more_tokens_cost() -> None:
    cost = trained()
    for i in range(1000):
        made = plan(1, 100 + i)
        cost.observe(made, machine_ms(made))
    made = plan(1, 500, 7)
    context = sum(chunk.end * chunk.tokens for chunk in made.chunks)
    assert cost.predict_ms(made.tokens, context) == pytest.approx(machine_ms(made), rel=0.05)


def test_without_streams_or_experience_a_step_takes_all_it_may() -> None:
    assert TokenBudget(512, BudgetOptions(), trained()).tokens(0, 0, 1) == 512
    assert TokenBudget(512, BudgetOptions()).tokens(32, 3200, 1) == 512


def test_streams_are_slowed_twofold_at_most() -> None:
    cost = trained()
    tokens = TokenBudget(512, BudgetOptions(), cost).tokens(32, 32 * 100, 1)
    alone = cost.predict_ms(32, 3200)
    assert tokens > 32
    assert tokens % 32 == 0
    assert cost.predict_ms(tokens, 3200 + (tokens - 32) * 100) <= 2 * alone + 0.5 * 32


def test_many_prompts_beside_few_streams_get_more() -> None:
    budget = TokenBudget(512, BudgetOptions(), trained())
    found = [budget.tokens(4, 400, prompts) for prompts in (1, 4, 16, 60)]
    assert found == sorted(found)
    assert found[0] == 32  # one tile for each of two threads
    assert found[3] > 200


@pytest.mark.parametrize(("target", "least", "most"), [(20.0, 64, 64), (60.0, 96, 128), (1.0, 64, 64)])
def test_a_target_is_kept_where_it_can_be(target: float, least: int, most: int) -> None:
    """At 1 ms not even the streams alone fit: a prompt still moves by two tiles a step."""
    tokens = TokenBudget(512, BudgetOptions(target), trained()).tokens(32, 3200, 5)
    assert least <= tokens <= most


@pytest.mark.parametrize("target", [0, -1, float("nan"), 1e12])
def test_targets_that_mean_nothing_are_refused(target: float) -> None:
    with pytest.raises(RequestError, match="target_itl_ms"):
        BudgetOptions(target)


@pytest.mark.parametrize(("streams", "grows"), [(1, True), (1, False), (32, True)])
def test_steps_of_one_kind_for_long_stay_known(streams: int, grows: bool) -> None:
    """One stream alone: as many tokens in each step as steps, so no line; it must not end the engine."""
    cost = StepCost()
    for step in range(6000):
        made = plan(streams, 100 + step if grows else 100)
        cost.observe(made, machine_ms(made))
    context = sum(chunk.end for chunk in made.chunks)
    assert cost.predict_ms(made.tokens, context) == pytest.approx(machine_ms(made), rel=0.02)
