"""Time that drafts saved: told from the cost of plain steps, for right guesses and for wrong ones."""

from __future__ import annotations

from tests.drafts import CribbingDrafters
from tests.fakes import ScriptedInterpreter

from stoker.api import SamplingParams
from stoker.engine import Engine, EngineOptions
from stoker.sampling import ReferenceSampler
from stoker.speculation import Drafters

PARAMS = SamplingParams(max_tokens=120, ignore_eos=True, temperature=0)
STEP_MS, TOKEN_MS = 10.0, 0.2


def answered(drafters: tuple[Drafters, ...]) -> tuple[list[int], Engine, float]:
    """The sequence's ids, and what all steps of two answers took on a machine of fixed cost."""
    engine = Engine(ScriptedInterpreter(), ReferenceSampler(), EngineOptions(2000), drafters=drafters)
    total_ms, ids = 0.0, []
    for number in range(2):
        engine.add(str(number), [3, 1, 4, 1, 5], PARAMS, seed=1)
        while engine.busy:
            before = engine.stats().drafted_tokens
            outputs = engine.step()
            elapsed_ms = STEP_MS + TOKEN_MS * (1 + engine.stats().drafted_tokens - before)
            engine.observe(elapsed_ms)
            total_ms += elapsed_ms
            ids = outputs[-1].sequence.ids.tolist()
    return ids, engine, total_ms


def test_right_guesses_save_what_plain_steps_would_have_taken() -> None:
    ids, plain, plain_ms = answered(())
    assert plain.stats().draft_saved_ms == 0.0
    again, engine, drafted_ms = answered((CribbingDrafters([ids], 1000, 50),))
    assert again == ids
    stats = engine.stats()
    assert stats.accepted_tokens > 100
    # The cost is learnt on the way, and unknown for the first eight steps, in which drafts may save already.
    assert 0.3 * (plain_ms - drafted_ms) < stats.draft_saved_ms < 1.2 * (plain_ms - drafted_ms)


def test_wrong_guesses_cost() -> None:
    ids, _, plain_ms = answered(())
    _, engine, drafted_ms = answered((CribbingDrafters([ids], 1, 50),))
    assert engine.stats().drafted_tokens > 0
    assert engine.stats().accepted_tokens == 0
    assert drafted_ms > plain_ms
    assert engine.stats().draft_saved_ms <= 0
