"""Any workload on any engine gives what each request gives alone."""

from __future__ import annotations

import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import ScriptedInterpreter, scripted_logits

from stoker.api.request import SamplingParams
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.sampling import ReferenceSampler, SampleRow, pack_params

REQUESTS = st.lists(
    st.tuples(
        st.integers(1, 70),  # prompt tokens
        st.integers(1, 25),  # max_tokens
        st.integers(1, 3),  # n
        st.integers(0, 12),  # the step before which it arrives
        st.one_of(st.none(), st.integers(1, 20)),  # the step after which it is aborted
    ),
    min_size=1,
    max_size=7,
)
ENGINES = st.tuples(
    st.integers(7, 40),  # blocks; 7 hold the longest sequence
    st.sampled_from([8, 17, 64, 512]),  # batch_tokens
    st.integers(1, 8),  # max_sequences
    st.sampled_from([None, 1, 16, 17]),  # chunk_tokens
)


@settings(max_examples=40, deadline=None)
@given(requests=REQUESTS, shape=ENGINES, seed=st.integers(0, (1 << 64) - 1))
def test_any_company_any_engine(
    requests: list[tuple[int, int, int, int, int | None]],
    shape: tuple[int, int, int, int | None],
    seed: int,
) -> None:
    num_blocks, batch_tokens, max_sequences, chunk_tokens = shape
    options = SchedulerOptions(batch_tokens, max_sequences, chunk_tokens)
    engine = Engine(
        ScriptedInterpreter(vocabulary=50, num_blocks=num_blocks),
        ReferenceSampler(),
        EngineOptions(2000, frozenset({49}), options),
    )
    answers: dict[tuple[str, int], list[int | None]] = {}
    aborted = set()
    waiting = dict(enumerate(requests))
    step = 0
    while waiting or engine.busy:
        for number, (prompt_tokens, max_tokens, n, arrives, _) in list(waiting.items()):
            if arrives <= step:
                prompt = [(number + i) % 50 for i in range(prompt_tokens)]
                engine.add(str(number), prompt, SamplingParams(max_tokens=max_tokens, n=n), seed=seed)
                del waiting[number]
        for output in engine.step():
            key = (output.sequence.request_id, output.sequence.choice)
            answers.setdefault(key, []).append(output.token_id)
        engine.check()
        for number, request in enumerate(requests):
            if request[4] == step and number not in waiting:
                if engine.open_choices(str(number)):
                    aborted.add(number)
                engine.abort(str(number))
                engine.check()
        step += 1
        assert step < 5000, "the engine makes no progress"
    assert engine.pool.held == 0
    assert engine.pool.available == num_blocks
    for number, (prompt_tokens, max_tokens, n, _, _) in enumerate(requests):
        for choice in range(n):
            prompt = [(number + i) % 50 for i in range(prompt_tokens)]
            expected = _alone(prompt, max_tokens, (seed + choice) % (1 << 64), num_blocks)
            given_ids = answers.get((str(number), choice), [])
            if number in aborted:
                assert given_ids == expected[: len(given_ids)]
            else:
                assert given_ids == expected


def _alone(prompt: list[int], max_tokens: int, seed: int, num_blocks: int) -> list[int | None]:
    """The definition, without an engine: logits of all tokens so far, one sampled token, again."""
    limit = min(len(prompt) + max_tokens, num_blocks * 16)
    packed = pack_params(SamplingParams(), seed, 50)
    tokens = list(prompt)
    while len(tokens) < limit and tokens[len(prompt) :][-1:] != [49]:
        logits = scripted_logits(np.array(tokens), 50)
        result = ReferenceSampler().sample(logits[None], [SampleRow(packed, len(tokens))])
        tokens.append(int(result.token_ids[0]))
    return tokens[len(prompt) :]


@pytest.mark.parametrize("seed", range(3))
def test_waste_of_a_mixed_workload_is_below_four_percent(seed: int) -> None:
    """Slots held but not written, over all steps: only the tails of last blocks, half a block a sequence."""
    draw = random.Random(seed)
    engine = Engine(
        ScriptedInterpreter(vocabulary=50, num_blocks=4096), ReferenceSampler(), EngineOptions(4000)
    )
    for number in range(40):
        prompt_tokens = draw.choice([20, 100, 300, 700])
        params = SamplingParams(max_tokens=draw.randint(10, 60), n=draw.choice([1, 1, 2]), temperature=0)
        engine.add(str(number), [number] * prompt_tokens, params, seed=1)
    held = wasted = 0
    while engine.busy:
        engine.step()
        held += engine.pool.held * 16
        wasted += engine.scheduler.wasted_slots
    assert 0 < wasted < 0.04 * held
