"""Tags: calls by themselves, calls among text, and the values in them."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.grammar.driving import allowed, bpe_tokenizer, can_write, guides, write_at_random

from stoker.api.constraint import Tag, Tags
from stoker.api.errors import RequestError
from stoker.grammar.guide import Guides

INTEGER = {
    "type": "object",
    "properties": {"a": {"type": "integer"}},
    "required": ["a"],
    "additionalProperties": False,
}
UNIQUE = {
    "type": "object",
    "properties": {"b": {"type": "array", "uniqueItems": True}},
    "additionalProperties": False,
}


def tag(name: str, schema: Any, *, begin: str = '<call>{"name": "', end: str = "}</call>") -> Tag:
    """A call of `name`."""
    return Tag(f'{begin}{name}", "arguments": ', json.dumps(schema), end)


F, G = tag("f", INTEGER), tag("g", UNIQUE)
CALL_F = '<call>{"name": "f", "arguments": {"a": 1}}</call>'
CALL_G = '<call>{"name": "g", "arguments": {"b": [1, 2]}}</call>'
TWICE = '<call>{"name": "g", "arguments": {"b": [1, 1]}}</call>'


def tags(*which: Tag, **rest: Any) -> Guides:
    """The guides of tags."""
    return guides("tags", tags=Tags(which or (F, G), **rest))


def check(source: Guides, good: list[str], bad: list[str]) -> None:
    """All of `good` can be written and none of `bad`."""
    for text in good:
        assert can_write(source.new(), text), text
    for text in bad:
        assert not can_write(source.new(), text), text


def test_calls_alone_are_counted_and_separated() -> None:
    check(
        tags(least=1, most=2, between="\n"),
        [CALL_F, CALL_G, f"{CALL_F}\n{CALL_G}", f"{CALL_G}\n{CALL_G}"],
        [
            "",
            "text",
            CALL_F + CALL_F,
            TWICE,
            f"{CALL_F}\n{TWICE}",
            "\n".join([CALL_F] * 3),
            CALL_F.replace("1", '"x"'),
        ],
    )
    check(tags(), ["", CALL_F, CALL_F * 3], ["x", CALL_F + "x"])
    check(tags(least=2), [CALL_F * 2, CALL_F * 4], [CALL_F])


def test_text_may_come_before_between_and_after() -> None:
    check(
        tags(text=True, triggers=("<call>",)),
        ["", "text < <cal", CALL_F, f"text{CALL_F} and {CALL_G} end", "a\nb"],
        ["<call>", "text<call>{", f"{CALL_F}<call>", f"text {TWICE}", CALL_F.replace('"f"', '"h"')],
    )


def test_with_text_calls_are_counted_too() -> None:
    check(tags(text=True, triggers=("<call>",), least=1), [CALL_F, f"text{CALL_F} end"], ["", "text"])
    check(tags(text=True, triggers=("<call>",), most=1), ["text", f"a{CALL_F}b"], [f"a{CALL_F}b{CALL_F}"])


def test_a_control_token_is_meant_by_its_text() -> None:
    source = tags(
        tag("f", INTEGER, begin='{"name": "', end="}"), before="[CALLS][", between=", ", after="]", least=1
    )
    one = '{"name": "f", "arguments": {"a": 1}}'
    check(source, [f"[CALLS][{one}]", f"[CALLS][{one}, {one}]"], [one, f"[{one}]", f"[CALLS][{one}{one}]"])
    assert source.new().forced[0] == bpe_tokenizer().token_id("[CALLS]")


def test_a_control_token_may_come_at_any_time_in_text_and_begins_a_run() -> None:
    source = tags(
        tag("f", INTEGER, begin='{"name": "', end="}"),
        *(),
        before="[CALLS][",
        between=", ",
        after="]",
        text=True,
        triggers=("[CALLS]",),
    )
    one = '{"name": "f", "arguments": {"a": 1}}'
    check(
        source, ["text", f"text[CALLS][{one}, {one}]", f"[CALLS][{one}]"], ["text[CALLS]", f"[CALLS][{one}"]
    )
    tokenizer = bpe_tokenizer()
    guide = source.new()
    for token_id in tokenizer.encode("text", add_special=False):
        guide.push(token_id)
    assert tokenizer.token_id("[CALLS]") in allowed(guide, tokenizer)
    assert tokenizer.token_id("<think>") not in allowed(guide, tokenizer)


def test_a_tag_that_begins_with_nothing_stands_beside_the_others() -> None:
    answer = Tag("", json.dumps({"type": "object", "properties": {"name": {"maxLength": 3}}}), "")
    source = tags(tag("g", UNIQUE, begin='{"name": "', end="}"), answer, least=1, most=1)
    check(
        source,
        [
            '{"name": "g", "arguments": {"b": [1, 2]}}',
            '{"name": "abc"}',
            '{"x": [1, 1]}',
            '{"name": "g", "b": [1, 1]}',
        ],
        ['{"name": "abcd"}', "[]", "text"],
    )
    other = Tag("", json.dumps({"type": "array", "uniqueItems": True}), "")
    check(tags(G, other, least=1, most=1), [CALL_G, "[1, 2]"], [TWICE, "[1, 1]", CALL_G + CALL_G])


@pytest.mark.parametrize("seed", range(10))
def test_what_comes_of_chance_has_valid_calls(seed: int) -> None:
    written = write_at_random(tags(least=1, most=2, between="\n"), seed, most_tokens=200)
    for line in written.text.split("\n") if written.finished else ():
        call = json.loads(line.removeprefix("<call>").removesuffix("</call>"))
        if call["name"] == "f":
            assert isinstance(call["arguments"]["a"], int)
        else:
            assert call["name"] == "g"


@pytest.mark.parametrize(
    ("which", "rest", "named"),
    [
        ((F,), {"least": 3, "most": 2}, "3 to 2"),
        ((F,), {"most": 0}, "0 to 0"),
        ((F,), {"text": True, "triggers": ("[x]",)}, "none of the triggers"),
        ((tag("h", {"type": "strng"}),), {}, '"h".*type at #'),
        ((Tag("a", "{", "b"),), {}, "not JSON"),
    ],
)
def test_tags_that_contradict_themselves_are_refused(which: Any, rest: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        tags(*which, **rest)


def test_warnings_are_those_of_all_schemas() -> None:
    assert any("uniqueItems at #/properties/b" in said for said in tags().warnings)
    assert tags(F).warnings == ()


def test_a_hundred_tools() -> None:
    source = tags(*(tag(f"tool_{i}", INTEGER) for i in range(100)), text=True, triggers=("<call>",))
    assert can_write(source.new(), "x " + CALL_F.replace('"f"', '"tool_77"'))
    assert not can_write(source.new(), CALL_F)
