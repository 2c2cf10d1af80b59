"""What `stoker bench grammar` counts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.unit.grammar.driving import bpe_tokenizer

from stoker.api.errors import RequestError
from stoker.bench.grammar import measure_rows, read_rows

GOLDEN = Path(__file__).parents[2] / "golden" / "jsonschema.jsonl"  # a few rows of JSONSchemaBench (MIT)


def _measure(*rows: dict[str, Any]) -> dict[str, Any]:
    seen: list[int] = []
    named = [{"name": str(at), **row} for at, row in enumerate(rows)]
    result = measure_rows(named, bpe_tokenizer(), progress=lambda done, total, name: seen.append(done))
    assert seen == list(range(len(rows)))
    return result


def test_right_and_wrong_are_told_apart() -> None:
    schema = {"properties": {"a": {"type": "integer"}, "b": {}}, "type": "object"}
    result = _measure(
        {
            "schema": schema,
            "tests": [
                {"valid": True, "data": {"a": 1, "b": 2}},
                {"valid": True, "data": {"b": 2, "a": 1}},  # only in the other order
                {"valid": True, "data": {"a": "wrongly called valid"}},
                {"valid": False, "data": {"a": "x"}},
                {"valid": False, "data": {"a": 1}},  # wrongly called invalid
            ],
        },
        {"schema": {"type": "strng"}, "tests": [{"valid": True, "data": 1}]},
    )
    assert result["compiled_share"] == 0.5
    assert (result["valid_instances"], result["invalid_instances"]) == (3, 2)
    assert result["wrong_reject_share"] == round(1 / 3, 5)
    assert result["wrong_reject_as_given_share"] == round(2 / 3, 5)
    assert result["wrong_accept_share"] == 0.5
    assert list(result["compile_errors"].values()) == [1]
    assert "type at #" in next(iter(result["compile_errors"]))
    assert 0 < result["mask_us_p50"] <= result["mask_us_p99"]


def test_nothing_to_measure_has_no_share() -> None:
    result = _measure()
    assert result["compiled_share"] is None
    assert result["mask_us_p99"] is None


def test_a_line_ends_where_json_says_it_does(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"name": "a\u2028b", "schema": {}, "tests": []}\n', encoding="utf-8")
    assert [row["name"] for row in read_rows(file)] == ["a\u2028b"]


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("{", "line 1"),
        ('\n{"schema": {}}', "line 2"),
        ('{"schema": {}, "tests": [{"valid": true}]}', "data"),
        ("[]", "line 1"),
    ],
)
def test_a_line_of_another_form_is_named(tmp_path: Path, text: str, named: str) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text(text)
    with pytest.raises(RequestError, match=named):
        list(read_rows(file))
    with pytest.raises(RequestError, match="cannot be read"):
        list(read_rows(tmp_path / "none"))


def test_real_schemas_are_enforced_with_the_tokens_of_a_small_vocabulary() -> None:
    rows = list(read_rows(GOLDEN))
    result = measure_rows(rows, bpe_tokenizer(), progress=lambda *_: None)
    assert result["compiled_share"] == 1
    assert result["wrong_accepts"] == []
    assert result["wrong_rejects"] == []
    assert json.dumps(result)
