"""Any number of tenants and of sharers: a step's own cost stays bounded, and nothing else changes."""

from __future__ import annotations

import pytest
from tests.fakes import GreedySampler, InstantInterpreter, ScriptedInterpreter

from stoker.api.request import SamplingParams
from stoker.cache.radix import RadixTree
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.journal import Entry
from stoker.engine.replay import RecordedEngine, replay
from stoker.engine.sequence import Standing
from stoker.engine.waiting import _MOST_IDLE
from stoker.sampling import ReferenceSampler

PARAMS = SamplingParams(max_tokens=2, temperature=0, ignore_eos=True)


def engine(num_blocks: int = 4096, **options: int) -> Engine:
    made = EngineOptions(4000, scheduler=SchedulerOptions(**options))
    return Engine(InstantInterpreter(num_blocks=num_blocks), GreedySampler(), made)


def test_tenants_that_come_once_are_forgotten() -> None:
    """Under load that never ends all are ahead of those that wait: none is forgotten for being behind."""
    made = engine()
    queue = made.scheduler._waiting
    for number in range(3 * _MOST_IDLE):
        made.add(
            str(number), [number % 64, number // 64, *range(20)], PARAMS, seed=1,
            standing=Standing(tenant=f"user {number}"),
        )  # fmt: skip
        if number > 40:
            made.step()
    assert len(queue._tenants) + len(queue._idle) <= _MOST_IDLE + 100
    while made.busy:
        made.step()
    made.check()
    assert not queue._tenants


def test_a_tenant_that_left_a_moment_ago_is_not_new() -> None:
    made = engine(max_sequences=1)
    queue = made.scheduler._waiting
    for request in ("first", "second"):
        made.add("behind", [1, 2], PARAMS, seed=1, standing=Standing(tenant="b", priority=9))
        made.add(request, [3] * 40, PARAMS, seed=1, standing=Standing(tenant="a"))
        while made.open_choices(request):
            made.step()
        made.abort("behind")  # never had a turn: what "a" was given is ahead of it
    assert queue.served("a") == 41 + 9  # the second time two blocks of the prompt were cached


def test_sharers_of_an_uncomputed_prefix_do_not_hold_a_step_up(monkeypatch: pytest.MonkeyPatch) -> None:
    made = engine()
    shared = [number % 60 for number in range(300)]
    for number in range(500):
        made.add(str(number), [*shared, number % 60, number // 60], PARAMS, seed=1)
    looked_up = 0
    really_match = RadixTree.match

    def match(*arguments: object) -> object:
        nonlocal looked_up
        looked_up += 1
        return really_match(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(RadixTree, "match", match)
    made.step()
    assert looked_up < 200
    monkeypatch.undo()
    while made.busy:
        made.step()
    # The first one's prompt; of each other one the tail that is no whole block, at most.
    assert made.stats().prefix_hits_tokens >= 499 * 288


def test_what_goes_on_elsewhere_has_not_more_cached_than_its_prompt() -> None:
    made = Engine(ScriptedInterpreter(), ReferenceSampler(), EngineOptions(2000))
    params = SamplingParams(max_tokens=60, temperature=0)
    made.add("a", range(20), params, seed=1)
    said = []
    while made.busy:
        said += [output.token_id for output in made.step()]
    made.add("b", range(20), params, seed=1, resume=(tuple(said[:50]),))  # type: ignore[arg-type]
    (sequence,) = made.open_choices("b")
    while made.busy:
        made.step()
    assert sequence.cached == 20


def test_a_journal_replays_though_idle_steps_were_asked_for() -> None:
    journal: list[Entry] = []
    options = EngineOptions(300)
    made = Engine(ScriptedInterpreter(), ReferenceSampler(), options, journal=journal.append)
    for request in ("a", "b"):
        assert made.step() == []
        made.add(request, range(20), PARAMS, seed=1)
        while made.busy:
            made.step()
    assert len(list(replay(RecordedEngine(300, 256, 300, options), journal))) == 4
