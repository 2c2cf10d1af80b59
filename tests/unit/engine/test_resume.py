"""An answer that goes on on another engine is the same answer."""

from __future__ import annotations

import pytest
from tests.fakes import ScriptedInterpreter

from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.engine import Engine, EngineOptions
from stoker.sampling import ReferenceSampler

PARAMS = SamplingParams(
    n=3, max_tokens=40, temperature=0.9, repetition_penalty=1.2, frequency_penalty=0.3, min_tokens=10
)
PROMPT = list(range(3, 60))


def engine() -> Engine:
    return Engine(ScriptedInterpreter(), ReferenceSampler(), EngineOptions(2000, frozenset({5, 6, 7, 8})))


def run(made: Engine, steps: int | None = None) -> dict[int, list[int]]:
    answers: dict[int, list[int]] = {}
    while made.busy and (steps is None or steps > 0):
        for output in made.step():
            assert output.token_id is not None
            answers.setdefault(output.sequence.choice, []).append(output.token_id)
        steps = None if steps is None else steps - 1
    return answers


@pytest.mark.parametrize("steps", [1, 2, 5, 17, 18, 30])
def test_every_choice_goes_on_at_its_next_token(steps: int) -> None:
    whole = engine()
    whole.add("a", PROMPT, PARAMS, seed=9)
    expected = run(whole)
    first = engine()
    first.add("a", PROMPT, PARAMS, seed=9)
    given = run(first, steps)
    open_choices = {sequence.choice for sequence in first.open_choices("a")}
    if not open_choices:
        pytest.skip("all choices are complete by then")
    second = engine()
    second.add(
        "a", PROMPT, PARAMS, seed=9,
        resume=tuple(tuple(given.get(c, ())) if c in open_choices else None for c in range(3)),
    )  # fmt: skip
    rest = run(second)
    second.check()
    assert {c: given.get(c, []) + rest.get(c, []) for c in range(3)} == expected


def test_what_cannot_go_on_is_refused() -> None:
    made = engine()
    with pytest.raises(RequestError, match="only complete choices"):
        made.add("a", PROMPT, PARAMS, seed=1, resume=(None, None, None))
    with pytest.raises(RequestError, match="resume has 40 tokens; allowed: at most 39"):
        made.add("a", PROMPT, PARAMS, seed=1, resume=((1,) * 40, (), ()))
    with pytest.raises(RequestError, match="token id 300"):
        made.add("a", PROMPT, PARAMS, seed=1, resume=((300,), (), ()))
    assert not made.busy
