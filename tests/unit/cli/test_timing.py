"""Rates of an answer, from stamps that are set by hand."""

from __future__ import annotations

import pytest

from stoker.cli.timing import AnswerTiming


def _timing(prompt: int, answer: int, first_s: float | None, last_s: float | None) -> AnswerTiming:
    return AnswerTiming(
        prompt, started_s=10.0, first_token_s=first_s, last_token_s=last_s, answer_tokens=answer
    )


def test_rates() -> None:
    timing = _timing(100, 11, 10.5, 12.5)
    assert timing.prompt_tokens_per_s == pytest.approx(200)
    assert timing.answer_tokens_per_s == pytest.approx(5)  # ten tokens after the first in two seconds
    assert timing.sentence() == (
        "prompt 100 tokens, 200 tokens/s; answer 11 tokens, 5 tokens/s; first token after 500 ms"
    )


def test_an_answer_of_one_token_has_no_rate_and_one_of_none_no_time() -> None:
    assert (
        _timing(3, 1, 10.5, 10.5).sentence()
        == "prompt 3 tokens, 6 tokens/s; answer 1 token; first token after 500 ms"
    )
    empty = _timing(3, 0, None, None)
    assert empty.sentence() == "prompt 3 tokens; answer 0 tokens"
    assert _timing(0, 2, 10.5, 11.5).sentence() == "answer 2 tokens, 1 tokens/s; first token after 500 ms"
    assert empty.as_dict()["time_to_first_token_s"] is None


def test_steps_without_tokens_are_no_arrival() -> None:
    timing = AnswerTiming(1)
    timing.count(0)
    assert timing.first_token_s is None
    timing.count(2)
    assert timing.first_token_s is not None
    assert timing.answer_tokens == 2
