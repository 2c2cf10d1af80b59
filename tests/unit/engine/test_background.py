"""What runs in the background takes part in steps only while nothing else is open, and loses nothing."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import ScriptedInterpreter

from stoker.api.request import SamplingParams
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.sequence import Standing
from stoker.sampling import ReferenceSampler

BACKGROUND = Standing(background=True)


def new_engine(num_blocks: int = 40, **scheduler: int) -> Engine:
    return Engine(
        ScriptedInterpreter(vocabulary=50, num_blocks=num_blocks),
        ReferenceSampler(),
        EngineOptions(600, frozenset({49}), SchedulerOptions(**scheduler)),
    )


def add(engine: Engine, name: str, tokens: int, *, background: bool = False, max_tokens: int = 20) -> None:
    standing = BACKGROUND if background else Standing()
    params = SamplingParams(max_tokens=max_tokens, ignore_eos=True)
    engine.add(name, [len(name) + i % 40 for i in range(tokens)], params, seed=1, standing=standing)


def test_it_stands_still_while_anything_else_is_open() -> None:
    engine = new_engine(max_sequences=4, batch_tokens=32)
    add(engine, "batch", 10, background=True, max_tokens=40)
    for _ in range(5):
        assert [o.sequence.request_id for o in engine.step()] == ["batch"]
    add(engine, "a", 3, max_tokens=6)
    add(engine, "another batch", 3, background=True, max_tokens=4)
    seen = []
    while engine.open_choices("a"):
        seen += [o.sequence.request_id for o in engine.step()]
    assert seen == ["a"] * 6
    seen = []
    while engine.busy:
        seen += [o.sequence.request_id for o in engine.step()]
    assert seen.count("batch") == 35
    assert seen.count("another batch") == 4
    engine.check()


def test_its_places_and_blocks_are_for_the_asking() -> None:
    engine = new_engine(num_blocks=8, max_sequences=2, batch_tokens=64)
    add(engine, "batch 1", 50, background=True)
    add(engine, "batch 2", 40, background=True)
    engine.step()
    engine.step()
    assert engine.scheduler.running == 2
    add(engine, "a", 60)
    add(engine, "b", 30)
    seen = set()
    while engine.open_choices("a") or engine.open_choices("b"):
        seen |= {o.sequence.request_id for o in engine.step()}
        engine.check()
    assert seen == {"a", "b"}
    while engine.busy:
        engine.step()
    engine.check()
    assert engine.pool.held == 0


def test_its_steps_are_short() -> None:
    engine = new_engine(batch_tokens=512, max_sequences=8)
    add(engine, "batch", 400, background=True, max_tokens=2)
    engine.step()
    assert engine.scheduler.load == (0, 0, 1)
    assert engine.stats().blocks_held == 128 // 16
    add(engine, "a", 300, max_tokens=2)
    engine.step()
    assert [c.tokens for c in engine._last_plan.chunks] == [300]  # type: ignore[union-attr]


@settings(max_examples=40, deadline=None)
@given(
    requests=st.lists(
        st.tuples(st.integers(1, 70), st.integers(1, 20), st.booleans(), st.integers(0, 20)),
        min_size=1,
        max_size=8,
    ),
    shape=st.tuples(st.integers(7, 40), st.sampled_from([8, 17, 64]), st.integers(1, 5)),
)
def test_answers_are_the_same_and_all_come(
    requests: list[tuple[int, int, bool, int]], shape: tuple[int, int, int]
) -> None:
    num_blocks, batch_tokens, max_sequences = shape
    engine = new_engine(num_blocks, batch_tokens=batch_tokens, max_sequences=max_sequences)
    answers: dict[str, list[int | None]] = {}
    waiting = dict(enumerate(requests))
    step = 0
    while waiting or engine.busy:
        for number, (tokens, max_tokens, background, arrives) in list(waiting.items()):
            if arrives <= step:
                # Prefixes are shared between both kinds: one must never wait for one that stands still.
                add(
                    engine,
                    "p" * (1 + number % 2) + str(number),
                    tokens,
                    background=background,
                    max_tokens=max_tokens,
                )
                del waiting[number]
        for output in engine.step():
            answers.setdefault(output.sequence.request_id, []).append(output.token_id)
        engine.check()
        step += 1
        assert step < 5000, "the engine makes no progress"
    assert engine.pool.held == 0
    for number, (tokens, max_tokens, _, _) in enumerate(requests):
        name = "p" * (1 + number % 2) + str(number)
        lone = new_engine(num_blocks)
        add(lone, name, tokens, max_tokens=max_tokens)
        expected = []
        while lone.busy:
            expected += [o.token_id for o in lone.step()]
        assert answers[name] == expected
