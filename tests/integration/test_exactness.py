"""E1 to E3 on the real models: the same logits, tokens and log-probabilities however they are computed."""

from __future__ import annotations

import random
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.numerics.native_models import (
    Story,
    assert_informative,
    assert_same_bits,
    in_chunks,
    open_native,
)
from tests.numerics.reference_models import blocks_for, make_batch

from stoker import LLM, SamplingParams
from stoker.engine.completion import Choice
from stoker.kernels.native import KvType, NativeInterpreter

pytestmark = [pytest.mark.model, pytest.mark.slow]

MODELS = ("smollm2", "gemma3")
LONG = 650  # past a split of 512, not a multiple of anything
ROWS = 12  # logits compared at the end of each chunking; of all rows they would fill gigabytes

each_model = pytest.mark.parametrize("name", MODELS)
Opened = Callable[..., NativeInterpreter]


@pytest.fixture(scope="module")
def path_of(request: pytest.FixtureRequest) -> Callable[[str], Path]:
    return lambda name: request.getfixturevalue(f"{name}_path")


# --- logits ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def opened(path_of: Callable[[str], Path]) -> Opened:
    @cache
    def make(name: str, kv_type: KvType = "int8", threads: int = 2) -> NativeInterpreter:
        return open_native(path_of(name), kv_type, threads=threads, batch_tokens=1024)

    return make


def text(interpreter: NativeInterpreter, number: int, count: int) -> list[int]:
    """Token ids drawn from the whole vocabulary: rare channels and large values come up as well."""
    return np.random.default_rng(number).integers(0, interpreter.vocabulary, count).tolist()


def last_rows(interpreter: NativeInterpreter, chunks: list[int], *, blocks: Any = None) -> np.ndarray:
    """Logits of the last ROWS positions of text 0, computed in these chunks."""
    total = sum(chunks)
    story = Story(text(interpreter, 0, LONG)[:total], range(blocks_for(total)) if blocks is None else blocks)
    found = []
    for count in chunks:
        rows = [i for i in range(count) if story.done + i >= total - ROWS]
        logits = interpreter.run(make_batch([story.next(count)], logit_rows=rows))
        found.append(logits.copy())
    return np.concatenate(found)


@each_model
@pytest.mark.parametrize("kv_type", ["int8", "f16"])
def test_prompts_in_chunks(name: str, kv_type: KvType, opened: Opened) -> None:
    interpreter = opened(name, kv_type)
    whole = last_rows(interpreter, [LONG])
    assert_informative(whole)
    scattered = np.random.default_rng(1).permutation(interpreter.num_blocks)[: blocks_for(LONG)].tolist()
    for size in (16, 17, 512) if kv_type == "int8" else (17, 512):
        assert_same_bits(last_rows(interpreter, in_chunks(LONG, size), blocks=scattered), whole)
    assert_same_bits(last_rows(interpreter, [LONG - ROWS] + [1] * ROWS), whole)
    # One token at a time from the start costs a decode step each: a shorter text.
    assert_same_bits(last_rows(interpreter, [1] * 67), last_rows(interpreter, [67]))


@each_model
def test_threads(name: str, opened: Opened) -> None:
    one, two = opened(name, threads=1), opened(name, threads=2)
    assert_same_bits(last_rows(one, [200, 1, 30, 1]), last_rows(two, [232]))
    for length in (511, 512, 513):  # decode: a unit of work for each split on two threads, one for all on one
        assert_same_bits(last_rows(one, [length, 1])[-1:], last_rows(two, [length - 1, 1, 1])[-1:])


@each_model
@pytest.mark.parametrize("others", [2, 7, 33])
def test_others_in_the_batch(name: str, others: int, opened: Opened) -> None:
    interpreter = opened(name)
    count = 79
    expected = last_rows(interpreter, [count])
    generator = np.random.default_rng(others)
    free = generator.permutation(interpreter.num_blocks).tolist()
    subject = Story(text(interpreter, 0, LONG)[:count], [free.pop() for _ in range(blocks_for(count))])
    crowd = []
    lengths = generator.choice([1, 5, 16, 33, 90], others).tolist()
    for number, length in enumerate(lengths, start=1):
        blocks = [free.pop() for _ in range(blocks_for(length))]
        crowd.append(Story(text(interpreter, number, length), blocks))
    found = []
    for step in [30, 1, 36, *[1] * 12]:
        entries = [
            other.next(min(int(generator.choice([1, 16])), len(other.token_ids) - other.done))
            for other in crowd
            if other.done < len(other.token_ids)
        ]
        place = len(entries) // 2
        first = sum(len(entry[0]) for entry in entries[:place])
        entries.insert(place, subject.next(step))
        wanted = [first + i for i in range(step) if subject.done - step + i >= count - ROWS]
        rows = sorted({0, *wanted})
        logits = interpreter.run(make_batch(entries, logit_rows=rows))
        found.append(logits[[rows.index(row) for row in wanted]])
    assert_same_bits(np.concatenate(found), expected)


# --- answers ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def llm_of(path_of: Callable[[str], Path]) -> Callable[..., LLM]:
    @cache
    def make(name: str, options: tuple[tuple[str, Any], ...]) -> LLM:
        return LLM(path_of(name), **dict(options))

    defaults = {"threads": 2, "kv_bytes": 1 << 30, "kv_type": "int8"}
    return lambda name, **options: make(name, tuple(sorted({**defaults, **options}.items())))


PROMPT = "The stoker shovelled coal into the furnace while the driver watched the pressure. " * 4


def asked(**changes: Any) -> SamplingParams:
    """Sampling that would show a change of the last bit of a log-probability."""
    fields = {"max_tokens": 16, "temperature": 0.8, "seed": 42, "logprobs": 3, "ignore_eos": True}
    return SamplingParams(**{**fields, **changes})


def everything(choice: Choice) -> tuple[Any, ...]:
    return choice.token_ids, choice.text, choice.logprobs, choice.top


@each_model
def test_alone_and_among_33_others(name: str, llm_of: Callable[..., LLM]) -> None:
    llm = llm_of(name)
    prompt = llm.tokenize(PROMPT)
    alone = everything(llm.generate(prompt, asked())[0].choices[0])
    assert len(set(alone[0])) > 3
    assert everything(llm.generate(prompt, asked())[0].choices[0]) == alone
    draw = random.Random(7)
    vocabulary = llm.text_engine.engine.vocabulary
    prompts: list[Any] = [
        [draw.randrange(vocabulary) for _ in range(draw.choice([1, 5, 16, 33]))] for _ in range(33)
    ]
    params = [SamplingParams(max_tokens=draw.randint(1, 12), seed=i) for i in range(33)]
    prompts.insert(20, prompt)
    params.insert(20, asked())
    assert everything(llm.generate(prompts, params)[20].choices[0]) == alone


@each_model
def test_forks_are_requests_of_their_own(name: str, llm_of: Callable[..., LLM]) -> None:
    llm = llm_of(name)
    prompt = llm.tokenize(PROMPT)[:39]  # ends inside a block, which forks then copy
    forks = llm.generate(prompt, asked(n=4))[0].choices
    assert len({choice.token_ids for choice in forks}) > 1
    for i, fork in enumerate(forks):
        assert everything(fork) == everything(llm.generate(prompt, asked(seed=42 + i))[0].choices[0])


@each_model
def test_engines_differ_in_nothing(name: str, llm_of: Callable[..., LLM]) -> None:
    """One thread, small steps, few blocks, so that some are preempted: the same answers; and when scored."""
    llm = llm_of(name)
    prompt = llm.tokenize(PROMPT)
    params = [asked(seed=i, max_tokens=40) for i in range(4)]
    prompts: list[Any] = [[*prompt[i:], *prompt[:i]] for i in range(4)]  # no two have a prefix in common
    expected = [everything(c.choices[0]) for c in llm.generate(prompts, params)]
    # Two prompts and two blocks: whenever the second begins before the first has ended, one must give way.
    room = llm.text_engine.engine.block_bytes * (2 * blocks_for(len(prompt)) + 2)
    small = llm_of(name, threads=1, batch_tokens=40, max_sequences=4, kv_bytes=room)
    assert [everything(c.choices[0]) for c in small.generate(prompts, params)] == expected
    assert small.text_engine.engine.scheduler.preemptions > 0
    scored = llm.score([[*prompt, *expected[0][0]]], top_k=3)[0]
    assert tuple(scored.logprobs[-40:]) == expected[0][2]


@each_model
@pytest.mark.parametrize("kv_type", ["int8", "f16"])
def test_a_cached_prefix_changes_nothing(name: str, kv_type: str, llm_of: Callable[..., LLM]) -> None:
    """A cold cache, a warm one, one that matches inside a block, one that has to evict: the same answers."""
    llm = llm_of(name, kv_type=kv_type)
    prompt = llm.tokenize(PROMPT)
    other = (prompt[0] + 1) % llm.text_engine.engine.vocabulary
    salted: list[Any] = [[*prompt[:cut], other, *prompt[cut:]] for cut in (1, 15, 16, 17, 31, 32)]
    # Namespaces of LLM are one, so a cold answer needs an engine of its own.
    cold = llm_of(name, kv_type=kv_type, threads=1)
    expected = []
    for i, ids in enumerate(salted):
        expected.append(everything(cold.generate(ids, asked(seed=i))[0].choices[0]))
    assert cold.text_engine.engine.stats().prefix_hits_tokens > 0  # of those before it, up to the cut
    llm.generate(prompt, asked())
    for i, ids in enumerate(reversed(salted)):
        seed = len(salted) - 1 - i
        assert everything(llm.generate(ids, asked(seed=seed))[0].choices[0]) == expected[seed]
        again = llm.generate(ids, asked(seed=seed))[0]
        assert again.num_cached_tokens >= len(ids) // 16 * 16 - 1
        assert everything(again.choices[0]) == expected[seed]
    # For one answer at a time.
    room = cold.text_engine.engine.block_bytes * (blocks_for(len(prompt) + 40) + 2)
    small = llm_of(name, kv_type=kv_type, kv_bytes=room)
    for _ in range(2):
        for seed, ids in enumerate(salted):
            assert everything(small.generate(ids, asked(seed=seed))[0].choices[0]) == expected[seed]
    assert small.text_engine.engine.stats().evictions > 0
