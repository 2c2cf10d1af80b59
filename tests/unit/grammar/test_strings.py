"""Patterns: read as ECMAScript means them, and never given to Python's backtracking engine."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from llguidance import LLTokenizer

from stoker.api.errors import RequestError
from stoker.grammar.schema.strings import StringTests, none_of, split_pattern, to_rust

TESTS = StringTests(LLTokenizer("byte"))
TEXT = st.text(alphabet='ab"\\\n/{[-\u00e9', max_size=4)


@settings(max_examples=60, deadline=None)
@given(st.lists(TEXT, min_size=1, max_size=5), TEXT)
def test_none_of_leaves_out_exactly_these(texts: list[str], other: str) -> None:
    pattern = none_of(texts)
    assert not any(TESTS.finds(pattern, text) for text in texts)
    assert TESTS.finds(pattern, other) is (other not in texts)


@pytest.mark.parametrize(
    "pattern",
    [
        *(
            '^[^"]$',
            "^[^\\\\]$",
            '^[^"\\\\]$',
            "^[^a]$",
            "^[^\\n]$",
            "^\\S$",
            "^\\W$",
            "^.$",
            '^["]$',
            "^[\\\\]$",
        ),
        *(
            "^[!-~]$",
            '^[^"a-]$',
            "^[^\\x22]$",
            "^[^ -~]$",
            '^(?:[^"]|x)*$',
            "^[\\s\\S]$",
            "^[\\w.-]$",
            "^\\D$",
        ),
    ],
)
@pytest.mark.parametrize("char", ['"', "\\", "\n", "\t", "a", "-", "/", "\u00e9", "\x01", " "])
def test_classes_of_characters_hold_for_what_json_escapes(pattern: str, char: str) -> None:
    assert TESTS.finds(pattern, char) is bool(re.search(pattern, char, re.ASCII))


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        ("a", ["bab"], ["b", ""]),
        ("^a|b$", ["ac", "cb"], ["cac", "bc"]),
        ("^a{,2}$", ["a{,2}"], ["aa"]),
        ("^\\${x}$", ["${x}"], ["x"]),
        ("^[[]$", ["["], ["[["]),
        ("^[a&&b]+$", ["a&b"], ["c"]),
        ("^\\<a\\>$", ["<a>"], ["a"]),
        ("^(?=.*\\d)(?!.*a).{2,}$", ["1b", "b1"], ["1a", "bb", "1"]),
        ("^(?=a(?:b|c))a.$", ["ab", "ac"], ["ad"]),
        ("(?!a)b", None, None),
        ("^(?=a|b)|c", None, None),
        ("^a(?=b)", None, None),
        ("^(?:(?=a))a", None, None),
    ],
)
def test_ecmascript_is_read(pattern: str, good: list[str] | None, bad: list[str] | None) -> None:
    if good is None or bad is None:
        assert split_pattern(pattern) is None
        with pytest.raises(RequestError, match="lookaround"):
            TESTS.finds(pattern, "a")
        return
    assert all(TESTS.finds(pattern, text) for text in good)
    assert not any(TESTS.finds(pattern, text) for text in bad)


@settings(max_examples=100, deadline=None)
@given(st.text(alphabet='ab[]^\\{}12,-()?=!|.*+xu0"', max_size=12))
def test_translating_twice_changes_nothing_and_never_fails(pattern: str) -> None:
    once = to_rust(pattern)
    assert to_rust(once) == once
    split_pattern(pattern)


def test_a_pattern_that_backtracking_engines_hang_on_is_tested_at_once() -> None:
    assert not TESTS.finds("^(a+)+$", "a" * 2000 + "b")
    assert TESTS.finds("^(a+)+$", "a" * 2000)


@pytest.mark.parametrize(
    ("name", "good", "bad"),
    [
        ("json-pointer", "/a/~0~1", "a"),
        ("relative-json-pointer", "1/a", "/a"),
        ("uri-reference", "../a?b#c", "a b"),
        ("uri-template", "http://x/{a}", "{"),
        ("iri", "http://\u00fc.de/", "a"),
        ("iri-reference", "\u00fc", "a b"),
        ("idn-email", "\u00fc@b.de", "a"),
        ("idn-hostname", "m\u00fcnchen.de", "a b"),
        ("host-name", "a.b", "-"),
        ("ip-address", "127.0.0.1", "1.1"),
        ("uuid", "123e4567-e89b-12d3-a456-426614174000", "1"),
        ("date", "2024-02-29", "2024-13-01"),
    ],
)
def test_formats(name: str, good: str, bad: str) -> None:
    assert TESTS.has_format(name, good)
    assert not TESTS.has_format(name, bad)


def test_emptiness_is_only_claimed_where_it_is_proved() -> None:
    assert TESTS.is_empty({"allOf": [{"type": "string", "pattern": "^a+$"}, {"pattern": "^b+$"}]})
    assert not TESTS.is_empty({"allOf": [{"type": "string", "pattern": "^a"}, {"pattern": "b$"}]})
    assert not TESTS.is_empty({"$ref": "#/nowhere"})
