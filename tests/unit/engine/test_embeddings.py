"""Prompts that are embedded: the same vector however they are computed and beside whom; bad input."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fakes import HIDDEN_WIDTH, ScriptedInterpreter, scripted_logits, text_engine

from stoker.api.constraint import Constraint
from stoker.api.errors import PromptTooLongError, RequestError
from stoker.api.events import DoneEvent, EmbeddingEvent, Usage
from stoker.api.request import Pooling, Request, SamplingParams
from stoker.engine import Engine, EngineOptions, SchedulerOptions
from stoker.engine.journal import Entry
from stoker.engine.pooling import PooledStates
from stoker.engine.replay import RecordedEngine, replay
from stoker.sampling import ReferenceSampler

Vector = tuple[float, ...]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")


def by_definition(token_ids: list[int], pooling: Pooling) -> Vector:
    """Without an engine: one position after the other."""
    ids = np.array(token_ids)
    states = [scripted_logits(ids[: i + 1], HIDDEN_WIDTH).astype(np.float64) for i in range(len(ids))]
    total = states[-1]
    if pooling == "mean":
        total = states[0]
        for state in states[1:]:
            total = total + state
    scaled = total / total.max()
    length = math.sqrt(math.fsum((scaled * scaled).tolist()))
    return tuple((scaled / length).astype(np.float32).tolist())


def make_engine(*, num_blocks: int = 256, **scheduler: int) -> Engine:
    options = EngineOptions(2000, frozenset({49}), SchedulerOptions(**scheduler))
    return Engine(ScriptedInterpreter(vocabulary=50, num_blocks=num_blocks), ReferenceSampler(), options)


def drain(engine: Engine) -> dict[str, Vector | None]:
    found: dict[str, Vector | None] = {}
    while engine.busy:
        for output in engine.step():
            if output.vector is not None:
                assert output.sequence.finish_reason == "stop"
                found[output.sequence.request_id] = output.vector
        engine.check()
    assert engine.pool.held == 0
    return found


WORK = st.lists(
    st.tuples(st.sampled_from([*POOLINGS, None]), st.integers(1, 70), st.integers(0, 3), st.integers(0, 9)),
    min_size=1, max_size=9,
)  # fmt: skip  # what, tokens, which of a few texts, the step before which it arrives


@settings(max_examples=60, deadline=None)
@given(
    work=WORK,
    num_blocks=st.integers(6, 40),
    batch_tokens=st.sampled_from([8, 17, 512]),
    max_sequences=st.integers(1, 8),
)
def test_any_company_any_engine(
    work: list[tuple[Pooling | None, int, int, int]], num_blocks: int, batch_tokens: int, max_sequences: int
) -> None:
    """Beside answers, over shared prefixes, in chunks, preempted: bit for bit the definition's vector."""
    engine = make_engine(num_blocks=num_blocks, batch_tokens=batch_tokens, max_sequences=max_sequences)
    texts = [[(7 * text + 3 * i * i) % 50 for i in range(70)] for text in range(4)]
    waiting = dict(enumerate(work))
    found: dict[str, Vector] = {}
    step = 0
    while waiting or engine.busy:
        for number, (pooling, tokens, text, arrives) in list(waiting.items()):
            if arrives > step:
                continue
            del waiting[number]
            if pooling is None:
                engine.add(str(number), texts[text][:tokens], SamplingParams(max_tokens=20), seed=number)
            else:
                engine.add_embedding(str(number), texts[text][:tokens], pooling)
        for output in engine.step():
            if output.vector is not None:
                found[output.sequence.request_id] = output.vector
        engine.check()
        step += 1
        assert step < 5000, "the engine makes no progress"
    assert engine.pool.held == 0
    wanted = {
        str(number): by_definition(texts[text][:tokens], pooling)
        for number, (pooling, tokens, text, _) in enumerate(work)
        if pooling is not None
    }
    assert found == wanted


def test_a_preempted_sum_is_gone_on_with() -> None:
    """Beside answers that grow until the blocks end: keys and values are computed again, states are not."""
    engine = make_engine(num_blocks=18, batch_tokens=4, max_sequences=4)
    draw = random.Random(3)
    texts = [[draw.randrange(50) for _ in range(90)] for _ in range(3)]
    for i in range(2):
        engine.add(f"answer{i}", texts[i][:60], SamplingParams(max_tokens=70, ignore_eos=True), seed=i)
    while engine.stats().generated_tokens < 2:
        engine.step()
    engine.add_embedding("mean", texts[2], "mean")
    assert drain(engine) == {"mean": by_definition(texts[2], "mean")}
    assert engine.scheduler.preemptions > 0
    model = engine._runner._interpreter
    assert isinstance(model, ScriptedInterpreter)
    assert sum(len(batch.hidden_rows) for batch in model.batches) == 90
    assert sum(batch.tokens for batch in model.batches) > 2 * (60 + 69) + 90


def test_last_reads_a_cached_prefix_and_mean_computes_all() -> None:
    engine = make_engine(batch_tokens=32, max_sequences=2)
    text = [(i * i) % 50 for i in range(100)]
    engine.add_embedding("mean", text, "mean")
    cold = drain(engine)
    tokens = _tokens_of(engine, "last", text, "last")
    assert tokens == 100 - 96  # what filled no block
    assert engine.stats().prefix_hits_tokens == 96  # of the blocks that the mean's pass left
    assert _tokens_of(engine, "again", text, "mean") == 100
    engine.add_embedding("once more", text, "mean")
    assert drain(engine)["once more"] == cold["mean"]


def _tokens_of(engine: Engine, name: str, text: list[int], pooling: Pooling) -> int:
    """Tokens computed for one embedding."""
    model = engine._runner._interpreter
    assert isinstance(model, ScriptedInterpreter)
    model.batches.clear()
    engine.add_embedding(name, text, pooling)
    assert drain(engine)[name] == by_definition(text, pooling)
    return sum(batch.tokens for batch in model.batches)


def test_no_logits_are_computed() -> None:
    engine = make_engine(batch_tokens=32, max_sequences=2)
    engine.add_embedding("a", list(range(40)), "last")
    drain(engine)
    model = engine._runner._interpreter
    assert isinstance(model, ScriptedInterpreter)
    assert [len(batch.logit_rows) for batch in model.batches] == [0, 0]
    assert [len(batch.hidden_rows) for batch in model.batches] == [0, 1]


def test_journals_replay() -> None:
    entries: list[Entry] = []
    interpreter = ScriptedInterpreter(vocabulary=50, num_blocks=30)
    options = EngineOptions(400, frozenset({49}), SchedulerOptions(batch_tokens=16, max_sequences=3))
    engine = Engine(interpreter, ReferenceSampler(), options, journal=entries.append)
    engine.add_embedding("a", list(range(40)), "mean")
    engine.add("b", list(range(20)), SamplingParams(max_tokens=9), seed=5)
    engine.add_embedding("c", list(range(30)), "last")
    drain(engine)
    plans = list(replay(RecordedEngine(50, 30, 400, options), entries))
    assert len(plans) > 5


@pytest.mark.parametrize("pooling", POOLINGS)
def test_events(pooling: Pooling) -> None:
    engine = text_engine()
    request = Request("r", "coal and water", pooling=pooling)
    engine.open(request, engine.encode(request))
    events = []
    while engine.busy:
        events += engine.step()
    embedding, done = events
    assert isinstance(embedding, EmbeddingEvent)
    assert embedding.vector == by_definition(list(b"coal and water"), pooling)
    assert math.isclose(sum(x * x for x in embedding.vector), 1, rel_tol=1e-6)
    assert done == DoneEvent("r", 0, "stop", None, 0, Usage(14, 0, 0))


def test_bad_input() -> None:
    engine = make_engine(num_blocks=4)
    with pytest.raises(RequestError, match="prompt is empty"):
        engine.add_embedding("a", [], "mean")
    with pytest.raises(RequestError, match="token id 50; allowed: 0 to 49"):
        engine.add_embedding("a", [50], "mean")
    with pytest.raises(PromptTooLongError, match="65 tokens; allowed: at most 64, with none more"):
        engine.add_embedding("a", [1] * 65, "mean")
    engine.add_embedding("a", [1] * 64, "mean")
    with pytest.raises(RequestError, match="open already"):
        engine.add_embedding("a", [1], "last")
    assert len(drain(engine)) == 1
    wrong: list[tuple[SamplingParams, str]] = [
        (SamplingParams(n=2), "n is 2; allowed: 1"),
        (SamplingParams(constraint=Constraint("regex", "a")), "constraint is given; allowed: none"),
        (SamplingParams(prompt_logprobs=1), "prompt_logprobs is given; allowed: none"),
    ]
    texts = text_engine()
    for params, words in wrong:
        with pytest.raises(RequestError, match=words):
            texts.open(Request("r", "coal", params, pooling="mean"), [1])
    assert not texts.busy


def test_an_abort_drops_it() -> None:
    engine = text_engine(batch_tokens=64)
    request = Request("r", "x" * 200, pooling="mean")
    engine.open(request, engine.encode(request))
    assert engine.step() == []
    engine.abort("r")
    assert not engine.busy
    engine.engine.check()


@pytest.mark.parametrize("states", [np.zeros((2, 4)), np.full((2, 4), np.nan), np.array([[np.inf, 1.0]])])
def test_states_without_a_direction(states: np.ndarray) -> None:
    pooled = PooledStates("mean", 2)
    pooled.add(states.astype(np.float32), 2)
    assert pooled.vector() is None


def test_sizes_that_squares_cannot_hold() -> None:
    for size in (1e-38, 1e37):
        pooled = PooledStates("last", 1)
        pooled.add(np.array([[3 * size, -4 * size]], np.float32), 1)
        vector = pooled.vector()
        assert vector is not None
        assert np.allclose(vector, [0.6, -0.8], atol=1e-7)
