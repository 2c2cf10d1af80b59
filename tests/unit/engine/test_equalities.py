"""E1 to E3 on a fake model: who else runs, how prompts are cut, and lost blocks change no token and no bit.

The model hashes the tokens it reads back through the block table (tests/fakes.py), and the sampler is the
real definition in numpy at temperature 1. 300 tokens are about equally likely at each step, so a wrong
history agrees with the right one over 20 tokens by a chance below 300^-20.
"""

from __future__ import annotations

import random
from dataclasses import dataclass, field

import pytest
from tests.fakes import ScriptedInterpreter

from stoker.api.request import SamplingParams
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.sampling import ReferenceSampler

Answer = tuple[list[int], list[float], list[tuple[tuple[int, float], ...]]]


@dataclass
class Ask:
    """One request of a workload."""

    prompt: list[int]
    params: SamplingParams
    seed: int


@dataclass
class Run:
    """What a workload gave: by (request, choice) token ids, logprobs, top-logprobs."""

    answers: dict[tuple[str, int], Answer] = field(default_factory=dict)
    engine: Engine | None = None


def run(asks: list[Ask], *, num_blocks: int = 4096, arrive_every: int = 0, **scheduler: int) -> Run:
    """Run all asks, one more after every `arrive_every` steps; the pool is checked after each step."""
    interpreter = ScriptedInterpreter(num_blocks=num_blocks)
    options = EngineOptions(2000, frozenset({299}), SchedulerOptions(**scheduler))
    engine = Engine(interpreter, ReferenceSampler(), options)
    waiting = [(str(i), ask) for i, ask in enumerate(asks)]
    found = Run(engine=engine)
    steps = 0
    while waiting or engine.busy:
        while waiting and (not arrive_every or steps % arrive_every == 0):
            name, ask = waiting.pop(0)
            engine.add(name, ask.prompt, ask.params, seed=ask.seed)
            if arrive_every:
                break
        for output in engine.step():
            key = (output.sequence.request_id, output.sequence.choice)
            answer = found.answers.setdefault(key, ([], [], []))
            answer[0].append(output.token_id)
            answer[1].append(output.logprob)
            answer[2].append(output.top)
        engine.check()
        steps += 1
    engine.check()
    assert engine.pool.available == num_blocks
    return found


def workload(count: int, *, seed: int, longest: int = 120) -> list[Ask]:
    """Prompts of lengths around the block size and others, every kind of sampling parameter among them."""
    draw = random.Random(seed)
    kinds = [
        {},
        {"temperature": 0.0},
        {"temperature": 0.8, "top_k": 40, "top_p": 0.9},
        {"min_p": 0.3, "repetition_penalty": 1.3},
        {"frequency_penalty": 0.7, "presence_penalty": 0.4, "logit_bias": {5: 3.0, 6: -100.0}},
        {"typical_p": 0.7, "min_tokens": 8},
    ]
    asks = []
    for i in range(count):
        length = draw.choice([1, 2, 15, 16, 17, 31, 32, 33, draw.randint(1, longest)])
        prompt = [draw.randrange(300) for _ in range(length)]
        params = SamplingParams(max_tokens=draw.randint(20, 40), logprobs=2, **kinds[i % len(kinds)])  # type: ignore[arg-type]
        asks.append(Ask(prompt, params, draw.randrange(1 << 64)))
    return asks


@pytest.fixture(scope="module")
def subject() -> Ask:
    prompt = [(i * i + 7) % 300 for i in range(75)]
    return Ask(prompt, SamplingParams(max_tokens=30, logprobs=3), seed=(1 << 64) - 1)


@pytest.fixture(scope="module")
def alone(subject: Ask) -> Answer:
    return run([subject]).answers["0", 0]


@pytest.mark.parametrize(("others", "arrive_every"), [(2, 0), (7, 0), (7, 3), (33, 1)])
def test_alone_is_as_among_others(subject: Ask, alone: Answer, others: int, arrive_every: int) -> None:
    asks = workload(others, seed=others)
    place = others // 2
    found = run([*asks[:place], subject, *asks[place:]], arrive_every=arrive_every)
    assert found.answers[str(place), 0] == alone


@pytest.mark.parametrize("chunk_tokens", [1, 5, 6, 7, 16, 17, 512])
def test_whole_is_as_in_chunks(subject: Ask, alone: Answer, chunk_tokens: int) -> None:
    assert run([subject], chunk_tokens=chunk_tokens).answers["0", 0] == alone
    asks = workload(5, seed=9)
    assert run([subject, *asks], chunk_tokens=chunk_tokens).answers == run([subject, *asks]).answers


def test_a_small_token_budget_is_as_a_large_one() -> None:
    asks = workload(12, seed=3)
    assert run(asks, batch_tokens=20, max_sequences=5).answers == run(asks).answers


@pytest.mark.parametrize("num_blocks", [11, 13, 18])
def test_preemption_changes_nothing(num_blocks: int) -> None:
    params = SamplingParams(max_tokens=60, logprobs=2, ignore_eos=True)
    asks = [Ask(ask.prompt, params, ask.seed) for ask in workload(5, seed=5, longest=60)]
    small = run(asks, num_blocks=num_blocks)
    assert small.engine is not None
    assert small.engine.scheduler.preemptions > 0
    assert small.answers == run(asks).answers


@pytest.mark.parametrize("prompt_tokens", [1, 2, 16, 17, 18, 40])
@pytest.mark.parametrize("num_blocks", [4096, 8])
def test_choices_are_as_separate_requests(prompt_tokens: int, num_blocks: int) -> None:
    prompt = list(range(prompt_tokens))
    seed = (1 << 64) - 2  # so that seed + i wraps
    forked = run([Ask(prompt, SamplingParams(max_tokens=33, logprobs=1, n=4), seed)], num_blocks=num_blocks)
    params = SamplingParams(max_tokens=33, logprobs=1)
    for choice in range(4):
        single = run([Ask(prompt, params, (seed + choice) % (1 << 64))])
        assert forked.answers["0", choice] == single.answers["0", 0], f"choice {choice}"


def test_forks_share_the_prompts_blocks() -> None:
    interpreter = ScriptedInterpreter(num_blocks=64)
    engine = Engine(interpreter, ReferenceSampler(), EngineOptions(1000))
    engine.add("a", range(100), SamplingParams(n=4, max_tokens=40), seed=1)
    cached: dict[int, int | None] = {}
    most = 0
    while engine.busy:
        for output in engine.step():
            cached[output.sequence.choice] = output.sequence.cached
        engine.check()
        most = max(most, engine.pool.held)
    assert cached == {0: 0, 1: 99, 2: 99, 3: 99}
    # 6 full blocks are shared; each choice has its own of the tail: positions 96 to 138 are 3 blocks.
    assert most == 6 + 4 * 3
    computed = sum(batch.tokens for batch in interpreter.batches)
    assert computed == 100 + 3 + 4 * 39


def test_aborting_one_changes_no_other_and_frees_its_blocks() -> None:
    asks = workload(9, seed=11)
    whole = run(asks).answers
    engine = Engine(
        ScriptedInterpreter(num_blocks=60), ReferenceSampler(), EngineOptions(2000, frozenset({299}))
    )
    for number, ask in enumerate(asks):
        engine.add(str(number), ask.prompt, ask.params, seed=ask.seed)
    answers: dict[str, list[int | None]] = {}
    steps = 0
    while engine.busy:
        for output in engine.step():
            answers.setdefault(output.sequence.request_id, []).append(output.token_id)
        steps += 1
        if steps == 5:
            engine.abort("3")
        if steps == 9:
            engine.abort("7")
            engine.abort("7")
            engine.abort("never was")
        engine.check()
    for number in range(9):
        expected = whole[str(number), 0][0]
        given = answers.get(str(number), [])
        if number in (3, 7):
            assert given == expected[: len(given)]
            assert len(given) < len(expected)
        else:
            assert given == expected
    assert engine.pool.held == 0


def test_aborting_the_choice_that_computes_the_prompt_leaves_it_to_the_next() -> None:
    asks = [Ask(list(range(50)), SamplingParams(max_tokens=10, n=3, logprobs=1), 40)]
    whole = run(asks).answers
    engine = Engine(
        ScriptedInterpreter(),
        ReferenceSampler(),
        EngineOptions(2000, frozenset({299}), SchedulerOptions(chunk_tokens=16)),
    )
    engine.add("0", asks[0].prompt, asks[0].params, seed=40)
    engine.step()
    engine.stop(engine.open_choices("0")[0])
    answers: dict[int, list[int | None]] = {}
    while engine.busy:
        for output in engine.step():
            answers.setdefault(output.sequence.choice, []).append(output.token_id)
        engine.check()
    assert answers == {1: whole["0", 1][0], 2: whole["0", 2][0]}


@pytest.mark.parametrize(
    ("scheduler", "num_blocks"),
    [({}, 4096), ({"chunk_tokens": 16}, 4096), ({"logit_rows": 8, "max_sequences": 8}, 4096), ({}, 24)],
)
def test_scores_are_those_of_the_tokens_alone(scheduler: dict[str, int], num_blocks: int) -> None:
    """Scored in chunks, among answers, with preemption: each logprob is that of one who samples it."""
    tokens = [(i * 37) % 300 for i in range(150)]
    engine = Engine(
        ScriptedInterpreter(num_blocks=num_blocks),
        ReferenceSampler(),
        EngineOptions(400, frozenset(), SchedulerOptions(**scheduler)),
    )
    for number, ask in enumerate(workload(4, seed=2)):
        engine.add(str(number), ask.prompt, SamplingParams(max_tokens=150), seed=1)
    engine.add_score("score", tokens, top_k=3)
    logprobs: list[float] = []
    top_ids: list[list[int]] = []
    next_first = 1
    while engine.busy:
        outputs = engine.step()
        rows = 0
        for output in outputs:
            rows += 1 if output.scores is None else len(output.scores.logprobs)
            if output.scores is not None:
                assert output.scores.first == next_first
                next_first += len(output.scores.logprobs)
                logprobs += output.scores.logprobs.tolist()
                top_ids += output.scores.top_ids.tolist()
        assert rows <= engine.options.scheduler.logit_rows
        engine.check()
    assert len(logprobs) == 149
    if num_blocks == 24:
        assert engine.scheduler.preemptions > 0
    for position in (1, 2, 16, 17, 64, 149):
        single = run([Ask(tokens[:position], SamplingParams(max_tokens=1, logprobs=3, temperature=0), 0)])
        top = single.answers["0", 0][2]
        assert [i for i, _ in top[0]] == top_ids[position - 1]
        known = dict(top[0])
        if tokens[position] in known:
            assert logprobs[position - 1] == known[tokens[position]]
