"""Engines side by side on one model, each with KV blocks of its own, and drafters of one draft model."""

from __future__ import annotations

import pytest
from tests.drafts import FreeCost
from tests.fakes import ScriptedInterpreter

from stoker.api import SamplingParams
from stoker.api.errors import EngineError
from stoker.engine import Engine, EngineOptions
from stoker.sampling import ReferenceSampler
from stoker.speculation import Drafters
from stoker.speculation.draft_model import DraftModel, DraftModelDrafters

BLOCKS = 64
PARAMS = SamplingParams(max_tokens=60, ignore_eos=True, temperature=0.8)


def new_engine(
    interpreter: ScriptedInterpreter, blocks: range | None, drafters: tuple[Drafters, ...] = ()
) -> Engine:
    options = EngineOptions(2000, blocks=blocks)
    return Engine(interpreter, ReferenceSampler(), options, drafters=drafters, draft_cost=FreeCost())


def add(engine: Engine, shift: int) -> None:
    for number in range(3):
        engine.add(str(number), [shift, 3, 1, 4, number] * 9, PARAMS, seed=number)


def step(engine: Engine, answers: dict[str, list[int]]) -> None:
    for output in engine.step():
        answers[output.sequence.request_id] = output.sequence.ids.tolist()
    engine.check()


def alone(shift: int) -> dict[str, list[int]]:
    engine, answers = new_engine(ScriptedInterpreter(num_blocks=BLOCKS), None), {}
    add(engine, shift)
    while engine.busy:
        step(engine, answers)
    return answers


@pytest.mark.parametrize("drafting", [False, True])
def test_each_answers_as_if_it_were_alone(drafting: bool) -> None:
    interpreter = ScriptedInterpreter(num_blocks=3 * BLOCKS)
    drafters: tuple[DraftModelDrafters, ...] = ()
    if drafting:
        same = ScriptedInterpreter(num_blocks=3 * BLOCKS)
        drafters = (DraftModelDrafters(DraftModel(same, ReferenceSampler(), 2000, 128)),)
    shares = [range(place * BLOCKS, (place + 1) * BLOCKS) for place in range(3)]
    engines = [new_engine(interpreter, share, drafters) for share in shares]
    answers: list[dict[str, list[int]]] = [{} for _ in engines]
    for shift, engine in enumerate(engines):
        add(engine, shift)
    while any(engine.busy for engine in engines):
        for engine, found in zip(engines, answers, strict=True):
            if engine.busy:
                step(engine, found)
    assert answers == [alone(shift) for shift in range(3)]
    for engine in engines:
        stats = engine.stats()
        assert stats.blocks == BLOCKS
        assert stats.accepted_tokens == stats.drafted_tokens
        assert (stats.drafted_tokens > 60) is drafting
    for batch in interpreter.batches:
        used = {int(block) // BLOCKS for block in batch.block_tables.ravel() if block >= 0}
        assert len(used) == 1  # nobody's block stands in another's table


@pytest.mark.parametrize("blocks", [range(-1, 5), range(90, 101), range(0, 10, 2), range(5, 0, -1)])
def test_blocks_that_are_not_there_are_refused(blocks: range) -> None:
    with pytest.raises(EngineError, match=r"KV blocks range\(.*allowed: some of range\(0, 100\), in order"):
        new_engine(ScriptedInterpreter(num_blocks=100), blocks)
