"""Who goes first: tenants in turn, priorities, deadlines, known prefixes, and nobody waits for ever."""

from __future__ import annotations

import pytest
from tests.fakes import ScriptedInterpreter

from stoker.api.errors import QueueFullError
from stoker.api.request import SamplingParams
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.sequence import Standing
from stoker.sampling import ReferenceSampler


def engine(num_blocks: int = 512, **options: int) -> Engine:
    made = EngineOptions(4000, scheduler=SchedulerOptions(**options))
    return Engine(ScriptedInterpreter(num_blocks=num_blocks), ReferenceSampler(), made)


def add(made: Engine, name: str, prompt: list[int], *, max_tokens: int = 4, **standing: object) -> None:
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    made.add(name, prompt, params, seed=1, standing=Standing(**standing))  # type: ignore[arg-type]


def finish_order(made: Engine) -> list[str]:
    order = []
    while made.busy:
        for output in made.step():
            if output.sequence.finish_reason is not None:
                order.append(output.sequence.request_id)
    made.check()
    return order


def test_tenants_share_by_tokens_however_many_requests_each_has() -> None:
    made = engine(batch_tokens=32, max_sequences=1)
    for i in range(20):
        add(made, f"greedy-{i}", [i] * 40, tenant="greedy")
    for i in range(4):
        add(made, f"modest-{i}", [100 + i] * 40, tenant="modest")
    order = finish_order(made)
    # One sequence at a time and equal sizes: they alternate until the modest tenant is done.
    assert [name.split("-")[0] for name in order[:8]].count("modest") == 4


def test_a_tenant_that_comes_late_has_saved_nothing_up() -> None:
    made = engine(batch_tokens=32, max_sequences=1)
    for i in range(12):
        add(made, f"early-{i}", [i] * 40, tenant="early")
    for _ in range(30):
        made.step()
    for i in range(6):
        add(made, f"late-{i}", [100 + i] * 40, tenant="late")
    order = finish_order(made)
    first = [name.split("-")[0] for name in order if name.startswith(("late", "early"))][-12:]
    assert first[:6].count("late") in {3, 4}  # in turns from now on, not all at once


def test_priority_goes_before_arrival_and_deadline_before_prefix() -> None:
    made = engine(batch_tokens=64, max_sequences=1)
    add(made, "warm", list(range(64)))
    finish_order(made)
    add(made, "running", [7] * 20)
    made.step()
    add(made, "last", [9] * 20, priority=1)
    add(made, "known", list(range(64)))
    add(made, "due", [8] * 20, deadline=5)
    add(made, "urgent", [6] * 20, priority=-1)
    assert finish_order(made) == ["running", "urgent", "due", "known", "last"]


def test_the_longest_known_prefix_goes_first() -> None:
    made = engine(batch_tokens=64, max_sequences=1)
    add(made, "warm", list(range(128)))
    finish_order(made)
    add(made, "running", [7] * 20)
    made.step()
    add(made, "none", [9] * 128)
    add(made, "half", [*range(64), *[5] * 64])
    add(made, "whole", list(range(128)))
    assert finish_order(made) == ["running", "whole", "half", "none"]


def test_who_waits_long_enough_goes_before_known_prefixes() -> None:
    """A stream of requests with a known prefix does not starve one without."""
    made = engine(batch_tokens=64, max_sequences=1)
    add(made, "warm", list(range(256)))
    finish_order(made)
    add(made, "first", list(range(256)))
    made.step()
    add(made, "unknown", [9] * 40)
    order: list[str] = []
    for i in range(60):  # two come for each that can be answered
        add(made, f"known-{i}", [*range(256), i])
        for _ in range(2):
            order += [o.sequence.request_id for o in made.step() if o.sequence.finish_reason]
    assert "unknown" in order
    assert order.index("unknown") > 3


def test_low_priority_is_not_for_ever() -> None:
    made = engine(batch_tokens=64, max_sequences=1)
    add(made, "low", [9] * 40, priority=1)
    order: list[str] = []
    for i in range(400):
        add(made, f"high-{i}", [i % 200] * 20)
        for _ in range(4):
            order += [o.sequence.request_id for o in made.step() if o.sequence.finish_reason]
    assert "low" in order


def test_low_priority_is_not_for_ever_behind_any_number_of_others() -> None:
    """More than are compared at once stand before it all the time."""
    made = engine(batch_tokens=64, max_sequences=1)
    add(made, "low", [9] * 40, priority=1)
    for i in range(100):
        add(made, f"first-{i}", [i % 200] * 20)
    order: list[str] = []
    for i in range(250):
        add(made, f"high-{i}", [i % 200] * 20)
        finished: list[str] = []
        while not finished:
            finished = [o.sequence.request_id for o in made.step() if o.sequence.finish_reason]
        order += finished
    assert "low" in order


def test_sharers_of_an_uncomputed_prefix_wait_for_the_first() -> None:
    made = engine(batch_tokens=64, max_sequences=8)
    prefix = list(range(192))
    for i in range(4):
        add(made, str(i), [*prefix, i, i, i])
    computed = 0
    while made.busy:
        plan = made.step_planned(64)
        computed += plan.tokens
    # The prefix once, then each one's own three and what it generates but the last.
    assert computed == 192 + 4 * 3 + 4 * 3
    assert made.stats().prefix_hits_tokens == 3 * 192


def test_a_full_queue_refuses_and_loses_nothing() -> None:
    made = engine(batch_tokens=64, max_sequences=1, max_waiting=3)
    for i in range(3):
        add(made, str(i), [i] * 20)
    with pytest.raises(QueueFullError, match="3 sequences wait; allowed: 3"):
        add(made, "more", [1] * 20)
    assert sorted(finish_order(made)) == ["0", "1", "2"]
    add(made, "more", [1] * 20)
    assert finish_order(made) == ["more"]


def test_a_queue_is_bounded_in_tokens_too() -> None:
    made = engine(batch_tokens=64, max_sequences=1, max_waiting_tokens=100)
    add(made, "large", [1] * 200)  # alone it may always wait
    with pytest.raises(QueueFullError, match="200 tokens wait and 20 more would; allowed: 100"):
        add(made, "small", [2] * 20)
    finish_order(made)


def test_preemption_takes_the_lowest_priority_first() -> None:
    made = engine(num_blocks=8, batch_tokens=64, max_sequences=4)
    add(made, "low", [1] * 30, max_tokens=60, priority=5)
    add(made, "high", [2] * 20, max_tokens=60)
    order = finish_order(made)
    assert order[0] == "high"
    assert made.scheduler.preemptions > 0
