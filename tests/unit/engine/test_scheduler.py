"""Plans: what they say, that they are values, and that they replay without a model."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from tests.fakes import GreedySampler, InstantInterpreter, ScriptedInterpreter

from stoker.api.errors import EngineError, RequestError
from stoker.api.request import SamplingParams
from stoker.cache.blocks import BlockPool
from stoker.cache.radix import RadixTree
from stoker.engine import Chunk, Engine, EngineOptions, Scheduler, SchedulerOptions, Sequence, StepPlan
from stoker.engine.journal import Entry, Stepped
from stoker.engine.replay import RecordedEngine, replay
from stoker.engine.sequence import Standing
from stoker.sampling import ReferenceSampler, SampleResult, pack_params


def sequences(prompts: list[int], *, max_tokens: int = 40, n: int = 1) -> list[list[Sequence]]:
    made, number = [], 0
    params = SamplingParams(max_tokens=max_tokens, n=n)
    for i, prompt in enumerate(prompts):
        choices = []
        for choice in range(n):
            ids = np.full(prompt, i, np.int32)  # no two prompts have a prefix in common
            packed = pack_params(params, choice, 10)
            limit = prompt + max_tokens
            choices.append(Sequence(number, str(i), choice, ids, packed, limit=limit, stop_ids=frozenset()))
            number += 1
        made.append(choices)
    return made


def scheduler(prompts: list[int], *, num_blocks: int = 1000, n: int = 1, **options: int) -> Scheduler:
    pool = BlockPool(num_blocks)
    made = Scheduler(pool, RadixTree(pool), SchedulerOptions(**options))
    for choices in sequences(prompts, n=n):
        made.add(choices)
    return made


def commit(made: Scheduler, plan: StepPlan) -> None:
    rows = sum(chunk.rows for chunk in plan.chunks)
    none = np.empty((rows, 0), np.int32)
    made.commit(
        plan, SampleResult(np.ones(rows, np.int32), np.zeros(rows, np.float32), none, none.astype(np.float32))
    )


def steps(made: Scheduler, count: int) -> list[tuple[tuple[int, ...], ...]]:
    found = []
    for _ in range(count):
        plan = made.plan()
        found.append(tuple(tuple(chunk[:4]) for chunk in plan.chunks))
        commit(made, plan)
    return found


def test_running_sequences_come_before_waiting_ones() -> None:
    found = steps(scheduler([20, 100, 30], batch_tokens=64, max_sequences=8), 4)
    assert found == [
        ((0, 0, 20, 1), (1, 0, 44, 0)),
        ((0, 20, 1, 1), (1, 44, 56, 1), (2, 0, 7, 0)),
        ((0, 21, 1, 1), (1, 100, 1, 1), (2, 7, 23, 1)),
        ((0, 22, 1, 1), (1, 101, 1, 1), (2, 30, 1, 1)),
    ]


def test_a_chunk_may_be_capped_so_that_others_need_not_wait() -> None:
    found = steps(scheduler([100, 5], batch_tokens=64, chunk_tokens=16, max_sequences=8), 2)
    assert found == [((0, 0, 16, 0), (1, 0, 5, 1)), ((1, 5, 1, 1), (0, 16, 16, 0))]


def test_no_more_than_max_sequences_run() -> None:
    made = scheduler([5] * 10, max_sequences=3)
    steps(made, 1)
    assert (made.running, made.waiting) == (3, 7)


def test_choices_wait_for_the_prompt_and_then_share_it() -> None:
    found = steps(scheduler([40], n=3, batch_tokens=32, max_sequences=8), 3)
    assert found[0] == ((0, 0, 32, 0),)
    assert found[1] == ((0, 32, 8, 1),)
    assert found[2] == ((0, 40, 1, 1), (1, 39, 1, 1), (2, 39, 1, 1))


def test_the_least_progressed_loses_its_blocks_and_the_latest_of_equals() -> None:
    made = scheduler([16, 16, 16], num_blocks=6)
    first = made.plan()
    assert [chunk.number for chunk in first.chunks] == [0, 1, 2]
    commit(made, first)
    for _ in range(16):
        commit(made, made.plan())
    # All three hold 2 blocks and want a third; the latest goes, and one of its blocks stays free.
    plan = made.plan()
    assert plan.preempted == (2,)
    assert [chunk.number for chunk in plan.chunks] == [0, 1]
    assert (made.running, made.waiting, made.preemptions) == (2, 1, 1)


def test_nobody_overtakes_a_sequence_that_does_not_fit() -> None:
    made = scheduler([64, 100, 5], num_blocks=9)
    plan = made.plan()
    assert [chunk.number for chunk in plan.chunks] == [0]
    assert made.waiting == 2


def test_a_plan_is_a_value() -> None:
    plan = scheduler([5]).plan()
    assert plan == StepPlan(1, (Chunk(0, 0, 5, 1),), (), (), 512)
    assert hash(plan) == hash(StepPlan(1, (Chunk(0, 0, 5, 1),), (), (), 512))
    with pytest.raises(dataclasses.FrozenInstanceError):
        plan.step = 2  # type: ignore[misc]


def test_a_journal_replays_without_a_model() -> None:
    """Same requests and same sampled tokens: the same plans, preemptions and copies included."""
    journal: list[Entry] = []
    options = EngineOptions(300, scheduler=SchedulerOptions(batch_tokens=48, max_sequences=8))
    engine = Engine(ScriptedInterpreter(num_blocks=13), ReferenceSampler(), options, journal=journal.append)
    for i, (prompt, n) in enumerate([(40, 3), (20, 1), (70, 1), (20, 2)]):
        params = SamplingParams(max_tokens=40, n=n)
        standing = Standing(priority=i % 2, tenant="ab"[i % 2])
        engine.add(str(i), [i] * prompt, params, seed=i, standing=standing)
    engine.add_score("score", range(50), top_k=2)
    steps = 0
    while engine.busy:
        engine.step()
        engine.observe(2.0 + 0.1 * steps)
        steps += 1
        if steps == 9:
            engine.abort("1")
        if steps == 14 and (choices := engine.open_choices("3")):
            engine.stop(choices[0], "a stop string")
    assert engine.scheduler.preemptions > 0
    recorded = RecordedEngine(300, 13, 300, options)
    plans = list(replay(recorded, journal))
    assert len(plans) == steps
    assert any(plan.copies for plan in plans)
    assert len({plan.budget_tokens for plan in plans}) > 1

    first = next(i for i, entry in enumerate(journal) if isinstance(entry, Stepped))
    step = journal[first]
    assert isinstance(step, Stepped)
    journal[first] = dataclasses.replace(step, plan=dataclasses.replace(step.plan, preempted=(7,)))
    with pytest.raises(EngineError, match="in the replay"):
        list(replay(recorded, journal))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"batch_tokens": 0}, "batch_tokens is 0; allowed: a whole number from 1"),
        ({"chunk_tokens": 0}, "chunk_tokens is 0"),
        ({"batch_tokens": 10}, "batch_tokens is 10, but max_sequences is 64"),
        ({"logit_rows": 10}, "logit_rows is 10, but max_sequences is 64"),
    ],
)
def test_options_that_cannot_work_are_refused(options: dict[str, int], says: str) -> None:
    with pytest.raises(RequestError, match=says):
        SchedulerOptions(**options)


def test_a_failed_step_drops_all_requests_and_frees_their_blocks() -> None:
    interpreter = ScriptedInterpreter()
    engine = Engine(interpreter, ReferenceSampler(), EngineOptions(1000))
    for i in range(3):
        engine.add(str(i), [1] * 40, SamplingParams(max_tokens=50, n=2), seed=i)
    interpreter.fail_at_run = 5
    for _ in range(5):
        engine.step()
    with pytest.raises(EngineError, match="step 6 of 6 tokens failed: scripted failure"):
        engine.step()
    assert not engine.busy
    engine.check()
    engine.add("0", [1] * 40, SamplingParams(max_tokens=3), seed=1)
    while engine.busy:
        engine.step()
    engine.check()


def test_a_long_run_of_decode_steps_keeps_its_batch_right() -> None:
    """64 sequences of different lengths, hundreds of steps: the gathered block tables match the tables."""
    engine = Engine(InstantInterpreter(), GreedySampler(), EngineOptions(8192))
    for i in range(64):
        engine.add(str(i), [1] * (i + 1), SamplingParams(max_tokens=300, ignore_eos=True), seed=i)
    while engine.busy:
        engine.step()
        engine.pool.check()
    engine.check()
