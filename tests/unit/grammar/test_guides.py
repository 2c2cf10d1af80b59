"""Constraints of every kind: what comes of chance under their masks is what they say."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from tests.unit.grammar.driving import (
    PADDING,
    allowed,
    bpe_tokenizer,
    can_write,
    compiler,
    guides,
    spm_tokenizer,
    write_at_random,
)

from stoker.api.constraint import Constraint
from stoker.api.errors import EngineError, RequestError
from stoker.api.request import SamplingParams
from stoker.grammar.guide import mask_words, tokens_in

PERSON = json.dumps(
    {
        "type": "object",
        "properties": {"name": {"enum": ["aaa", "ab", "red"]}, "in": {"type": "integer", "maximum": 20}},
        "required": ["name", "in"],
        "additionalProperties": False,
    }
)


@pytest.mark.parametrize(
    ("pattern", "good", "bad"),
    [
        (r"\d{2}-\d", "12-3", "\u0661\u0662-\u0663"),
        (r"[\d.]+", "1.5", "1.\u0663"),
        (r"a\\d", "a\\d", "a\\3"),
        (r"[^\d]", "x", "3"),
        (r"-\d-", "-3-", "-\u0663-"),
        (r"[\d-]+", "1-3", "1-\u06f3x"),
    ],
)
def test_digits_of_a_regex_are_those_of_ascii(pattern: str, good: str, bad: str) -> None:
    assert can_write(guides("regex", pattern).new(), good)
    assert not can_write(guides("regex", pattern).new(), bad)


@pytest.mark.parametrize("seed", range(12))
def test_a_regex_is_matched_as_a_whole(seed: int) -> None:
    written = write_at_random(guides("regex", r"(red|blue){1,3}-[0-9]{2}x?"), seed)
    assert written.finished
    assert re.fullmatch(r"(red|blue){1,3}-[0-9]{2}x?", written.text)


@pytest.mark.parametrize("seed", range(12))
def test_a_choice_is_one_of_its_texts(seed: int) -> None:
    choices = ("red", "redder", 'a "quoted" one\n', "\u00fc", "[CALLS]")
    written = write_at_random(guides("choice", choices=choices), seed)
    assert written.text in choices
    assert written.finished


@pytest.mark.parametrize("seed", range(12))
def test_a_json_object_is_json_and_an_object(seed: int) -> None:
    written = write_at_random(guides("json_object"), seed, most_tokens=200)
    if written.finished:
        assert isinstance(json.loads(written.text), dict)


@pytest.mark.parametrize("seed", range(12))
def test_a_lark_grammar_is_followed(seed: int) -> None:
    written = write_at_random(guides("lark", 'start: "a" inner "b"\ninner: "(" inner ")" | /[0-9]+/'), seed)
    if written.finished:
        assert re.fullmatch(r"a\(*[0-9]+\)*b", written.text)
        assert written.text.count("(") == written.text.count(")")


def test_gbnf_is_read_as_well() -> None:
    source = guides("lark", 'root ::= "yes" | "no" [0-9]+')
    assert can_write(source.new(), "yes")
    assert can_write(source.new(), "no42")
    assert not can_write(source.new(), "no")


@pytest.mark.parametrize("seed", range(12))
def test_a_schema_is_satisfied(seed: int) -> None:
    written = write_at_random(guides("json_schema", PERSON), seed)
    assert written.finished
    person = json.loads(written.text)
    assert list(person) == ["name", "in"]
    assert person["name"] in ("aaa", "ab", "red")
    assert person["in"] <= 20
    assert written.text == json.dumps(person)


def test_what_is_forced_is_tokenized_as_the_model_would() -> None:
    text = '{"name": "red", "true": [true, "in"]}'
    guide = guides("json_schema", json.dumps({"const": json.loads(text)})).new()
    ids: list[int] = []
    while not guide.finished:
        assert guide.forced, "all of it is forced"
        ids += guide.forced
        for token_id in guide.forced:
            guide.push(token_id)
    assert ids == bpe_tokenizer().encode(text, add_special=False)


def test_a_forced_run_is_kept_to_its_end_whenever_it_is_asked_for() -> None:
    source = guides("json_schema", PERSON)
    asked, unasked = source.new(), source.new()
    run = asked.forced
    assert len(run) > 1
    for at, token_id in enumerate(run):
        assert asked.forced == run[at:]
        asked.push(token_id)
        unasked.push(token_id)
    assert asked.forced == unasked.forced


def test_a_token_that_may_not_come_is_an_error_of_the_caller() -> None:
    guide = guides("json_schema", PERSON).new()
    with pytest.raises(EngineError, match="is forced"):
        guide.push(guide.forced[0] + 1)
    guide = guides("regex", "[ab]+").new()
    with pytest.raises(EngineError, match="does not allow"):
        guide.push(bpe_tokenizer().encode("z", add_special=False)[0])


def test_the_end_tokens_are_allowed_where_the_text_may_end_and_padding_never() -> None:
    tokenizer = bpe_tokenizer()
    guide = guides("regex", "a{2,}").new()
    stops = set(tokenizer.stop_ids)
    assert not stops & set(allowed(guide, tokenizer))
    for token_id in tokenizer.encode("aaa", add_special=False):
        guide.push(token_id)
    found = allowed(guide, tokenizer)
    assert stops <= set(found)
    assert max(found) < tokenizer.vocab_size
    assert not set(tokenizer.special_ids) - stops & set(found)
    for stop in stops:
        twin = guides("regex", "a{2,}").new()
        for token_id in tokenizer.encode("aaa", add_special=False):
            twin.push(token_id)
        twin.push(stop)
        assert twin.finished


def test_a_mask_overwrites_what_was_in_the_row() -> None:
    tokenizer = bpe_tokenizer()
    words = mask_words(tokenizer.vocab_size + PADDING)
    zeros, ones = np.zeros(words, np.uint32), np.full(words, 0xFFFFFFFF, np.uint32)
    for row in (zeros, ones):
        guides("regex", "[ab]x").new().fill_mask(row)
    assert np.array_equal(zeros, ones)
    assert [tokenizer.token_bytes(i) for i in tokens_in(ones, 10) or ()] == [b"a", b"b"]


def test_a_tokenizer_that_writes_a_space_first_does_not_write_it_in_the_middle() -> None:
    tokenizer = spm_tokenizer()
    source = compiler("spm").guides(
        SamplingParams(constraint=Constraint("json_schema", json.dumps({"const": {"a": "a a"}})))
    )
    assert source is not None
    guide = source.new()
    ids: list[int] = []
    while not guide.finished:
        assert guide.forced
        ids.append(guide.forced[0])
        guide.push(ids[-1])
    assert tokenizer.join_bytes(ids) == b'{"a": "a a"}'


@pytest.mark.parametrize(
    ("kind", "text", "named"),
    [
        ("regex", "(", "regex"),
        ("regex", "(?=a)b", "regex"),
        ("lark", "start: a", "lark"),
        ("lark", "start: A\nA: B\nB: A", "lark"),
        ("lark", "root ::= ::=", "GBNF|lark"),
        ("regex", "\ud800", "cannot be read"),
        ("json_schema", "{", "not JSON"),
        ("json_schema", '{"minimum": ' + "1" * 5000 + "}", "not JSON"),
        ("json_schema", '{"minimum": 1e999}', "too large a number"),
        ("json_schema", '{"enum": [1e999]}', "too large a number"),
        ("json_schema", "7", "allowed: an object"),
        ("json_schema", "[" * 100_000, "not JSON"),
        ("json_schema", "false", "contradicts itself"),
    ],
)
def test_what_is_no_grammar_is_refused_by_name(kind: str, text: str, named: str) -> None:
    with pytest.raises(RequestError, match=named) as caught:
        guides(kind, text)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize(
    "regex",
    [
        "a{1,1000}{1,1000}{1,1000}",
        "(a{0,500}b{0,500}){0,500}[ab]{400}x",
        "[ab]*a[ab]{2000}x",
        "(.*a){25}b",
        "((a|b|ab|ba|aab)*c){30}",
        "[ab]{0,60000}x",
    ],
)
def test_repeats_that_explode_elsewhere_are_followed_or_refused_in_bounded_work(regex: str) -> None:
    try:
        source = guides("regex", regex)
        for seed in range(3):
            written = write_at_random(source, seed, most_tokens=200)
            assert not written.finished or re.fullmatch("[abcx.]*|.*b", written.text, re.DOTALL)
    except RequestError as error:
        said = str(error)
    else:
        return
    assert "regex" in said or "cannot be followed" in said


def test_nothing_asked_needs_no_guide() -> None:
    assert compiler().guides(SamplingParams()) is None
