"""With drafts, good and bad, every answer is what it is without them: tokens, logprobs, ends, texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.drafts import CribbingDrafters, FreeCost
from tests.fakes import ByteTokenizer, CountingSeeds, RecitingInterpreter, ScriptedInterpreter

from stoker.api import DoneEvent, Event, Request, SamplingParams, TokensEvent
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.journal import Entry
from stoker.engine.replay import RecordedEngine, replay
from stoker.engine.scheduler import Output
from stoker.engine.text import TextEngine
from stoker.sampling import ReferenceSampler
from stoker.speculation import Drafters
from stoker.speculation.lookahead import LookaheadDrafters
from stoker.speculation.ngram import NgramDrafters
from stoker.speculation.suffix import SuffixDrafters

VOCABULARY = 50


def new_engine(
    drafters: Sequence[Drafters],
    *,
    num_blocks: int = 40,
    journal: list[Entry] | None = None,
    **scheduler: int,
) -> Engine:
    engine = Engine(
        ScriptedInterpreter(vocabulary=VOCABULARY, num_blocks=num_blocks),
        ReferenceSampler(),
        EngineOptions(2000, frozenset({49}), SchedulerOptions(**scheduler)),
        drafters=drafters,
        journal=None if journal is None else journal.append,
    )
    if engine._speculator is not None:
        engine._speculator._cost = FreeCost()
    return engine


def collect(engine: Engine) -> dict[tuple[str, int], list[Output]]:
    found: dict[tuple[str, int], list[Output]] = {}
    steps = 0
    while engine.busy:
        for output in engine.step():
            found.setdefault((output.sequence.request_id, output.sequence.choice), []).append(output)
        engine.check()
        steps += 1
        assert steps < 5000
    assert engine.pool.held == 0
    return found


def said(outputs: list[Output]) -> list[tuple[Any, ...]]:
    """Tokens, and what was told of each."""
    every: list[tuple[Any, ...]] = []
    for output in outputs:
        every.append((output.token_id, output.logprob, output.top))
        tops = output.written_logprobs or tuple((output.logprob, ()) for _ in output.written)
        every += [(token, *told) for token, told in zip(output.written, tops, strict=True)]
    if outputs[0].sequence.params.logprobs is None:
        every = [(token,) for token, *_ in every]
    end = outputs[-1].sequence
    return [*every, (end.finish_reason, end.stop_reason, end.known)]


SAMPLINGS = st.fixed_dictionaries(
    {
        "temperature": st.sampled_from([0, 0.7, 1.0]),
        "max_tokens": st.integers(1, 40),
        "n": st.integers(1, 2),
        "presence_penalty": st.sampled_from([0, 1.5]),
        "repetition_penalty": st.sampled_from([1.0, 1.3]),
        "min_tokens": st.sampled_from([0, 1]),
        "logprobs": st.sampled_from([None, 0, 2]),
        "top_p": st.sampled_from([1.0, 0.5]),
        "stop_token_ids": st.sampled_from([(), (3, 11)]),
    }
)


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 40), SAMPLINGS), min_size=1, max_size=4),
    shape=st.tuples(st.integers(8, 40), st.sampled_from([8, 17, 64]), st.integers(1, 6)),
    err=st.sampled_from([1, 2, 5, 1000]),
    seed=st.integers(0, 1 << 63),
    alone=st.booleans(),
)
def test_any_drafts_any_company(
    requests: list[tuple[int, dict[str, Any]]], shape: tuple[int, int, int], err: int, seed: int, alone: bool
) -> None:
    num_blocks, batch_tokens, max_sequences = shape
    plain = new_engine((), num_blocks=40)
    fill(plain, requests, seed)
    expected = collect(plain)
    answers = [outputs[-1].sequence.ids.tolist() for outputs in expected.values()]
    entries: list[Entry] = []
    crib = CribbingDrafters(answers, err, VOCABULARY)
    drafters = (LookaheadDrafters(),) if alone else (NgramDrafters(), SuffixDrafters(), crib)
    engine = new_engine(
        drafters,
        num_blocks=num_blocks,
        journal=entries,
        batch_tokens=batch_tokens,
        max_sequences=max_sequences,
    )
    fill(engine, requests, seed)
    found = collect(engine)
    assert {key: said(outputs) for key, outputs in found.items()} == {
        key: said(outputs) for key, outputs in expected.items()
    }
    stats = engine.stats()
    assert stats.accepted_tokens <= stats.drafted_tokens
    for counts, tokens in (
        (stats.drafts_by_tokens, stats.drafted_tokens),
        (stats.drafts_by_accepted, stats.accepted_tokens),
    ):
        assert sum(counts) == stats.drafts
        assert sum(depth * count for depth, count in enumerate(counts)) == tokens
    recorded = RecordedEngine(VOCABULARY, num_blocks, 2000, engine.options)
    assert len(list(replay(recorded, entries))) == stats.steps


def fill(engine: Engine, requests: list[tuple[int, dict[str, Any]]], seed: int) -> None:
    for number, (tokens, sampling) in enumerate(requests):
        sampling = {**sampling, "min_tokens": min(sampling["min_tokens"] * 5, sampling["max_tokens"])}
        prompt = [(number + i) % VOCABULARY for i in range(tokens)]
        engine.add(str(number), prompt, SamplingParams(**sampling), seed=seed)


def test_right_guesses_save_steps() -> None:
    plain = new_engine(())
    plain.add("r", [1, 2, 3], SamplingParams(max_tokens=60, ignore_eos=True), seed=4)
    (expected,) = collect(plain).values()
    answer = expected[-1].sequence.ids.tolist()
    engine = new_engine((CribbingDrafters([answer], 1000, VOCABULARY),))
    engine.add("r", [1, 2, 3], SamplingParams(max_tokens=60, ignore_eos=True), seed=4)
    (found,) = collect(engine).values()
    assert said(found) == said(expected)
    assert engine.stats().steps < 12
    assert engine.stats().accepted_tokens > 45


# --- text ---


def recited(script: str, drafters: Sequence[Drafters], *, streams: bool, **params: Any) -> list[Event]:
    prompt = "say:"
    token_ids = [*script.encode(), ByteTokenizer.EOS]
    tokenizer = ByteTokenizer()
    engine = Engine(
        RecitingInterpreter(token_ids, prompt_tokens=len(prompt)),
        ReferenceSampler(),
        EngineOptions(1000, frozenset(tokenizer.stop_ids), SchedulerOptions()),
        drafters=drafters,
    )
    if engine._speculator is not None:
        engine._speculator._cost = FreeCost()
    texts = TextEngine(engine, tokenizer, seeds=CountingSeeds(), name="fake")  # type: ignore[arg-type]
    request = Request("r", prompt, SamplingParams(temperature=0, **params))
    texts.open(request, texts.encode(request), streams=streams)
    events: list[Event] = []
    while texts.busy:
        events += texts.step()  # type: ignore[arg-type]
    assert not texts._requests
    assert not texts._choices
    return events


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    "params",
    [
        {},
        {"stop": ("xyz",)},
        {"stop": ("d\nab",)},
        {"stop": ("xyz",), "include_stop_str_in_output": True},
        {"stop": ("zz",), "logprobs": 1},
        {"max_tokens": 11, "logprobs": 0},
        {"stop": ("abcd",), "min_tokens": 14},
        {"ignore_eos": True, "max_tokens": 50},
    ],
)
def test_texts_end_at_the_same_character(streams: bool, params: dict[str, Any]) -> None:
    script = "abcd\nabcd\nabcd\nabxyzcd\nabcd\n"
    crib = [*b"say:", *script.encode(), ByteTokenizer.EOS]

    def told(events: list[Event]) -> tuple[Any, ...]:
        tokens = [e for e in events if isinstance(e, TokensEvent)]
        (done,) = (e for e in events if isinstance(e, DoneEvent))
        assert events[-1] is done
        return (
            "".join(e.text for e in tokens),
            [t for e in tokens for t in e.token_ids],
            [entry for e in tokens for entry in e.logprobs or ()],
            (done.finish_reason, done.stop_reason, done.usage.completion_tokens),
        )

    expected = told(recited(script, (), streams=streams, **params))
    for drafters in (
        (NgramDrafters(),),
        (CribbingDrafters([crib], 1000, 256),),
        (CribbingDrafters([crib], 3, 256),),
    ):
        assert told(recited(script, drafters, streams=streams, **params)) == expected
