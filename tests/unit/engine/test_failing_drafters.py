"""A drafter that fails takes no answer with it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.drafts import FreeCost
from tests.fakes import ScriptedInterpreter

from stoker.api import SamplingParams
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.sequence import Standing
from stoker.sampling import ReferenceSampler
from stoker.speculation import Drafters, Opening, Proposal

VOCABULARY = 50


class Failing:
    """Proposes a few times, then raises, also when it is closed."""

    name = "failing"
    chances = (0.5,)
    passes = 0
    feature_tokens = 0

    def __init__(self, good: int) -> None:
        self.good = good
        self.opened: list[Opening] = []

    def open(self, opening: Opening) -> Failing:
        self.opened.append(opening)
        return self

    def extend(self, token_ids: Sequence[int]) -> None:
        """Not wanted."""

    def propose(self, most: int) -> Proposal | None:
        self.good -= 1
        if self.good < 0:
            raise MemoryError("no room for a guess")
        return Proposal([7] * min(most, 3), [0] * min(most, 3))

    def close(self) -> None:
        if self.good < 0:
            raise RuntimeError("broken")


def engine_with(drafters: Sequence[Drafters]) -> Engine:
    engine = Engine(
        ScriptedInterpreter(vocabulary=VOCABULARY, num_blocks=40),
        ReferenceSampler(),
        EngineOptions(2000, frozenset({49}), SchedulerOptions()),
        drafters=drafters,
    )
    if engine._speculator is not None:
        engine._speculator._cost = FreeCost()
    return engine


def answers(engine: Engine, tenants: Sequence[str] = ("", "")) -> dict[str, list[int | None]]:
    for number, tenant in enumerate(tenants):
        params = SamplingParams(max_tokens=40)
        engine.add(str(number), [3, 1, 4, 1, 5], params, seed=number, standing=Standing(tenant=tenant))
    found: dict[str, list[int | None]] = {}
    while engine.busy:
        for output in engine.step():
            found.setdefault(output.sequence.request_id, []).extend((output.token_id, *output.written))
        engine.check()
    assert engine.pool.held == 0
    return found


@pytest.mark.parametrize("good", [0, 2, 7])
def test_answers_go_on_without_drafts(good: int, caplog: pytest.LogCaptureFixture) -> None:
    engine = engine_with([Failing(good)])
    assert answers(engine) == answers(engine_with([]))
    assert "a drafter failed" in caplog.text
    drafted = engine.stats().drafted_tokens
    assert (drafted > 0) == (good > 0)
    assert answers(engine) == answers(engine_with([])), "and those that come later"
    assert engine.stats().drafted_tokens == drafted, "its counts stay"


def test_what_drafters_learn_is_a_tenants_own() -> None:
    drafters = Failing(1000)
    engine = engine_with([drafters])
    answers(engine, ("ada", "bruno", "ada"))
    namespaces = [opening.namespace for opening in drafters.opened]
    assert len(namespaces) == 3
    assert len(set(namespaces)) == 2


def test_a_prediction_ends_the_rest_of_drafting() -> None:
    drafters = Failing(good=1000)
    engine = engine_with([drafters])
    speculator = engine._speculator
    assert speculator is not None
    greedy = SamplingParams(temperature=0, max_tokens=12)
    for prediction, opened in (((), 0), ((7, 7, 7), 1)):
        for _ in range(64):
            speculator.learn_profit(1, -1.0)  # what others' drafts lost
        standing = Standing(prediction=prediction)
        engine.add(str(opened), [1, 2, 3], greedy, seed=0, standing=standing)
        while engine.busy:
            engine.step()
        assert len(drafters.opened) == opened
