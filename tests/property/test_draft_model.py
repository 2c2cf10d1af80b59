"""A draft model changes no answer, keeps no block that a sequence needs, is right where it is the target."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.drafts import FreeCost
from tests.fakes import ScriptedInterpreter
from tests.property.test_speculation import SAMPLINGS, VOCABULARY, collect, fill, new_engine, said

from stoker.api import SamplingParams
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.journal import Entry, Lent
from stoker.engine.replay import RecordedEngine, replay
from stoker.kernels.program import Batch, Float32
from stoker.sampling import ReferenceSampler
from stoker.speculation.draft_model import DraftModel, DraftModelDrafters
from stoker.speculation.ngram import NgramDrafters


class LikeMinded(ScriptedInterpreter):
    """The scripted model, but for every `err`-th position, where its logits are others."""

    def __init__(self, err: int, **shape: int) -> None:
        super().__init__(vocabulary=VOCABULARY, **shape)
        self.err = err

    def run(self, batch: Batch) -> Float32:
        logits = super().run(batch)
        wrong = batch.positions[batch.logit_rows] % self.err == self.err - 1
        logits[wrong] = logits[wrong][:, ::-1]
        return logits


def model_engine(
    err: int,
    num_blocks: int,
    *,
    journal: list[Entry] | None = None,
    batch_tokens: int = 16,
    context_tokens: int = 2000,
    beside: bool = False,
    **scheduler: int,
) -> Engine:
    draft = LikeMinded(err, num_blocks=num_blocks, context_tokens=context_tokens)
    drafters = DraftModelDrafters(DraftModel(draft, ReferenceSampler(), context_tokens, batch_tokens))
    engine = Engine(
        ScriptedInterpreter(vocabulary=VOCABULARY, num_blocks=num_blocks),
        ReferenceSampler(),
        EngineOptions(2000, frozenset({49}), SchedulerOptions(**scheduler)),
        drafters=(drafters, NgramDrafters()) if beside else (drafters,),
        journal=None if journal is None else journal.append,
    )
    assert engine._speculator is not None
    engine._speculator._cost = FreeCost()
    return engine


@settings(max_examples=60, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 40), SAMPLINGS), min_size=1, max_size=4),
    shape=st.tuples(st.integers(8, 40), st.integers(1, 6)),
    err=st.sampled_from([1, 2, 7, 1000]),
    draft_batch_tokens=st.sampled_from([16, 128]),
    context_tokens=st.sampled_from([30, 2000]),
    beside=st.booleans(),
    seed=st.integers(0, 1 << 63),
)
def test_no_answer_changes_under_any_pressure(
    requests: list[tuple[int, dict[str, Any]]],
    shape: tuple[int, int],
    err: int,
    draft_batch_tokens: int,
    context_tokens: int,
    beside: bool,
    seed: int,
) -> None:
    num_blocks, max_sequences = shape
    plain = new_engine((), num_blocks=40)
    fill(plain, requests, seed)
    expected = collect(plain)
    entries: list[Entry] = []
    engine = model_engine(
        err,
        num_blocks,
        journal=entries,
        context_tokens=context_tokens,
        batch_tokens=draft_batch_tokens,
        beside=beside,
        max_sequences=max_sequences,
    )
    fill(engine, requests, seed)
    found = collect(engine)
    assert {key: said(outputs) for key, outputs in found.items()} == {
        key: said(outputs) for key, outputs in expected.items()
    }
    assert engine.lender.blocks == 0
    recorded = RecordedEngine(VOCABULARY, num_blocks, 2000, engine.options)
    assert len(list(replay(recorded, entries))) == engine.stats().steps


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 0.7, "presence_penalty": 1.2},
        {"temperature": 1.0, "top_p": 0.6, "repetition_penalty": 1.3},
        {"temperature": 1.0, "min_tokens": 30, "stop_token_ids": (3, 11), "logit_bias": {5: 2.0}},
    ],
)
def test_the_target_itself_is_always_right(sampling: dict[str, Any]) -> None:
    engine = model_engine(1 << 30, 64)
    for number in range(3):
        prompt = [(7 * number + i) % VOCABULARY for i in range(1 + 20 * number)]
        engine.add(str(number), prompt, SamplingParams(max_tokens=60, n=2, **sampling), seed=number)
    collect(engine)
    stats = engine.stats()
    assert stats.drafted_tokens == stats.accepted_tokens > 50


def test_a_drafter_gives_its_blocks_back_before_a_sequence_is_preempted() -> None:
    engine = model_engine(1 << 30, 32, max_sequences=4)
    engine.add("r", range(40), SamplingParams(max_tokens=400, ignore_eos=True), seed=1)
    lent = []
    while engine.busy:
        engine.step()
        engine.check()
        lent.append(engine.lender.blocks)
    assert max(lent) > 8
    assert lent[-1] == 0
    assert engine.stats().preemptions == 0
    assert engine.stats().accepted_tokens > 50


def test_who_waits_is_admitted_before_a_draft_is_kept() -> None:
    entries: list[Entry] = []
    engine = model_engine(1 << 30, 16, journal=entries, max_sequences=4)
    engine.add("a", range(40), SamplingParams(max_tokens=60, ignore_eos=True), seed=1)
    for _ in range(6):
        engine.step()
    assert engine.lender.blocks > 2
    engine.add("b", range(10, 50), SamplingParams(max_tokens=60, ignore_eos=True), seed=1)
    engine.add("c", range(5, 45), SamplingParams(max_tokens=60, ignore_eos=True), seed=1)
    engine.step()
    assert engine.scheduler.running == 3
    collect(engine)
    assert any(isinstance(entry, Lent) for entry in entries)


def test_an_aborted_request_leaves_nothing() -> None:
    engine = model_engine(3, 40)
    engine.add("a", range(30), SamplingParams(max_tokens=60, n=3), seed=1)
    for _ in range(6):
        engine.step()
    assert engine.lender.blocks
    engine.abort("a")
    assert engine.lender.blocks == 0
    engine.check()
