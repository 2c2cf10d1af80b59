"""The bench of proposals measures proposals: its text has some to make, and is the same every time."""

from __future__ import annotations

from bench.proposals import Text, measure

from stoker.speculation import drafters_of


def test_a_text_is_a_function_of_its_seed() -> None:
    assert Text(3).tokens(500) == Text(3).tokens(500) != Text(4).tokens(500)
    text = Text(5)
    assert [len(text.tokens(count)) for count in (1, 7, 100)] == [1, 7, 100]


def test_a_drafter_is_asked_in_every_step_and_proposes_in_some() -> None:
    (drafters,) = drafters_of("ngram")
    row = measure(drafters, context_tokens=200, steps=50, seed=1)
    assert 0 < row["median_us"] <= row["p99_us"]
    assert 0 < row["proposed_share"] < 1
    assert 0 < row["tokens"] < 15
