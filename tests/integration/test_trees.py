"""Trees of drafts on a real model, of any shape, for several streams in each step: every answer is the one of
plain decoding."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.drafts import TreeSpeculator
from tests.fakes import CountingSeeds
from tests.integration.test_speculation import PROMPTS, SAMPLINGS

from stoker.api import DoneEvent, Message, Request, SamplingParams, TokensEvent
from stoker.engine import Engine
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.engine.text import TextEngine

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def loaded(smollm2_path: Path) -> TextEngine:
    return load_text_engine(smollm2_path, LoadOptions(speculation="off"), seeds=CountingSeeds())


def answers(loaded: TextEngine, trees: TreeSpeculator, sampling: dict[str, Any]) -> list[Any]:
    """All that is told of each choice."""
    old = loaded.engine
    made = Engine(old.interpreter, old.sampler, old.options)
    made._speculator = trees  # type: ignore[assignment]
    engine = loaded.with_engine(made)
    told: dict[tuple[str, int], list[Any]] = {}
    for i, prompt in enumerate(PROMPTS[::4]):
        params = SamplingParams(max_tokens=32, seed=i, **sampling)
        request = Request(str(i), (Message("user", prompt),), params)
        engine.open(request, engine.encode(request))
    while engine.busy:
        for event in engine.step():
            if isinstance(event, TokensEvent):
                key = (event.request_id, event.choice)
                told.setdefault(key, []).append((event.token_ids, event.text, event.logprobs))
            elif isinstance(event, DoneEvent):
                end = (event.finish_reason, event.stop_reason, event.usage.completion_tokens)
                told[event.request_id, event.choice].append(end)
        made.check()
    assert made.pool.held == 0
    return [_joined(told[key]) for key in sorted(told)]


def _joined(pieces: list[Any]) -> tuple[Any, ...]:
    *tokens, end = pieces
    ids = [i for token_ids, _, _ in tokens for i in token_ids]
    logprobs = [entry for _, _, entries in tokens for entry in entries or ()]
    return (ids, "".join(text for _, text, _ in tokens), logprobs, end)


@pytest.mark.parametrize("name", ["hot", "schema", "penalties"])
def test_the_same_with_trees(loaded: TextEngine, name: str) -> None:
    vocabulary = loaded.engine.vocabulary
    seen = TreeSpeculator((), vocabulary, most=0, seed=0)
    expected = answers(loaded, seen, SAMPLINGS[name])
    trees = TreeSpeculator(tuple(seen.seen.values()), vocabulary, most=9, seed=1)
    assert answers(loaded, trees, SAMPLINGS[name]) == expected
    assert trees.accepted_tokens > 5  # a schema forces most
