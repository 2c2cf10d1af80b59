"""Guides in the engine: masks, tokens written without asking, refusals, faults; whoever else is there."""

from __future__ import annotations

import gc
import threading
from collections.abc import Iterator, Sequence
from copy import copy

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.drafts import CribbingDrafters, FreeCost
from tests.fakes import ByteTokenizer, ScriptedInterpreter, text_engine

from stoker.api import DoneEvent, PromptEvent, Request, SamplingParams, TokensEvent
from stoker.api.constraint import Constraint
from stoker.api.errors import EngineError, RequestError
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.journal import Entry
from stoker.engine.replay import RecordedEngine, replay
from stoker.engine.scheduler import Output
from stoker.engine.text import TextEngine
from stoker.grammar.guide import MaskRow
from stoker.sampling import ReferenceSampler
from stoker.speculation import Drafters

VOCABULARY = 60
CONSTRAINED = Constraint("regex", "what it says does not matter to a scripted guide")


class ScriptedGuide:
    """Even tokens only, 20 never; after a multiple of 6 the run 1, 3, 5 comes; 50 tokens, or a 58, end it."""

    thought_tokens = 0

    def __init__(
        self, first: tuple[int, ...] = (), faulty_at: int | None = None, refuses_from: int | None = None
    ) -> None:
        self.forced = first
        self.tokens: list[int] = []
        self.masks = 0
        self._faulty_at = faulty_at
        self._refuses_from = refuses_from

    @property
    def free(self) -> bool:
        return len(self.tokens) % 11 == 10  # now and then anything may come

    @property
    def finished(self) -> bool:
        return len(self.tokens) >= 50 or 58 in self.tokens

    def fill_mask(self, mask: MaskRow) -> None:
        assert not self.forced
        assert not self.free
        assert not self.finished
        if self._faulty_at is not None and len(self.tokens) >= self._faulty_at:
            raise RequestError("the grammar is too complex here")
        mask[:] = 0x55555555
        self.masks += 1

    def refuses(self, token_id: int) -> bool:
        if self._refuses_from is not None and len(self.tokens) >= self._refuses_from:
            if token_id % 4 == 0:
                raise RequestError("the value is nested too deeply")
            return True
        return token_id == 20

    def push(self, token_id: int) -> None:
        if self.forced:
            assert token_id == self.forced[0]
        elif not self.free:
            assert token_id % 2 == 0
            assert token_id != 20
        self.tokens.append(token_id)
        rest = self.forced[1:]
        self.forced = rest or ((1, 3, 5) if token_id % 6 == 0 and not self.finished else ())

    def fork(self) -> ScriptedGuide:
        made = copy(self)
        made.tokens = list(self.tokens)
        return made


class ScriptedGuides:
    """Gives `ScriptedGuide`s."""

    warnings = ("one was relaxed",)

    def __init__(
        self, first: tuple[int, ...] = (), faulty_at: int | None = None, refuses_from: int | None = None
    ) -> None:
        self.made: list[ScriptedGuide] = []
        self._first, self._faulty_at, self._refuses_from = first, faulty_at, refuses_from

    def new(self) -> ScriptedGuide:
        self.made.append(ScriptedGuide(self._first, self._faulty_at, self._refuses_from))
        return self.made[-1]


def new_engine(
    journal: list[Entry] | None = None,
    *,
    spare_core: bool = True,
    drafters: Sequence[Drafters] = (),
    **scheduler: int,
) -> Engine:
    return Engine(
        ScriptedInterpreter(vocabulary=VOCABULARY, num_blocks=40),
        ReferenceSampler(),
        EngineOptions(600, frozenset({59}), SchedulerOptions(**scheduler), spare_core=spare_core),
        journal=None if journal is None else journal.append,
        drafters=drafters,
    )


def collect(engine: Engine) -> dict[tuple[str, int], list[Output]]:
    found: dict[tuple[str, int], list[Output]] = {}
    while engine.busy:
        for output in engine.step():
            found.setdefault((output.sequence.request_id, output.sequence.choice), []).append(output)
        engine.check()
    return found


def tokens_of(outputs: list[Output]) -> list[int]:
    return [t for o in outputs for t in ((o.token_id, *o.written) if o.token_id is not None else ())]


def alone(prompt: list[int], seed: int, *, first: tuple[int, ...] = (), **params: int) -> list[int]:
    """What one guided choice gives in an engine of its own."""
    engine = new_engine()
    asked = SamplingParams(constraint=CONSTRAINED, **params)  # type: ignore[arg-type]
    engine.add("r", prompt, asked, seed=seed, guides=ScriptedGuides(first))
    return tokens_of(collect(engine)["r", 0])


def test_masks_hold_refusals_hold_and_runs_are_written() -> None:
    guides = ScriptedGuides(first=(7, 9))
    engine = new_engine()
    engine.add("r", [1, 2, 3], SamplingParams(constraint=CONSTRAINED), seed=5, guides=guides)
    outputs = collect(engine)["r", 0]
    tokens = tokens_of(outputs)
    assert tokens == guides.made[0].tokens  # which checked each of them
    assert tokens[:2] == [7, 9]
    assert outputs[-1].sequence.finish_reason == "stop"
    assert guides.made[0].finished
    assert len(outputs) < len(tokens)  # some were written without a step of their own
    assert guides.made[0].masks < len(tokens)


def test_the_thread_of_the_masks_ends_with_its_engine() -> None:
    before = set(threading.enumerate())
    engine = new_engine()
    engine.add("r", [1, 2, 3], SamplingParams(constraint=CONSTRAINED), seed=5, guides=ScriptedGuides())
    collect(engine)
    (thread,) = set(threading.enumerate()) - before
    del engine
    gc.collect()
    thread.join(10)
    assert not thread.is_alive()


@settings(max_examples=25, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=5),
    batch_tokens=st.sampled_from([8, 17, 64]),
    seed=st.integers(0, 1 << 63),
    first=st.sampled_from([(), (7,), (7, 9, 11)]),
    max_tokens=st.sampled_from([1, 2, 3, 17, 60]),
    spare_core=st.booleans(),
)
def test_any_company(
    spare_core: bool,
    prompts: list[int],
    batch_tokens: int,
    seed: int,
    first: tuple[int, ...],
    max_tokens: int,
) -> None:
    engine = new_engine(batch_tokens=batch_tokens, max_sequences=6, spare_core=spare_core)
    for number, tokens in enumerate(prompts):
        asked = SamplingParams(constraint=CONSTRAINED, max_tokens=max_tokens, n=1 + number % 2)
        engine.add(
            str(number), [number + i for i in range(tokens)], asked, seed=seed, guides=ScriptedGuides(first)
        )
        engine.add(f"free {number}", [3] * tokens, SamplingParams(max_tokens=9), seed=seed)
    found = collect(engine)
    for number, tokens in enumerate(prompts):
        for choice in range(1 + number % 2):
            expected = alone(
                [number + i for i in range(tokens)], seed + choice, first=first, max_tokens=max_tokens
            )
            assert tokens_of(found[str(number), choice]) == expected


def test_logprobs_change_no_token_and_are_there_for_every_one() -> None:
    plain = alone([4, 5], 11, first=(7, 9))
    engine = new_engine()
    asked = SamplingParams(constraint=CONSTRAINED, logprobs=2)
    engine.add("r", [4, 5], asked, seed=11, guides=ScriptedGuides((7, 9)))
    outputs = collect(engine)["r", 0]
    assert [o.token_id for o in outputs] == plain
    assert all(np.isfinite(o.logprob) and len(o.top) == 2 and not o.written for o in outputs)


def test_penalties_see_written_tokens() -> None:
    assert alone([4, 5], 11, presence_penalty=2) != alone([4, 5], 11)


@pytest.mark.parametrize("first", [(), (7, 9, 11)])
@pytest.mark.parametrize("logprobs", [None, 0])
def test_going_on_from_anywhere_gives_the_same(first: tuple[int, ...], logprobs: int | None) -> None:
    """Also from the middle of a run: what was forced there is forced again."""
    whole = alone([4, 5], 12, first=first)
    for cut in range(len(whole)):
        engine = new_engine()
        asked = SamplingParams(constraint=CONSTRAINED, logprobs=logprobs)
        engine.add("r", [4, 5], asked, seed=12, resume=(tuple(whole[:cut]),), guides=ScriptedGuides(first))
        assert tokens_of(collect(engine)["r", 0]) == whole[cut:], f"cut at {cut}"


@pytest.mark.parametrize("spare_core", [True, False])
def test_a_fault_ends_one_choice(spare_core: bool) -> None:
    engine = new_engine(spare_core=spare_core)
    asked = SamplingParams(constraint=CONSTRAINED)
    engine.add("bad", [4, 5], asked, seed=12, guides=ScriptedGuides(faulty_at=8))
    engine.add("good", [4, 5], asked, seed=12, guides=ScriptedGuides())
    found = collect(engine)
    assert found["bad", 0][-1].sequence.finish_reason == "error"
    reason = "the constraint cannot be followed further: the grammar is too complex here"
    assert found["bad", 0][-1].sequence.stop_reason == reason
    assert tokens_of(found["good", 0]) == alone([4, 5], 12)
    assert engine.pool.held == 0


@pytest.mark.parametrize("logit_bias", [{}, dict.fromkeys(range(0, VOCABULARY, 4), -float("inf"))])
def test_a_fault_of_a_refusal_ends_one_choice(logit_bias: dict[int, float]) -> None:
    """An error while a token is looked at, or no token that is not refused: whoever else is there goes on."""
    engine = new_engine()
    asked = SamplingParams(constraint=CONSTRAINED, logit_bias=logit_bias)
    engine.add("bad", [4, 5], asked, seed=12, guides=ScriptedGuides(refuses_from=1))
    engine.add("good", [4, 5], SamplingParams(constraint=CONSTRAINED), seed=12, guides=ScriptedGuides())
    found = collect(engine)
    end = found["bad", 0][-1].sequence
    assert end.finish_reason == "error"
    assert str(end.stop_reason).startswith("the constraint")
    assert ("nested too deeply" in str(end.stop_reason)) == (not logit_bias)
    assert tokens_of(found["good", 0]) == alone([4, 5], 12)
    assert engine.pool.held == 0


def test_without_a_compiler_a_constraint_is_refused() -> None:
    engine = new_engine()
    with pytest.raises(RequestError, match="no grammars"):
        engine.add("r", [1], SamplingParams(constraint=CONSTRAINED), seed=0)
    with pytest.raises(RequestError, match="loaded without grammars"):
        text_engine().open(Request("r", "x", SamplingParams(constraint=CONSTRAINED)), [1])
    assert not engine.busy


def test_a_journal_replays_with_its_guides() -> None:
    entries: list[Entry] = []
    engine = new_engine(entries, batch_tokens=16, max_sequences=3)
    for number in range(4):
        asked = SamplingParams(constraint=CONSTRAINED, n=2, max_tokens=30)
        engine.add(str(number), [number] * 20, asked, seed=number, guides=ScriptedGuides())
    collect(engine)
    recorded = RecordedEngine(VOCABULARY, 40, 600, engine.options)
    plans = list(replay(recorded, entries, guides_of=lambda _: ScriptedGuides()))
    assert len(plans) == engine.stats().steps
    with pytest.raises(RequestError, match="no grammars"):
        list(replay(recorded, entries))


# --- text ---


def guided_text_engine() -> TextEngine:
    plain = text_engine()
    return TextEngine(
        plain.engine, plain.tokenizer, seeds=plain._seeds, name="fake", guides_of=lambda _: ScriptedGuides()
    )


@pytest.mark.parametrize("streams", [True, False])
def test_events_of_a_guided_answer(streams: bool) -> None:
    engine = guided_text_engine()
    request = Request("r", "ab", SamplingParams(constraint=CONSTRAINED, n=2, seed=4))
    engine.open(request, engine.encode(request), streams=streams)
    events = list(run(engine))
    for choice in range(2):
        mine = [e for e in events if isinstance(e, (TokensEvent, DoneEvent)) and e.choice == choice]
        done = mine[-1]
        assert isinstance(done, DoneEvent)
        assert done.finish_reason == "stop"
        assert done.warnings == ("one was relaxed",)
        tokens = [t for e in mine if isinstance(e, TokensEvent) for t in e.token_ids]
        assert done.usage.completion_tokens == len(tokens) > 1
        text = "".join(e.text for e in mine if isinstance(e, TokensEvent))
        assert text == ByteTokenizer().decode(tokens)  # the last one too: it is no end token
    assert engine._requests == {}


def run(engine: TextEngine) -> Iterator[object]:
    while engine.busy:
        yield from engine.step()


# --- log-probabilities of prompts ---


@pytest.mark.parametrize("prompt", ["a", "ab", "abcdefghijklmnopqrstuvwxyz" * 4])
@pytest.mark.parametrize("warm", [False, True])
def test_prompt_logprobs_come_first_and_are_those_of_scoring(prompt: str, warm: bool) -> None:
    engine = text_engine(batch_tokens=16, max_sequences=4)
    ids = list(prompt.encode())
    if warm:
        engine.open(Request("warm", prompt, SamplingParams(max_tokens=2)), ids)
        list(run(engine))
    for number in range(2):
        asked = SamplingParams(max_tokens=3, prompt_logprobs=2, seed=1, n=2)
        engine.open(Request(str(number), prompt, asked), ids)
    events = list(run(engine))
    for number in range(2):
        mine = [e for e in events if e.request_id == str(number)]  # type: ignore[attr-defined]
        first = mine[0]
        assert isinstance(first, PromptEvent)
        assert [entry.token_id for entry in first.logprobs] == ids[1:]
        assert all(len(entry.top) == 2 and entry.logprob <= 0 for entry in first.logprobs)
        assert sum(isinstance(e, PromptEvent) for e in mine) == 1
        assert sum(isinstance(e, DoneEvent) for e in mine) == 2
        assert all(e.request_id == str(number) for e in mine)  # type: ignore[attr-defined]
    assert not engine._scoring
    engine.engine.check()
    assert engine.engine.pool.held == 0


def test_leaving_while_the_prompt_is_scored() -> None:
    engine = text_engine(batch_tokens=16, max_sequences=4)
    engine.open(Request("r", "x" * 200, SamplingParams(prompt_logprobs=0)), [120] * 200)
    engine.step()
    engine.abort("r")
    assert not engine.busy
    assert not engine._scoring
    with pytest.raises(RequestError):
        engine.open(Request("r", "x", SamplingParams(prompt_logprobs=0)), [999])
    assert not engine.busy
    assert not engine._scoring
    engine.engine._runner._interpreter.fail_at_run = 2  # type: ignore[attr-defined]
    engine.open(Request("r", "xy", SamplingParams(prompt_logprobs=0)), [1, 2])
    with pytest.raises(EngineError, match="scripted"):
        list(run(engine))
    assert not engine._scoring


# --- drafts ---


@settings(max_examples=30, deadline=None)
@given(
    prompts=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    batch_tokens=st.sampled_from([8, 17, 64]),
    seed=st.integers(0, 1 << 63),
    first=st.sampled_from([(), (7,), (7, 9, 11)]),
    max_tokens=st.sampled_from([1, 2, 3, 17, 60]),
    err=st.sampled_from([1, 2, 5, 1000]),
    logprobs=st.sampled_from([None, 1]),
    faulty_at=st.sampled_from([None, 0, 9]),
    spare_core=st.booleans(),
)
def test_drafts_change_nothing(
    prompts: list[int],
    batch_tokens: int,
    seed: int,
    first: tuple[int, ...],
    max_tokens: int,
    err: int,
    logprobs: int | None,
    faulty_at: int | None,
    spare_core: bool,
) -> None:
    def fill(engine: Engine) -> dict[tuple[str, int], list[Output]]:
        for number, tokens in enumerate(prompts):
            asked = SamplingParams(constraint=CONSTRAINED, max_tokens=max_tokens, n=2, logprobs=logprobs)
            guides = ScriptedGuides(first, faulty_at)
            engine.add(str(number), [number + i for i in range(tokens)], asked, seed=seed, guides=guides)
        return collect(engine)

    def told(found: dict[tuple[str, int], list[Output]]) -> dict[tuple[str, int], object]:
        return {
            key: (
                tokens_of(outputs),
                [
                    entry
                    for o in outputs
                    for token, entry in zip(
                        (o.token_id, *o.written), ((o.logprob, o.top), *o.written_logprobs), strict=False
                    )
                    if logprobs is not None and token != -1
                ],
                outputs[-1].sequence.finish_reason,
                outputs[-1].sequence.stop_reason,
            )
            for key, outputs in found.items()
        }

    plain = fill(new_engine())
    answers = [outputs[-1].sequence.ids.tolist() for outputs in plain.values()]
    drafters = (CribbingDrafters(answers, err, VOCABULARY),)
    engine = new_engine(drafters=drafters, batch_tokens=batch_tokens, max_sequences=6, spare_core=spare_core)
    assert engine._speculator is not None
    engine._speculator._cost = FreeCost()
    assert told(fill(engine)) == told(plain)


def test_right_guesses_of_guided_answers_save_steps() -> None:
    plain = new_engine()
    plain.add("r", [4, 5], SamplingParams(constraint=CONSTRAINED), seed=12, guides=ScriptedGuides())
    (expected,) = collect(plain).values()
    answer = expected[-1].sequence.ids.tolist()
    engine = new_engine(drafters=(CribbingDrafters([answer], 1000, VOCABULARY),))
    assert engine._speculator is not None
    engine._speculator._cost = FreeCost()
    engine.add("r", [4, 5], SamplingParams(constraint=CONSTRAINED), seed=12, guides=ScriptedGuides())
    (found,) = collect(engine).values()
    assert tokens_of(found) == tokens_of(expected)
    assert engine.stats().steps < plain.stats().steps / 2


class BreakingGuide(ScriptedGuide):
    """Cannot be told of its tenth token."""

    def push(self, token_id: int) -> None:
        if len(self.tokens) == 9:
            raise RequestError("the grammar cannot follow")
        super().push(token_id)


class BreakingGuides(ScriptedGuides):
    """Gives `BreakingGuide`s."""

    def new(self) -> ScriptedGuide:
        self.made.append(BreakingGuide())
        return self.made[-1]


@pytest.mark.parametrize("logprobs", [None, 0])
def test_a_guide_that_fails_inside_a_draft_ends_its_own_choice(logprobs: int | None) -> None:
    asked = SamplingParams(constraint=CONSTRAINED, logprobs=logprobs)

    def run_both(drafters: Sequence[Drafters]) -> list[tuple[object, ...]]:
        engine = new_engine(drafters=drafters)
        if engine._speculator is not None:
            engine._speculator._cost = FreeCost()
        engine.add("breaks", [4, 5], asked, seed=12, guides=BreakingGuides())
        engine.add("good", [4, 5], asked, seed=12, guides=ScriptedGuides())
        found = collect(engine)
        ends = [found[name, 0][-1].sequence for name in ("breaks", "good")]
        return [(end.ids.tolist(), end.finish_reason, end.stop_reason) for end in ends]

    plain = run_both(())
    assert [end[1] for end in plain] == ["error", "stop"]
    good = plain[1][0]
    assert isinstance(good, list)
    assert run_both((CribbingDrafters([good], 1000, VOCABULARY),)) == plain
