"""Whatever the prefix cache did for a request, in memory or from disk, its answer is what it is alone.

The model is `ScriptedInterpreter`: its answers depend on every token id it reads back from the blocks, so a
block of another prefix, a missing copy, or bytes that were written over before they were read change them.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import ScriptedInterpreter, scripted_logits

from stoker.api.request import SamplingParams
from stoker.cache.disk import DiskTier
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.sequence import Standing
from stoker.sampling import ReferenceSampler

VOCABULARY = 40
LONGEST = 110
BLOCK_FILE_BYTES = 4096 + 80  # of one block in the tier, as small as it is

REQUESTS = st.lists(
    st.tuples(
        st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=4),  # (token, times)
        st.integers(1, 20),  # max_tokens
        st.integers(1, 3),  # n
        st.integers(0, 30),  # the step before which it arrives
        st.one_of(st.none(), st.integers(1, 30)),  # the step after which it is aborted
        st.sampled_from([b"", b"salt"]),
    ),
    min_size=1,
    max_size=8,
)


@settings(max_examples=40, deadline=None)
@given(
    lives=st.lists(REQUESTS, min_size=1, max_size=3),
    num_blocks=st.integers(10, 40),  # 9 hold the longest sequence
    slots=st.one_of(st.none(), st.integers(1, 60)),
    batch_tokens=st.sampled_from([8, 64, 512]),
    orderly=st.booleans(),
)
def test_any_history_gives_the_same_answers(
    lives: list[list[tuple]],  # type: ignore[type-arg]
    num_blocks: int,
    slots: int | None,
    batch_tokens: int,
    orderly: bool,
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        for requests in lives:
            tier = None
            if slots is not None:
                cap_bytes = 8192 + slots * BLOCK_FILE_BYTES
                tier = DiskTier(Path(folder), identity=b"m", block_bytes=256, cap_bytes=cap_bytes)
            engine = Engine(
                ScriptedInterpreter(vocabulary=VOCABULARY, num_blocks=num_blocks),
                ReferenceSampler(),
                EngineOptions(2000, frozenset(), SchedulerOptions(batch_tokens, 8), identity=b"m"),
                tier=tier,
            )
            _serve(engine, requests)
            if tier is not None:
                assert tier.rejected == tier.write_failures == 0
                if orderly:
                    engine.close()
                else:
                    tier.close()


def _serve(engine: Engine, requests: list[tuple]) -> None:  # type: ignore[type-arg]
    waiting, answers, aborted, step = dict(enumerate(requests)), {}, set(), 0
    while waiting or engine.busy:
        for number, (runs, max_tokens, n, arrives, _, namespace) in list(waiting.items()):
            if arrives <= step:
                params = SamplingParams(max_tokens=max_tokens, n=n, temperature=0)
                standing = Standing(namespace=namespace)
                engine.add(str(number), _prompt(runs), params, seed=0, standing=standing)
                del waiting[number]
        for output in engine.step():
            answers.setdefault(int(output.sequence.request_id), [[], [], []])[output.sequence.choice].append(
                output.token_id
            )
        engine.check()
        engine.tree.check()
        for number, request in enumerate(requests):
            if request[4] == step and number not in waiting and engine.open_choices(str(number)):
                aborted.add(number)
                engine.abort(str(number))
        if step % 7 == 6:
            engine.save_prefixes(2)
        step += 1
        assert step < 3000, "the engine makes no progress"
    assert engine.pool.held == 0
    for number, (runs, max_tokens, n, *_) in enumerate(requests):
        expected = _alone(_prompt(runs), max_tokens)
        for answer in answers.get(number, [[], [], []])[:n]:
            assert answer == (expected[: len(answer)] if number in aborted else expected)


def _prompt(runs: list[tuple[int, int]]) -> list[int]:
    return [token for token, times in runs for _ in range(times)][:LONGEST]


def _alone(prompt: list[int], max_tokens: int) -> list[int]:
    tokens = list(prompt)
    for _ in range(max_tokens):
        tokens.append(int(scripted_logits(np.array(tokens), VOCABULARY).argmax()))
    return tokens[len(prompt) :]
