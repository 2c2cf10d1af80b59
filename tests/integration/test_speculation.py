"""Drafts on a real model: every answer is the one of plain decoding, whoever drafts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.fakes import CountingSeeds

from stoker.api import Constraint, DoneEvent, Message, Request, SamplingParams, TokensEvent
from stoker.bench.speculation_prompts import prompts_of
from stoker.engine import Engine
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.engine.text import TextEngine
from stoker.speculation import BOUND, DRAFTERS, Drafters, drafters_of

pytestmark = [pytest.mark.model, pytest.mark.slow]

SCHEMA = {
    "type": "object",
    "properties": {
        "people": {
            "type": "array",
            "maxItems": 3,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "role": {"enum": ["cook", "stoker", "captain"]}},
                "required": ["name", "role"],
                "additionalProperties": False,
            },
        }
    },
    "required": ["people"],
    "additionalProperties": False,
}
SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {"temperature": 0},
    "warm": {"temperature": 0.7},
    "hot": {"temperature": 1.0, "top_p": 0.9, "logprobs": 2},
    "schema": {"temperature": 0.8, "constraint": Constraint("json_schema", json.dumps(SCHEMA))},
    "penalties": {"temperature": 0.5, "presence_penalty": 0.6, "repetition_penalty": 1.1, "n": 2},
    "stops": {"temperature": 0, "stop": ("\n\n", " the"), "min_tokens": 9},
}
PROMPTS = [prompt for kind in ("copy", "code", "chat", "reasoning") for prompt in prompts_of(kind, 4)]


@pytest.fixture(scope="module")
def loaded(smollm2_path: Path) -> TextEngine:
    return load_text_engine(smollm2_path, LoadOptions(), seeds=CountingSeeds())


def bound(loaded: TextEngine) -> dict[str, Drafters]:
    """The drafters that came with the model."""
    return {one.name: one for one in loaded.engine.offered if one.name in BOUND}


@pytest.fixture(scope="module")
def plain(loaded: TextEngine) -> Callable[[str], list[Any]]:
    """What is told of each prompt's choices without drafts, by the name of the sampling."""
    return cache(lambda name: answers(loaded, "off", SAMPLINGS[name], range(len(PROMPTS)), 16)[0])


def answers(
    loaded: TextEngine, drafters: str, sampling: dict[str, Any], numbers: range, concurrency: int
) -> tuple[list[Any], int]:
    """All that is told of the choices of these prompts, and how many drafted tokens were accepted."""
    old = loaded.engine
    made = Engine(old.interpreter, old.sampler, old.options, drafters=drafters_of(drafters, bound(loaded)))
    engine = loaded.with_engine(made)
    waiting = [
        Request(str(i), (Message("user", PROMPTS[i]),), SamplingParams(max_tokens=40, seed=i, **sampling))
        for i in numbers
    ]
    told: dict[tuple[str, int], list[Any]] = {}
    opened = 0
    while waiting or opened:
        while waiting and opened < concurrency:
            request = waiting.pop(0)
            engine.open(request, engine.encode(request))
            opened += request.sampling.n
        for event in engine.step():
            if isinstance(event, TokensEvent):
                seen = told.setdefault((event.request_id, event.choice), [[], "", []])
                seen[0] += event.token_ids
                seen[1] += event.text
                seen[2] += event.logprobs or ()
            elif isinstance(event, DoneEvent):
                opened -= 1
                usage = event.usage
                assert usage.accepted_tokens <= min(usage.drafted_tokens, usage.completion_tokens)
                end = (event.finish_reason, event.stop_reason, event.seed, usage.completion_tokens)
                told[event.request_id, event.choice].append(end)
    made.check()
    assert made.pool.held == 0
    choices = range(sampling.get("n", 1))
    return [[told[str(i), choice] for choice in choices] for i in numbers], made.stats().accepted_tokens


@pytest.mark.parametrize("name", SAMPLINGS)
@pytest.mark.parametrize("concurrency", [1, 16])
def test_the_same_with_every_drafter(
    loaded: TextEngine, plain: Callable[[str], list[Any]], name: str, concurrency: int
) -> None:
    numbers = range(0, len(PROMPTS), 2 if concurrency == 1 else 1)  # alone each step is one stream's
    expected = plain(name)[:: numbers.step]
    total = 0
    # Each drafter by itself on one kind of sampling: what differs between kinds is the verifying.
    for drafters in (*DRAFTERS, "eagle", "auto") if (concurrency, name) == (16, "hot") else ("auto",):
        found, accepted = answers(loaded, drafters, SAMPLINGS[name], numbers, concurrency)
        assert found == expected, drafters
        total += accepted
    if concurrency == 1:
        assert total > 0, "nothing was drafted: this compared nothing"
