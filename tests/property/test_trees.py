"""With trees of drafts every answer is what it is without: tokens, logprobs, ends; and no block is lost."""

from __future__ import annotations

import random
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.drafts import TreeCribbingDrafters, TreeSpeculator, random_tree
from tests.fakes import ByteTokenizer
from tests.property.test_speculation import (
    SAMPLINGS,
    VOCABULARY,
    collect,
    fill,
    new_engine,
    recited,
    said,
)
from tests.unit.engine import test_guides as guided

from stoker.api import DoneEvent, Event, SamplingParams, TokensEvent
from stoker.api.errors import EngineError
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.guided import allowed_draft
from stoker.engine.journal import Entry
from stoker.engine.replay import RecordedEngine, replay
from stoker.engine.scheduler import Output
from stoker.engine.sequence import Sequence
from stoker.grammar.guide import mask_words
from stoker.speculation.draft import Draft


def tree_engine(answers: list[list[int]], *, most: int, seed: int, **options: Any) -> Engine:
    engine = new_engine((), **options)
    engine._speculator = TreeSpeculator(answers, VOCABULARY, most=most, seed=seed)  # type: ignore[assignment]
    return engine


@settings(max_examples=30, deadline=None)
@given(
    requests=st.lists(st.tuples(st.integers(1, 40), SAMPLINGS), min_size=1, max_size=4),
    shape=st.tuples(st.integers(8, 40), st.sampled_from([8, 17, 64]), st.integers(1, 6)),
    most=st.sampled_from([3, 8, 16]),
    seed=st.integers(0, 1 << 63),
)
def test_any_trees_any_company(
    requests: list[tuple[int, dict[str, Any]]], shape: tuple[int, int, int], most: int, seed: int
) -> None:
    num_blocks, batch_tokens, max_sequences = shape
    plain = new_engine((), num_blocks=40)
    fill(plain, requests, seed)
    expected = collect(plain)
    answers = [outputs[-1].sequence.ids.tolist() for outputs in expected.values()]
    entries: list[Entry] = []
    engine = tree_engine(
        answers, most=most, seed=seed, num_blocks=num_blocks, journal=entries,
        batch_tokens=batch_tokens, max_sequences=max_sequences,
    )  # fmt: skip
    fill(engine, requests, seed)
    found = collect(engine)
    assert {key: said(outputs) for key, outputs in found.items()} == {
        key: said(outputs) for key, outputs in expected.items()
    }
    for outputs in found.values():
        assert outputs[-1].sequence.accepted <= outputs[-1].sequence.drafted
    recorded = RecordedEngine(VOCABULARY, num_blocks, 2000, engine.options)
    assert len(list(replay(recorded, entries))) == engine.stats().steps


def test_sixteen_at_once() -> None:
    requests: list[tuple[int, dict[str, Any]]] = [
        (
            3 + 5 * i % 37,
            {
                "temperature": (0, 0.7, 1.0)[i % 3], "top_p": (1.0, 0.9)[i % 2], "n": 1 + (i % 5 == 0),
                "repetition_penalty": 1.0 + i % 2 * 0.2, "logprobs": (None, 2)[i % 2],
                "max_tokens": 24, "min_tokens": 0, "ignore_eos": True,
            },
        )
        for i in range(16)
    ]  # fmt: skip
    plain = new_engine((), num_blocks=300)
    fill(plain, requests, 5)
    expected = collect(plain)
    answers = [outputs[-1].sequence.ids.tolist() for outputs in expected.values()]
    for num_blocks in (20, 300):
        engine = tree_engine(answers, most=6, seed=1, num_blocks=num_blocks, logit_rows=512)
        fill(engine, requests, 5)
        found = collect(engine)
        assert {key: said(outputs) for key, outputs in found.items()} == {
            key: said(outputs) for key, outputs in expected.items()
        }
        if num_blocks == 300:
            assert engine.stats().steps < 0.6 * plain.stats().steps
        else:
            assert engine.stats().preemptions > 0


def _decoding(tokens: int = 3, **options: Any) -> tuple[Engine, list[int]]:
    """An engine with one stream that decodes greedily, and what it will say."""
    plain = new_engine((), **options)
    plain.add("r", [1] * tokens, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0), seed=4)
    (expected,) = collect(plain).values()
    engine = new_engine((), **options)
    engine.add("r", [1] * tokens, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0), seed=4)
    engine.step()
    return engine, expected[-1].sequence.ids.tolist()


@pytest.mark.parametrize("prompt", [1, 13, 14, 15, 16, 17, 30])
@pytest.mark.parametrize("leaves", range(5))
def test_a_right_branch_becomes_the_sequence(prompt: int, leaves: int) -> None:
    """The draft errs after some tokens, a branch there is right, and a branch of the branch."""
    engine, answer = _decoding(prompt)
    (sequence,) = engine.open_choices("r")
    right = answer[sequence.known :][:8]
    wrong = [(token + 1) % VOCABULARY for token in right]
    tokens = [*right[:leaves], *wrong[leaves:6], right[leaves], wrong[leaves + 1], right[leaves + 1]]
    parents = [*range(-1, 5), leaves - 1, 6, 6]
    before = sequence.known
    plan = engine.step_planned(512, {sequence.number: Draft(tuple(tokens), tuple(parents))})
    engine.check()
    assert [branch.parent for branch in plan.chunks[0].branches] == [leaves - 1, 6]
    assert sequence.known == before + leaves + 3
    assert sequence.accepted == leaves + 2
    assert sequence.drafted == 9
    assert sequence.computed == sequence.known - 1
    for output in collect(engine).values():
        assert output[-1].sequence.ids.tolist() == answer


def test_branches_take_no_block_from_anybody() -> None:
    """Without a free block a branch is left out, and those that begin in it."""
    engine, answer = _decoding(3, num_blocks=5)
    (sequence,) = engine.open_choices("r")
    right = answer[sequence.known :][:2]
    taken = engine.pool.open_table()
    taken.extend(0, 16 * (engine.pool.available - 1))
    parents = (-1, 0, -1, 2, -1)
    tokens = (*right, *((t + 1) % VOCABULARY for t in right), (right[0] + 2) % VOCABULARY)
    plan = engine.step_planned(512, {sequence.number: Draft(tokens, parents)})
    assert [len(branch.tokens) for branch in plan.chunks[0].branches] == [2]
    assert sequence.drafted == 4
    taken.extend(0, taken.slots + 16)
    right = answer[sequence.known :][:2]
    tokens = (*right, *((t + 1) % VOCABULARY for t in right), (right[0] + 2) % VOCABULARY)
    plan = engine.step_planned(512, {sequence.number: Draft(tokens, parents)})
    assert plan.chunks[0].branches == ()
    taken.close()
    engine.abort("r")
    engine.check()


def test_a_failed_step_gives_the_branches_back() -> None:
    engine, answer = _decoding()
    (sequence,) = engine.open_choices("r")
    engine.interpreter.fail_at_run = len(engine.interpreter.batches)  # type: ignore[attr-defined]
    draft = random_tree(answer[sequence.known :], VOCABULARY, random.Random(3), 12)
    with pytest.raises(EngineError, match="scripted failure"):
        engine.step_planned(512, {sequence.number: draft})
    engine.check()
    assert engine.pool.held == 0


def test_a_tree_within_the_limits_of_tokens_and_rows() -> None:
    for batch_tokens, logit_rows in ((6, 64), (64, 6)):
        engine = Engine(
            new_engine(()).interpreter,
            new_engine(()).sampler,
            EngineOptions(2000, frozenset(), SchedulerOptions(batch_tokens, 6, logit_rows=logit_rows)),
        )
        for number in range(2):
            engine.add(str(number), [number + 1], SamplingParams(max_tokens=50, temperature=0), seed=1)
        engine.step()
        drafts = {n: Draft((1, 2, 3, 4, 5, 6), (-1, -1, -1, 0, 0, 1)) for n in range(2)}
        plan = engine.step_planned(512, drafts)
        assert plan.tokens == 6
        assert [chunk.branch_tokens for chunk in plan.chunks][1] == 0
        engine.check()
        engine.abort_all()


def test_a_parent_after_its_guess_is_refused() -> None:
    engine, _ = _decoding()
    with pytest.raises(EngineError, match="guess 1 has parent 1; allowed: -1 to 0"):
        engine.step_planned(512, {0: Draft((1, 2), (-1, 1))})


def test_the_speculator_asks_for_trees_and_learns_of_them() -> None:
    engine, answer = _decoding()
    crib = TreeCribbingDrafters([answer], VOCABULARY)
    engine = new_engine((crib,))
    engine.add("r", [1] * 3, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0), seed=4)
    (found,) = collect(engine).values()
    assert found[-1].sequence.ids.tolist() == answer
    stats = engine.stats()
    assert stats.steps < 30
    assert stats.accepted_tokens == found[-1].sequence.accepted
    assert stats.drafted_tokens >= found[-1].sequence.drafted  # it counts a token that is guessed twice


@pytest.mark.parametrize("leaves", range(4))
def test_hidden_states_are_those_of_the_right_branch(leaves: int) -> None:
    def decoding() -> tuple[Engine, Sequence]:
        crib = TreeCribbingDrafters([], VOCABULARY)
        crib.feature_tokens = 12
        engine = new_engine((crib,))
        engine.add("r", [1] * 14, SamplingParams(max_tokens=60, ignore_eos=True, temperature=0), seed=4)
        engine.step()
        (sequence,) = engine.open_choices("r")
        return engine, sequence

    plain, said_plainly = decoding()
    for _ in range(9):
        plain.step_planned(512)
    engine, sequence = decoding()
    right = said_plainly.ids[sequence.known :].tolist()
    wrong = [(token + 1) % VOCABULARY for token in right]
    tokens = (*right[:leaves], *wrong[leaves:5], *right[leaves : leaves + 3])
    parents = (*range(-1, 4), leaves - 1, 5, 6)
    engine.step_planned(512, {sequence.number: Draft(tokens, parents)})
    assert sequence.accepted == leaves + 3
    assert sequence.features is not None
    assert said_plainly.features is not None
    assert sequence.features.end == sequence.computed
    span = (14, sequence.computed)
    assert (sequence.features.rows(*span) == said_plainly.features.rows(*span)).all()


# --- guides ---


@settings(max_examples=20, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=3),
    batch_tokens=st.sampled_from([17, 64]),
    seed=st.integers(0, 1 << 63),
    first=st.sampled_from([(), (7, 9, 11)]),
    max_tokens=st.sampled_from([2, 17, 60]),
    most=st.sampled_from([5, 16]),
    logprobs=st.sampled_from([None, 1]),
    faulty_at=st.sampled_from([None, 9]),
    spare_core=st.booleans(),
)
def test_trees_change_nothing_under_a_guide(
    prompts: list[int], batch_tokens: int, seed: int, first: tuple[int, ...], max_tokens: int, most: int,
    logprobs: int | None, faulty_at: int | None, spare_core: bool,
) -> None:  # fmt: skip
    def fill_guided(engine: Engine) -> dict[tuple[str, int], list[Output]]:
        for number, tokens in enumerate(prompts):
            asked = SamplingParams(
                constraint=guided.CONSTRAINED, max_tokens=max_tokens, n=2, logprobs=logprobs,
                repetition_penalty=1.1,
            )  # fmt: skip
            guides = guided.ScriptedGuides(first, faulty_at)
            engine.add(str(number), [number + i for i in range(tokens)], asked, seed=seed, guides=guides)
        return guided.collect(engine)

    plain = fill_guided(guided.new_engine())
    answers = [outputs[-1].sequence.ids.tolist() for outputs in plain.values()]
    engine = guided.new_engine(batch_tokens=batch_tokens, max_sequences=6, spare_core=spare_core)
    trees = TreeSpeculator(answers, guided.VOCABULARY, most=most, seed=seed)
    engine._speculator = trees  # type: ignore[assignment]
    found = fill_guided(engine)
    engine.check()
    assert {key: said(outputs) for key, outputs in found.items()} == {
        key: said(outputs) for key, outputs in plain.items()
    }


def test_a_guide_cuts_a_tree_and_writes_into_it() -> None:
    guide = guided.ScriptedGuide()  # even tokens, 20 never; after a multiple of 6: 1, 3, 5
    words = mask_words(guided.VOCABULARY)
    tree = Draft((2, 3, 20, 12, 1, 8, 4, 3, 44), (-1, -1, -1, 0, 3, 3, -1, 4, 7))
    found = allowed_draft(guide, tree, 20, words=words)
    assert found == (Draft((2, 12, 1, 3, 5, 4), (-1, 0, 1, 2, 3, -1)), {2, 3, 4})
    assert allowed_draft(guide, tree, 3, words=words) == (Draft((2, 12, 1), (-1, 0, 1)), {2})
    chain = allowed_draft(guide, Draft((2, 12, 1, 8)), 20, words=words)
    assert chain == (Draft((2, 12, 1, 3, 5)), {2, 3, 4})
    assert allowed_draft(guide, Draft((2, 20, 4)), 20, words=words) == (Draft((2,)), frozenset())
    assert guide.tokens == []


# --- text ---


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    "params",
    [{}, {"stop": ("xyz",)}, {"stop": ("d\nab",)}, {"max_tokens": 11, "logprobs": 0}, {"min_tokens": 14}],
)
def test_texts_end_at_the_same_character(streams: bool, params: dict[str, Any]) -> None:
    script = "abcd\nabcd\nabcd\nabxyzcd\nabcd\n"
    crib = [*b"say:", *script.encode(), ByteTokenizer.EOS]

    def told(events: list[Event]) -> tuple[Any, ...]:
        tokens = [e for e in events if isinstance(e, TokensEvent)]
        (done,) = (e for e in events if isinstance(e, DoneEvent))
        return (
            "".join(e.text for e in tokens),
            [t for e in tokens for t in e.token_ids],
            [entry for e in tokens for entry in e.logprobs or ()],
            (done.finish_reason, done.stop_reason, done.usage.completion_tokens),
        )

    drafters = (TreeCribbingDrafters([crib], 256),)
    assert told(recited(script, drafters, streams=streams, **params)) == told(
        recited(script, (), streams=streams, **params)
    )
