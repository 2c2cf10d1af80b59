"""The parser of answers: however a text is cut, its parts put together are the same; for every format."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.api.chat import ToolCall
from stoker.api.constraint import Thinking
from stoker.tools import (
    FORMATS,
    AnswerParser,
    CallArguments,
    CallFormat,
    CallStart,
    Part,
    ReasoningPart,
    TextPart,
    call_format_named,
)

NAMES = ("get", "get_weather", "x")  # one begins with another
THINKING = Thinking("<think>", "</think>", begun=False)
BEGUN = Thinking("<think>", "</think>", begun=True)

words = st.text("ab <>{}[]\"'\n`é世", max_size=12)
objects = st.dictionaries(st.text(max_size=5), st.text('ab"\\}]{[<>\n/tool_call`世', max_size=12) | st.none())


def parser(form: CallFormat, thinking: Thinking | None = None) -> AnswerParser:
    return AnswerParser(thinking, form.marks, names=NAMES, call_seed="r/0")


def written(form: CallFormat, calls: list[tuple[str, dict[str, str]]]) -> str:
    """A run of calls as a model writes it."""
    marks = form.marks
    texts = [marks.heads[0] + name + marks.tail + json.dumps(args) + marks.end for name, args in calls]
    return marks.before + marks.between.join(texts) + marks.after


def pushed(parser: AnswerParser, pieces: list[str]) -> list[Part]:
    parts = [part for piece in pieces for part in parser.push(piece)]
    return [*parts, *parser.finish()]


def together(parts: list[Part]) -> tuple[str, str, list[ToolCall]]:
    text = "".join(part.text for part in parts if isinstance(part, TextPart))
    thoughts = "".join(part.text for part in parts if isinstance(part, ReasoningPart))
    calls: list[ToolCall] = []
    for part in parts:
        if isinstance(part, CallStart):
            assert part.index == len(calls)
            calls.append(ToolCall(part.call_id, part.name, ""))
        elif isinstance(part, CallArguments):
            last = calls[-1]
            assert part.index == len(calls) - 1  # one ends before the next begins
            calls[-1] = ToolCall(last.id, last.name, last.arguments + part.text)
    return text, thoughts, calls


def cut(text: str, places: list[int]) -> list[str]:
    bounds = sorted({0, len(text), *(place % (len(text) + 1) for place in places)})
    return [text[a:b] for a, b in itertools.pairwise(bounds)]


@pytest.mark.parametrize("name", FORMATS)
@given(
    said=st.sampled_from(["", "Let me see.", "a < b, {x}: [1]\n\nüber"]),
    calls=st.lists(st.tuples(st.sampled_from(NAMES), objects), min_size=1, max_size=3),
    places=st.lists(st.integers(0, 10_000), max_size=40),
)
@settings(deadline=None, max_examples=60)
def test_calls_are_read_as_they_were_written(
    name: str, said: str, calls: list[tuple[str, dict[str, str]]], places: list[int]
) -> None:
    form = call_format_named(name)
    text = (said + "\n" if said else "") + written(form, calls[: form.most_calls])
    parts = pushed(parser(form), cut(text, places))
    found, thoughts, made = together(parts)
    assert (found, thoughts) == (said, "")
    assert [(c.name, json.loads(c.arguments)) for c in made] == calls[: form.most_calls]
    assert len({c.id for c in made}) == len(made)


@pytest.mark.parametrize("name", FORMATS)
@given(data=st.data())
@settings(deadline=None, max_examples=80)
def test_how_a_text_is_cut_changes_nothing(name: str, data: st.DataObject) -> None:
    form = call_format_named(name)
    marks = form.marks
    fragments = [
        *marks.heads, marks.tail, marks.end, marks.before, marks.between, marks.after, *marks.triggers,
        *NAMES, "<think>", "</think>", "{}", '{"a": "}"}', " ", "\n\n",
    ]  # fmt: skip
    whole = "".join(data.draw(st.lists(st.sampled_from(fragments) | words, max_size=14)))
    thinking = data.draw(st.sampled_from([None, THINKING, BEGUN]))
    places = data.draw(st.lists(st.integers(0, 10_000), max_size=30))
    expected = together(pushed(parser(form, thinking), [whole] if whole else []))
    assert together(pushed(parser(form, thinking), cut(whole, places))) == expected
    assert together(pushed(parser(form, thinking), list(whole))) == expected


@given(st.text(max_size=50), st.lists(st.integers(0, 1000), max_size=10))
def test_text_without_marks_stays_as_it_is(text: str, places: list[int]) -> None:
    plain = AnswerParser(None, None)
    assert together(pushed(plain, cut(text, places))) == (text, "", [])


@given(words, words, st.booleans(), st.lists(st.integers(0, 1000), max_size=10))
def test_thoughts_are_apart_from_what_is_said(
    thoughts: str, said: str, begun: bool, places: list[int]
) -> None:
    text = ("" if begun else "\n<think>") + "\n" + thoughts + "\n</think>\n\n" + said
    thinker = AnswerParser(BEGUN if begun else THINKING, None)
    found, thought, calls = together(pushed(thinker, cut(text, places)))
    assert (found, thought, calls) == (said.lstrip(), thoughts.strip(), [])


def test_thoughts_that_do_not_end_are_thoughts() -> None:
    assert together(pushed(AnswerParser(THINKING, None), ["<think>hm", "m </thi"]))[:2] == ("", "hmm </thi")


def test_a_mark_inside_of_a_text_begins_no_thoughts() -> None:
    assert together(pushed(AnswerParser(THINKING, None), ["I say <think>x</think>"]))[0] == (
        "I say <think>x</think>"
    )


def test_a_call_inside_of_thoughts_is_a_thought() -> None:
    form = call_format_named("hermes")
    call = written(form, [("x", {})])
    text, thoughts, calls = together(pushed(parser(form, THINKING), [f"<think>{call}</think>{call}"]))
    assert (text, thoughts, len(calls)) == ("", call, 1)


def test_arguments_come_as_they_are_written() -> None:
    form = call_format_named("hermes")
    reader = parser(form)
    assert not reader.in_call
    assert reader.push('<tool_call>\n{"name": "get') == []
    first = reader.push('_weather", "arguments": {"ci')
    assert isinstance(first[0], CallStart)
    assert (first[0].name, first[1]) == ("get_weather", CallArguments(0, '{"ci'))
    assert reader.push('ty": "a}') == [CallArguments(0, 'ty": "a}')]
    assert reader.in_call
    assert reader.push('"}}\n</tool') == [CallArguments(0, '"}')]
    assert reader.push("_call>\n") == []
    assert not reader.in_call
    assert reader.push("Done.") == [TextPart("Done.")]


def test_a_name_that_is_no_tools_is_text() -> None:
    text = '<tool_call>\n{"name": "rm", "arguments": {}}\n</tool_call>'
    assert together(pushed(parser(call_format_named("hermes")), [text]))[2] == []


def test_an_answer_cut_in_a_call() -> None:
    form = call_format_named("hermes")
    whole = "Hm.\n" + written(form, [("x", {"a": "b"})])
    for size in range(len(whole)):
        text, _, calls = together(pushed(parser(form), [whole[:size]]))
        assert text in "Hm." or whole[:size].startswith(text)
        assert "<tool_call>" not in text
        assert '{"a": "b"}'.startswith(calls[0].arguments if calls else "")


def test_ids_are_a_function_of_the_seed_and_the_number() -> None:
    form = call_format_named("hermes")
    text = written(form, [("x", {}), ("x", {})])
    seeds = ("r/0", "r/0", "r/1")
    ids = [
        [c.id for c in together(pushed(AnswerParser(None, form.marks, names=NAMES, call_seed=s), [text]))[2]]
        for s in seeds
    ]
    assert ids[0] == ids[1]
    assert len({*ids[0], *ids[2]}) == 4


def test_a_long_text_is_read_in_one_pass() -> None:
    """A model that writes spaces for ever, or what looks like calls, must not make the server slow."""
    form = call_format_named("hermes")
    reader = parser(form)
    for _ in range(20_000):
        reader.push(" \n")
    for _ in range(20_000):
        reader.push("<tool")
    assert len(together(reader.finish())[0]) < 20
