"""The check of drafted answers against plain ones finds what differs, and what was never tried."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from bench.speculation_equality import Answer, Asked, Comparison, read_prompts, summary

from stoker.api.errors import EngineError


def test_prompts_are_the_lines_that_have_one() -> None:
    lines = [
        '{"prompt": "a", "set": 1}',
        "",
        '{"turns": ["b"]}',
        '{"prompt": ""}',
        '["c"]',
        '{"prompt": "d\u2028e"}',  # as it is: JSON allows it
    ]
    text = "\r\n".join(lines)
    assert read_prompts(text, None) == ["a", "d\u2028e"]
    assert read_prompts(text, 1) == ["a"]
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        read_prompts('{"prompt": "a"}\n{', None)
    with pytest.raises(ValueError, match="no line"):
        read_prompts('{"turns": ["b"]}', None)


def asked(*token_ids: list[int], ends: str = "stop", drafted: int = 0) -> Asked:
    return Asked({i: Answer(ids, "x", [], (ends,)) for i, ids in enumerate(token_ids)}, drafted, 0, 7)


PLAIN = asked([1, 2, 3], [4, 5])


@pytest.mark.parametrize(
    ("found", "unequal"),
    [
        (PLAIN, []),
        (asked([1, 2, 3], [4, 6]), [{"prompt": 1, "token": 1}]),
        (asked([1, 2], [4, 5]), [{"prompt": 0, "token": 2}]),
        (
            asked([1, 2, 3], [4, 5], ends="length"),
            [{"prompt": 0, "token": None}, {"prompt": 1, "token": None}],
        ),
        (Asked({0: PLAIN.answers[0]}, 0, 0, 7), [{"prompt": 1, "token": 0}]),
    ],
    ids=["equal", "token", "length", "end", "missing"],
)
def test_an_answer_that_differs_is_found(
    monkeypatch: pytest.MonkeyPatch, found: Asked, unequal: list[Mapping[str, Any]]
) -> None:
    def ask(self: Comparison, drafters: str, *_: object) -> Asked:
        return PLAIN if drafters == "off" else found

    monkeypatch.setattr(Comparison, "_ask", ask)
    rows = list(Comparison(None, ["p", "q"], 8).rows(["greedy"], ["ngram"]))
    assert [row["streams"] for row in rows] == [1, 16]
    assert all(row["first_unequal"] == unequal for row in rows)
    assert summary(rows) == {
        "compared": 4,
        "unequal": 2 * len(unequal),
        "drafted_nothing": ["ngram x 1", "ngram x 16"],
    }


def test_an_engine_that_fails_is_unequal_and_the_others_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    def ask(self: Comparison, drafters: str, *_: object) -> Asked:
        if drafters == "ngram":
            raise EngineError("step 3 failed")
        return asked([1, 2, 3], [4, 5], drafted=9)

    monkeypatch.setattr(Comparison, "_ask", ask)
    rows = list(Comparison(None, ["p", "q"], 8).rows(["greedy"], ["ngram", "suffix"]))
    assert [row["unequal"] for row in rows] == [2, 2, 0, 0]
    assert "step 3 failed" in rows[0]["error"]
    assert summary(rows) == {"compared": 8, "unequal": 4, "drafted_nothing": ["ngram x 1", "ngram x 16"]}
