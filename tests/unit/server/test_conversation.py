"""Conversations: what is asked of the engine for each template, and what is refused, by the field's name."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.fake_host import THINKING_TEMPLATE, TOOL_TEMPLATE, FakeModel

from stoker.api.chat import Message, Tool, ToolCall
from stoker.api.constraint import Constraint
from stoker.api.request import SamplingParams
from stoker.server.conversation import Conversation, FieldNames, Prepared, ToolChoice, prepare
from stoker.server.errors import Refusal

USER = Message("user", "hi")
WEATHER = Tool("weather", "Of a city", '{"type": "object", "properties": {"city": {"type": "string"}}}')
CLOCK = Tool("clock")
TOOLS = (WEATHER, CLOCK)
LLAMA = "<|start_header_id|>{% if tools %}{{ '\"parameters\": ' }}{% endif %}"
MISTRAL = "{{ tools }}{{ '[TOOL_CALLS] [' }}"
GEMMA = "<start_of_turn>{{ messages[0]['role'] == 'system' }}"
BARE = "{{ messages }}"  # no system message, no tools


def prepared(
    template: str = TOOL_TEMPLATE, sampling: SamplingParams | None = None, **fields: Any
) -> Prepared:
    conversation = Conversation(**{"messages": (USER,), **fields})
    return prepare(FakeModel(chat_template=template), conversation, sampling or SamplingParams())


def refused(template: str = TOOL_TEMPLATE, **fields: Any) -> tuple[str | None, str]:
    with pytest.raises(Refusal) as found:
        prepared(template, **fields)
    assert found.value.problem.status == 400
    return found.value.problem.param, found.value.problem.message


def tags(ready: Prepared) -> Any:
    constraint = ready.sampling.constraint
    assert constraint is not None
    assert constraint.kind == "tags"
    return constraint.tags


def test_without_tools_and_thoughts_nothing_changes() -> None:
    sampling = SamplingParams(temperature=0.5)
    ready = prepared(sampling=sampling)
    assert ready.sampling is sampling
    assert ready.is_plain
    assert ready.chat.messages == (USER,)


def test_auto_allows_text_and_calls() -> None:
    ready = prepared(tools=TOOLS)
    found = tags(ready)
    assert (found.text, found.least, found.most, found.triggers) == (True, 0, None, ("<tool_call>",))
    assert [tag.begin for tag in found.tags] == [
        '<tool_call>\n{"name": "weather", "arguments": ',
        '<tool_call>\n{"name": "clock", "arguments": ',
    ]
    assert ready.chat.tools == TOOLS
    assert not ready.sampling.skip_special_tokens  # the marks may be control tokens


@pytest.mark.parametrize(
    ("choice", "parallel", "least", "most", "names"),
    [
        (ToolChoice("required"), True, 1, None, ["weather", "clock"]),
        (ToolChoice("required"), False, 1, 1, ["weather", "clock"]),
        (ToolChoice("named", ("clock",)), True, 1, 1, ["clock"]),
        (ToolChoice("required", ("weather",)), True, 1, None, ["weather"]),
        (ToolChoice("auto", ("weather",)), False, 0, 1, ["weather"]),
    ],
)
def test_choices(choice: ToolChoice, parallel: bool, least: int, most: int | None, names: list[str]) -> None:
    ready = prepared(tools=TOOLS, tool_choice=choice, parallel_tool_calls=parallel)
    found = tags(ready)
    assert (found.least, found.most) == (least, most)
    assert found.text == (least == 0)
    assert [tag.begin.split('"')[3] for tag in found.tags] == names
    assert ready.chat.tools == TOOLS  # all are shown: the prompt's beginning stays the same


def test_none_shows_and_constrains_nothing() -> None:
    ready = prepared(tools=TOOLS, tool_choice=ToolChoice("none"))
    assert ready.is_plain
    assert ready.chat.tools == ()
    json_too = prepared(
        tools=TOOLS, tool_choice=ToolChoice("none"), constraint=Constraint("regex", "a+")
    ).sampling.constraint
    assert json_too is not None
    assert json_too.kind == "regex"


def test_arguments_are_held_to_a_closed_schema() -> None:
    first, second = tags(prepared(tools=TOOLS)).tags
    assert json.loads(first.schema) == {
        "type": "object",
        "properties": {"city": {"type": "string"}},
        "additionalProperties": False,
    }
    assert json.loads(second.schema) == {"type": "object", "properties": {}, "additionalProperties": False}


def test_calls_or_json() -> None:
    schema = '{"type": "object", "properties": {"a": {}}, "additionalProperties": false}'
    ready = prepared(tools=TOOLS, constraint=Constraint("json_schema", schema))
    found = tags(ready)
    assert (found.text, found.least, found.most) == (False, 1, 1)
    assert (found.tags[-1].begin, found.tags[-1].schema, found.tags[-1].end) == ("", schema, "")
    assert refused(tools=TOOLS, constraint=Constraint("regex", "a"))[0] == "response_format"
    must = prepared(tools=TOOLS, constraint=Constraint("json_object"), tool_choice=ToolChoice("required"))
    assert len(tags(must).tags) == 2  # calls come for certain, so there is no text that could be JSON


def test_llama_calls_once_with_or_without_its_tag() -> None:
    found = tags(prepared(LLAMA, tools=(WEATHER,)))
    assert [tag.begin for tag in found.tags] == [
        '{"name": "weather", "parameters": ',
        '<|python_tag|>{"name": "weather", "parameters": ',
    ]
    assert found.most == 1
    calls = (ToolCall("a", "weather", "{}"), ToolCall("b", "clock", "{}"))
    results = (Message("tool", "4", tool_call_id="b"), Message("tool", "sun", tool_call_id="a"))
    turns = prepared(
        LLAMA, tools=TOOLS, messages=(USER, Message("assistant", "Well", tool_calls=calls), *results, USER)
    ).chat.messages
    assert [(m.role, m.content, [c.id for c in m.tool_calls]) for m in turns] == [
        ("user", "hi", []),
        ("assistant", "Well", []),
        ("assistant", "", ["a"]),
        ("tool", "sun", []),
        ("assistant", "", ["b"]),
        ("tool", "4", []),
        ("user", "hi", []),
    ]


def test_ids_may_come_again_in_later_turns() -> None:
    call = ToolCall("a", "clock", "{}")
    turn = (Message("assistant", "", tool_calls=(call,)), Message("tool", "1", tool_call_id="a"))
    later = (turn[0], Message("tool", "2", tool_call_id="a"), USER)
    for template in (LLAMA, TOOL_TEMPLATE):
        turns = prepared(template, tools=TOOLS, messages=(USER, *turn, *later)).chat.messages
        assert [m.content for m in turns if m.role == "tool"] == ["1", "2"]


def test_mistrals_ids_have_nine_characters() -> None:
    call = ToolCall("call_0123456789", "clock", "{}")
    messages = (
        USER,
        Message("assistant", "", tool_calls=(call,)),
        Message("tool", "4", tool_call_id=call.id),
    )
    ready = prepared(MISTRAL, tools=TOOLS, messages=messages)
    new = ready.chat.messages[1].tool_calls[0].id
    assert len(new) == 9
    assert new.isalnum()
    assert ready.chat.messages[2].tool_call_id == new
    found = tags(ready)
    assert (found.before, found.between, found.after) == ("[TOOL_CALLS] [", ", ", "]")


@pytest.mark.parametrize(
    ("template", "roles"),
    [
        (GEMMA, ["system", "user", "assistant", "user", "assistant"]),
        (BARE, ["user", "assistant", "user", "assistant"]),
        (
            GEMMA + "{{ raise_exception('System role not supported') }}",
            ["user", "assistant", "user", "assistant"],
        ),
    ],
)
def test_templates_without_tools_see_text_that_alternates(template: str, roles: list[str]) -> None:
    calls = (ToolCall("a", "weather", '{"city": "Köln"}'), ToolCall("b", "clock", "{}"))
    messages = (
        USER,
        Message("assistant", "One moment.", tool_calls=calls),
        Message("tool", "rain", tool_call_id="a"),
        Message("tool", "noon", tool_call_id="b"),
        Message("user", "and?"),
        Message("assistant", "So it is."),
    )
    ready = prepared(template, tools=TOOLS, messages=messages)
    turns = ready.chat.messages
    assert [turn.role for turn in turns] == roles
    assert ready.chat.tools == ()
    assert "Of a city" in turns[0].content
    called, answered = turns[-3], turns[-2]
    assert called.content.startswith("One moment.\n")
    assert '"weather"' in called.content
    assert '{"city": "Köln"}' in called.content
    assert all(text in answered.content for text in ("rain", "noon", "and?"))


def test_what_was_said_of_tools_is_rendered_without_tools_too() -> None:
    call = ToolCall("a", "clock", "{}")
    messages = (USER, Message("assistant", "", tool_calls=(call,)), Message("tool", "noon", tool_call_id="a"))
    turns = prepared(BARE, messages=messages).chat.messages
    assert [turn.role for turn in turns] == ["user", "assistant", "user"]


@pytest.mark.parametrize(
    ("effort", "budget", "expected"),
    [
        (None, None, (None, {})),
        (None, 50, (50, {})),
        ("none", None, (0, {"enable_thinking": False})),
        ("low", None, (1024, {"enable_thinking": True})),
        ("high", None, (None, {"enable_thinking": True})),
        ("low", 5, (5, {"enable_thinking": True})),
    ],
)
def test_effort_and_budget(effort: str | None, budget: int | None, expected: tuple[Any, Any]) -> None:
    ready = prepared(THINKING_TEMPLATE, reasoning_effort=effort, thinking_budget_tokens=budget)
    thinking = ready.sampling.thinking
    assert thinking is not None
    assert (thinking.budget_tokens, dict(ready.chat.variables)) == expected
    assert not ready.is_plain


def test_a_constraint_holds_beside_thoughts() -> None:
    ready = prepared(THINKING_TEMPLATE, constraint=Constraint("json_object"))
    assert ready.sampling.constraint == Constraint("json_object")
    assert ready.sampling.thinking is not None


@pytest.mark.parametrize(
    ("fields", "param", "says"),
    [
        ({"tools": (CLOCK, WEATHER, CLOCK)}, "tools[2].function.name", "'clock'"),
        ({"tools": tuple(Tool(f"t{i}") for i in range(1000))}, "tools", "1000"),
        ({"tools": (Tool("a b"),)}, "tools[0].function.name", "'a b'"),
        (
            {"tools": (Tool("a", parameters='{"type": "string"}'),)},
            "tools[0].function.parameters",
            '"string"',
        ),
        ({"tools": (Tool("a", parameters="[]"),)}, "tools[0].function.parameters", "[]"),
        ({"tools": (Tool("a", parameters="{"),)}, "tools[0].function.parameters", ""),
        (
            {"tools": (Tool("a", parameters='{"properties": []}'),)},
            "tools[0].function.parameters",
            "properties",
        ),
        ({"tools": (Tool("a", parameters='{"required": "x"}'),)}, "tools[0].function.parameters", "required"),
        ({"tool_choice": ToolChoice("required")}, "tool_choice", "no tools"),
        ({"tools": TOOLS, "tool_choice": ToolChoice("named", ("x",))}, "tool_choice", "weather, clock"),
        ({"tools": TOOLS, "tool_choice": ToolChoice("auto", ("x",))}, "tool_choice", "'x'"),
        ({"messages": (USER, Message("tool", "4", tool_call_id="z"))}, "messages[1].tool_call_id", "'z'"),
        (
            {"messages": (USER, Message("assistant", "", tool_calls=(ToolCall("a", "b", "{}"),) * 2))},
            "messages[1].tool_calls",
            "'a'",
        ),
        ({"reasoning_effort": "low"}, "reasoning_effort", "does not think"),
        ({"thinking_budget_tokens": 5}, "thinking_token_budget", "does not think"),
        ({"variables": {"colour": 1}}, "chat_template_kwargs", "colour"),
        ({"variables": {"messages": []}}, "chat_template_kwargs", "messages"),
    ],
)
def test_what_is_refused(fields: dict[str, Any], param: str, says: str) -> None:
    found, message = refused(**fields)
    assert found == param
    assert param in message
    assert says in message


def test_names_of_speakers_need_a_template_that_shows_them() -> None:
    named = (Message("user", "hi", name="Ann"),)
    assert refused(BARE, messages=named)[0] == "messages[0].name"
    assert prepared(TOOL_TEMPLATE, messages=named).chat.messages == named


def test_a_dialect_has_its_own_names_for_fields() -> None:
    fields = FieldNames(tool_name="tools[{}].name")
    assert refused(tools=(CLOCK, CLOCK), fields=fields)[0] == "tools[1].name"


def test_a_base_model_has_no_chats() -> None:
    model = FakeModel(has_chat_template=False, chat_template=None)
    with pytest.raises(Refusal, match="base model"):
        prepare(model, Conversation((USER,)), SamplingParams())


def test_switching_off_what_a_model_does_not_do_is_no_mistake() -> None:
    assert prepared(BARE, variables={"enable_thinking": False}).chat.variables == {}
    assert refused(BARE, variables={"enable_thinking": True})[0] == "chat_template_kwargs"


@pytest.mark.parametrize("template", [TOOL_TEMPLATE, LLAMA, MISTRAL, GEMMA])
def test_the_tool_whose_schema_cannot_be_enforced_is_named(template: str) -> None:
    ready = prepared(template, tools=TOOLS, tool_choice=ToolChoice("named", ("clock",)))
    begin = tags(ready).tags[0].begin
    assert ready.field_to_blame(f"the schema after {begin!r}: no") == "tools[1].function.parameters"
    assert ready.field_to_blame("tags are too many") == "tools"
    assert prepared(template, constraint=Constraint("json_object")).field_to_blame("no") == "response_format"
