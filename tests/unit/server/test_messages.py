"""The Messages API over a fake model: answers whole and streamed, what the engine is asked, conversations."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_host import DRAWN_SEED, FakeHost, FakeModel
from tests.messages_trace import read_trace
from tests.served import Served, serve

from stoker.server.conversation import ToolChoice
from stoker.server.messages import Messages, schemas
from stoker.server.messages.fields import parse
from stoker.server.messages.partial import partial_object
from stoker.server.messages.turns import conversation_of
from stoker.server.options import ServerOptions
from stoker.server.service import Service

GOLDEN = Path(__file__).parents[2] / "golden" / "message_streams.json"
USER = [{"role": "user", "content": "hi"}]
# What tells a template's format: Hermes' calls, thoughts between <think> marks with a switch.
TEMPLATE = "tools <tool_call> <think> </think> enable_thinking add_generation_prompt"
WEATHER = {
    "name": "weather",
    "description": "The weather",
    "input_schema": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"name": "clock", "input_schema": {"type": "object", "properties": {}}}
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    plain = FakeModel(cached_tokens=3)
    thinker = FakeModel("thinker", chat_template=TEMPLATE)
    with serve(FakeHost(plain, thinker, FakeModel("base", has_chat_template=False))) as running:
        yield running


def _ask(served: Served, **fields: Any) -> Any:
    return served.post("/v1/messages", {"max_tokens": 500, "messages": USER, **fields})


def _says(served: Served, text: str, name: str = "thinker", **fields: Any) -> Any:
    """The answer of a model that says `text`."""
    model = served.host.models[name]
    usual, model.answer = model.answer, lambda request, seed: text
    try:
        return _ask(served, model=name, **fields)
    finally:
        model.answer = usual


def _message(response: Any) -> dict[str, Any]:
    assert response.status_code == 200, response.text
    schemas.MessageAnswer.model_validate(response.json())
    return response.json()


def test_a_whole_message(served: Served) -> None:
    response = _ask(served, seed=5)
    message = _message(response)
    assert message["content"] == [{"type": "text", "text": "Grüße, 世界! 🚂 Answer 5.", "citations": None}]
    assert (message["stop_reason"], message["stop_sequence"], message["seed"]) == ("end_turn", None, 5)
    assert (message["model"], message["role"], message["type"]) == ("fake", "assistant", "message")
    tokens = len("Grüße, 世界! 🚂 Answer 5.".encode())
    assert message["usage"] == {
        "input_tokens": 16,
        "cache_creation_input_tokens": 0,
        "cache_read_input_tokens": 3,
        "output_tokens": tokens,
        "output_tokens_details": {"thinking_tokens": 0},
        "service_tier": "standard",
    }
    assert message["id"] == "msg_" + response.headers["request-id"]
    assert response.headers["request-id"] == response.headers["x-request-id"]
    assert _message(_ask(served))["seed"] == DRAWN_SEED


def test_a_stream_is_the_whole_message(served: Served) -> None:
    response = _ask(served, seed=5, stream=True)
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    assert response.headers["request-id"]
    trace = read_trace(response.text)
    assert [event["type"] for event in trace.events[:3]] == ["message_start", "ping", "content_block_start"]
    started = trace.events[0]["message"]["usage"]
    assert (started["input_tokens"], started["output_tokens"]) == (19, 0)
    whole = _message(_ask(served, seed=5))
    assert trace.message["content"] == whole["content"]
    for name in ("stop_reason", "stop_sequence", "usage", "seed"):
        assert trace.message[name] == whole[name]


def test_calls_are_blocks(served: Served) -> None:
    message = _message(_says(served, CALLS, tools=[WEATHER, CLOCK]))
    text, first, second = message["content"]
    assert text["text"] == "Let me see."
    assert (first["type"], first["name"], first["input"]) == ("tool_use", "weather", {"city": "Köln"})
    assert (second["name"], second["input"]) == ("clock", {})
    assert first["id"] != second["id"]
    assert message["stop_reason"] == "tool_use"
    trace = read_trace(_says(served, CALLS, tools=[WEATHER, CLOCK], stream=True).text)
    assert [block["type"] for block in trace.message["content"]] == ["text", "tool_use", "tool_use"]
    assert json.loads(trace.message["content"][1]["partial_json"]) == {"city": "Köln"}
    assert trace.message["stop_reason"] == "tool_use"


def test_without_tools_the_marks_are_text(served: Served) -> None:
    for fields in ({}, {"tools": [WEATHER], "tool_choice": {"type": "none"}}):
        message = _message(_says(served, CALLS, **fields))
        assert [block["type"] for block in message["content"]] == ["text"]
        assert message["stop_reason"] == "end_turn"


def test_a_call_that_was_cut_has_the_input_that_is_complete(served: Served) -> None:
    for stream in (False, True):
        response = _says(served, CALLS, tools=[WEATHER], max_tokens=70, stream=stream)
        message = read_trace(response.text).message if stream else _message(response)
        assert message["stop_reason"] == "max_tokens"
        assert message["usage"]["output_tokens"] == 70
        assert message["content"][1]["input"] == {}


def test_thoughts_are_blocks_of_their_own(served: Served) -> None:
    said = "<think>\nHm, four.\n</think>\n\nIt is 4."
    message = _message(_says(served, said))
    thoughts, text = message["content"]
    assert (thoughts["type"], thoughts["thinking"], text["text"]) == ("thinking", "Hm, four.", "It is 4.")
    assert thoughts["signature"]
    omitted = _message(_says(served, said, thinking={"type": "adaptive", "display": "omitted"}))
    assert omitted["content"][0] == {**thoughts, "thinking": ""}
    for display in ("omitted", "summarized"):
        thinking = {"type": "adaptive", "display": display}
        trace = read_trace(_says(served, said, thinking=thinking, stream=True).text)
        expected = omitted if display == "omitted" else message
        assert trace.message["content"] == expected["content"]


def test_thinking_reaches_the_engine(served: Served) -> None:
    def asked(**fields: Any) -> Any:
        assert _says(served, "x", **fields).status_code == 200
        return served.host.models["thinker"].requests[-1].sampling.thinking

    assert asked(thinking={"type": "enabled", "budget_tokens": 60}).budget_tokens == 60
    assert asked(thinking={"type": "disabled"}).budget_tokens == 0
    assert asked(thinking={"type": "adaptive", "budget_tokens": 0}).budget_tokens is None
    assert asked().budget_tokens is None
    assert asked(output_config={"effort": "max"}).budget_tokens is None
    assert asked(output_config={"effort": "low"}).budget_tokens > 0


@pytest.mark.parametrize(
    ("fields", "finish", "expected"),
    [
        ({"max_tokens": 4}, None, ("max_tokens", None)),
        ({"stop_sequences": ["END", "x"]}, "END", ("stop_sequence", "END")),
        ({"stop_sequences": ["x"]}, 17, ("end_turn", None)),  # a stop token
        ({}, None, ("end_turn", None)),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_reasons_to_stop(
    fields: dict[str, Any], finish: str | int | None, expected: tuple[str, str | None], stream: bool
) -> None:
    with serve(FakeHost(FakeModel(stop_reason=finish))) as served:
        response = _ask(served, stream=stream, **fields)
        message = read_trace(response.text).message if stream else _message(response)
        assert (message["stop_reason"], message["stop_sequence"]) == expected


def test_an_answer_that_fills_the_context_says_so(served: Served) -> None:
    from stoker.api.events import DoneEvent, Usage
    from stoker.server.messages.whole import Ask, ending_of

    done = DoneEvent("r", 0, "length", None, 1, Usage(90, 10))
    assert ending_of(Ask("m", "m", 500), done, called=True).stop_reason == "model_context_window_exceeded"
    assert ending_of(Ask("m", "m", 10), done, called=True).stop_reason == "max_tokens"


@pytest.mark.parametrize("stream", [False, True])
def test_no_tokens_wanted_caches_the_prompt(served: Served, stream: bool) -> None:
    response = _ask(served, max_tokens=0, stream=stream)
    message = read_trace(response.text).message if stream else _message(response)
    assert (message["content"], message["stop_reason"]) == ([], "max_tokens")
    assert (message["usage"]["output_tokens"], message["usage"]["input_tokens"]) == (0, 16)
    assert served.host.model.requests[-1].sampling.max_tokens == 1  # the prompt's last step gives one anyway


def test_warnings_are_told() -> None:
    with serve(FakeHost(FakeModel(warnings=("format is enforced in another way",)))) as served:
        assert _message(_ask(served))["warnings"] == ["format is enforced in another way"]
        trace = read_trace(_ask(served, stream=True).text)
        assert trace.message["warnings"] == ["format is enforced in another way"]


def test_an_effort_means_nothing_to_a_model_that_does_not_think(served: Served) -> None:
    response = _ask(served, output_config={"effort": "high"})
    assert _message(response)["warnings"] == [
        "output_config.effort is high, but fake does not think aloud: no effect"
    ]
    assert "warnings" not in _message(_says(served, "x", output_config={"effort": "high"}))


def test_what_claude_code_sends(served: Served) -> None:
    """All of its fields, betas among them, in the shapes that were seen on the wire."""
    cached = {"type": "ephemeral", "ttl": "1h", "scope": "global"}
    body = {
        "model": "thinker",
        "max_tokens": 32000,
        "stream": True,
        "system": [
            {"type": "text", "text": "x-anthropic-billing-header: cc_version=2.1; cch=36ee5;"},
            {"type": "text", "text": "You are an agent.", "cache_control": cached},
        ],
        "messages": [
            {
                "role": "user",
                "content": [
                    {"type": "text", "text": "<system-reminder>x</system-reminder>"},
                    {"type": "text", "text": "hi", "cache_control": {"type": "ephemeral"}},
                ],
            }
        ],
        "tools": [{**WEATHER, "eager_input_streaming": True, "cache_control": cached}],
        "metadata": {"user_id": json.dumps({"device_id": "d" * 64, "session_id": "s" * 36})},
        "thinking": {"type": "adaptive", "budget_tokens": 0},
        "context_management": {"edits": [{"type": "clear_thinking_20251015", "keep": "all"}]},
        "output_config": {"effort": "high"},
        "temperature": 1,
    }
    headers = {
        "authorization": "Bearer none",
        "anthropic-version": "2023-06-01",
        "anthropic-beta": "claude-code-20250219,interleaved-thinking-2025-05-14",
        "anthropic-dangerous-direct-browser-access": "true",
    }
    response = served.post("/v1/messages?beta=true", body, **headers)
    assert response.status_code == 200, response.text
    assert read_trace(response.text).message["stop_reason"] == "end_turn"
    asked = bytes(served.host.models["thinker"].requests[-1].prompt)
    assert asked.startswith(b"<system>You are an agent.")
    assert b"cch=" not in asked
    counted = {name: body[name] for name in ("model", "system", "messages", "tools", "thinking")}
    assert served.post("/v1/messages/count_tokens?beta=true", counted, **headers).status_code == 200


def test_a_stream_says_that_it_is_alive() -> None:
    """Pings come before the first token, and between tokens that are late."""
    model = FakeModel(first_delay_s=0.12, token_delay_s=0.12, answer=lambda request, seed: "ab")
    service = Service(FakeHost(model), ServerOptions())
    body = json.dumps({"messages": USER, "max_tokens": 9, "stream": True}).encode()
    sent: list[Any] = []

    async def ask() -> None:
        bodies = iter([{"type": "http.request", "body": body}])

        async def receive() -> Any:
            message = next(bodies, None)
            return message if message is not None else await asyncio.Event().wait()

        async def send(message: Any) -> None:
            sent.append(message)

        scope = {"headers": [(b"content-type", b"application/json")], "path": "/v1/messages"}
        await Messages(service, silence_s=0.04)(scope, receive, send)

    asyncio.run(ask())
    assert [message["type"] for message in sent[:2]] == ["http.response.start", "http.response.body"]
    trace = read_trace(b"".join(message.get("body", b"") for message in sent).decode())
    kinds = [event["type"] for event in trace.events]
    assert kinds[:3] == ["message_start", "ping", "ping"]
    first, second = (place for place, kind in enumerate(kinds) if kind == "content_block_delta")
    assert "ping" in kinds[first:second]
    assert trace.message["content"][0]["text"] == "ab"


def test_what_the_engine_is_asked(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "null"}}, "additionalProperties": False}
    response = _ask(
        served,
        model="fake",
        temperature=0.5,
        top_p=0.9,
        top_k=40,
        stop_sequences=["x", "yy"],
        max_tokens=9,
        seed=7,
        metadata={"user_id": "ann"},
        priority=-3,
        deadline_ms=5000,
        cache_salt="salt",
        keep_alive="5m",
        service_tier="auto",
        cache_control={"type": "ephemeral", "ttl": "1h"},
        output_config={"format": {"type": "json_schema", "schema": schema}},
    )
    assert response.status_code == 200
    request = served.host.model.requests[-1]
    params = request.sampling
    assert (params.temperature, params.top_p, params.top_k, params.seed) == (0.5, 0.9, 40, 7)
    assert (params.stop, params.max_tokens) == (("x", "yy"), 9)
    assert params.constraint is not None
    assert (params.constraint.kind, json.loads(params.constraint.text)) == ("json_schema", schema)
    assert (request.priority, request.cache_salt, request.tenant) == (-3, "salt", "ann")
    assert (request.deadline_ms, served.host.keep_alives[-1]) == (5000, 300.0)
    assert bytes(request.prompt) == b"<user>hi<assistant>"


def test_tokens_are_counted_as_they_are_used(served: Served) -> None:
    asked = {"system": "Be brief.", "messages": USER, "tools": [WEATHER], "model": "fake"}
    response = served.post("/v1/messages/count_tokens", asked)
    schemas.TokenCount.model_validate(response.json())
    assert response.headers["request-id"]
    usage = _message(_ask(served, **asked))["usage"]
    counted = response.json()["input_tokens"]
    assert counted == usage["input_tokens"] + usage["cache_read_input_tokens"]
    assert counted > served.post("/v1/messages/count_tokens", {"messages": USER}).json()["input_tokens"]


# --- conversations -------------------------------------------------------------------------------------


def _conversation(**fields: Any) -> Any:
    body = json.dumps({"max_tokens": 500, "messages": USER, **fields}).encode()
    return conversation_of(parse(body, schemas.MessagesRequest))


def _call(number: int, name: str = "weather") -> dict[str, Any]:
    return {"type": "tool_use", "id": f"toolu_{number}", "name": name, "input": {"city": f"é{number}"}}


def _result(number: int, content: Any = "fine", **more: Any) -> dict[str, Any]:
    return {"type": "tool_result", "tool_use_id": f"toolu_{number}", "content": content, **more}


def test_turns_of_one_role_are_one() -> None:
    messages = [
        {"role": "user", "content": "a"},
        {"role": "user", "content": [{"type": "text", "text": "b"}, {"type": "text", "text": "c"}]},
        {"role": "assistant", "content": "d"},
        {"role": "system", "content": "e"},
        {"role": "user", "content": "f"},
    ]
    made = _conversation(messages=messages, system=[{"type": "text", "text": "s"}]).messages
    assert [(m.role, m.content) for m in made] == [
        ("system", "s"),
        ("user", "a\nb\nc"),
        ("assistant", "d"),
        ("system", "e"),
        ("user", "f"),
    ]


def test_calls_results_and_thoughts_of_earlier_turns() -> None:
    messages = [
        *USER,
        {
            "role": "assistant",
            "content": [
                {"type": "thinking", "thinking": "hm", "signature": "s"},
                {"type": "text", "text": "I look.", "citations": None},
                {**_call(1), "caller": {"type": "direct"}},
                _call(2, "clock"),
            ],
        },
        {
            "role": "user",
            "content": [
                _result(2, [{"type": "text", "text": "x"}, {"type": "text", "text": "y"}]),
                _result(1, "no such city", is_error=True, cache_control={"type": "ephemeral"}),
                {"type": "text", "text": "go on"},
            ],
        },
    ]
    _, assistant, first, second, user = _conversation(messages=messages).messages
    assert (assistant.content, assistant.reasoning) == ("I look.", "hm")
    assert [(c.id, c.name, json.loads(c.arguments)) for c in assistant.tool_calls] == [
        ("toolu_1", "weather", {"city": "é1"}),
        ("toolu_2", "clock", {"city": "é2"}),
    ]
    assert (first.role, first.tool_call_id, first.name, first.content) == ("tool", "toolu_2", "clock", "x\ny")
    assert (second.tool_call_id, second.name) == ("toolu_1", "weather")
    assert second.content == "Error: no such city"
    assert (user.role, user.content) == ("user", "go on")


def test_a_result_may_be_empty() -> None:
    empty = [{"type": "tool_result", "tool_use_id": "toolu_1"}]
    messages = [*USER, {"role": "assistant", "content": [_call(1)]}, {"role": "user", "content": empty}]
    assert _conversation(messages=messages).messages[-1].content == ""


def test_an_assistants_turn_at_the_end_is_gone_on_with() -> None:
    messages = [*USER, {"role": "assistant", "content": "The answer is ("}]
    assert not _conversation(messages=messages).add_generation_prompt
    assert _conversation().add_generation_prompt


def test_an_open_turn_is_the_prompts_end(served: Served) -> None:
    messages = [*USER, {"role": "assistant", "content": "The answer is ("}]
    assert _ask(served, messages=messages).status_code == 200
    assert bytes(served.host.model.requests[-1].prompt) == b"<user>hi<assistant>The answer is ("


def test_what_follows_an_open_turn_is_no_thought(served: Served) -> None:
    """Though the prompt of a new turn would end inside of thoughts."""
    opens = TEMPLATE + " {{ '<think>' }}"
    with serve(FakeHost(FakeModel(chat_template=opens, answer=lambda request, seed: "4)"))) as thinking:
        new = _message(_ask(thinking))["content"]
        messages = [*USER, {"role": "assistant", "content": "The answer is ("}]
        gone_on = _message(_ask(thinking, messages=messages))["content"]
    assert [block["type"] for block in new] == ["thinking"]
    assert [block["text"] for block in gone_on] == ["4)"]


def test_who_pays_is_not_told_to_the_model() -> None:
    line = "x-anthropic-billing-header: cc_version=2; cch=abc;"
    blocks = [{"type": "text", "text": line}, {"type": "text", "text": "You code."}]
    for system in (f"{line}\nYou code.", blocks):
        assert _conversation(system=system).messages[0].content == "You code."
    assert _conversation(system=line).messages[0].role == "user"
    assert _conversation(system=f"a\n{line}").messages[0].content == f"a\n{line}"


@pytest.mark.parametrize(
    ("choice", "expected", "parallel"),
    [
        (None, ToolChoice("auto"), True),
        ({"type": "auto"}, ToolChoice("auto"), True),
        ({"type": "auto", "disable_parallel_tool_use": True}, ToolChoice("auto"), False),
        ({"type": "any", "disable_parallel_tool_use": False}, ToolChoice("required"), True),
        ({"type": "any", "disable_parallel_tool_use": True}, ToolChoice("required"), False),
        ({"type": "tool", "name": "clock"}, ToolChoice("named", ("clock",)), True),
        ({"type": "none"}, ToolChoice("none"), True),
    ],
)
def test_choices_of_tools(choice: Any, expected: ToolChoice, parallel: bool) -> None:
    made = _conversation(tools=[WEATHER, CLOCK], tool_choice=choice)
    assert (made.tool_choice, made.parallel_tool_calls) == (expected, parallel)


def test_tools_in_all_their_fields() -> None:
    tool = {
        **WEATHER,
        "type": "custom",
        "strict": True,
        "cache_control": {"type": "ephemeral"},
        "input_examples": [{"city": "Köln"}],
        "allowed_callers": ["direct"],
        "defer_loading": False,
        "eager_input_streaming": True,
    }
    (made,) = _conversation(tools=[tool]).tools
    assert (made.name, made.strict) == ("weather", True)
    assert made.description == 'The weather\nExample of its input: {"city": "Köln"}'
    assert json.loads(made.parameters) == WEATHER["input_schema"]


# --- inputs that were cut ------------------------------------------------------------------------------

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


def _is_part(part: Any, whole: Any) -> bool:
    """True if members and items are missing at most at the end, the last one perhaps itself cut."""
    if isinstance(part, dict) and isinstance(whole, dict):
        names = list(part)
        return names == list(whole)[: len(names)] and all(_is_part(part[n], whole[n]) for n in names)
    if isinstance(part, list) and isinstance(whole, list):
        return len(part) <= len(whole) and all(map(_is_part, part, whole))
    return bool(part == whole)


@settings(deadline=None)
@given(st.dictionaries(st.text(max_size=4), JSON_VALUES, max_size=4), st.integers(0, 200), st.booleans())
def test_a_cut_input_is_the_beginning_of_the_whole(
    value: dict[str, Any], size: int, ascii_only: bool
) -> None:
    text = json.dumps(value, ensure_ascii=ascii_only)
    assert partial_object(text) == value
    assert _is_part(partial_object(text[:size]), value)


@pytest.mark.parametrize("text", ["", "{", "[1,", "null", "nonsense", "}", '{"a": "\\', "{" * 100_000])
def test_what_is_no_object_gives_an_empty_one(text: str) -> None:
    assert partial_object(text) == {}


def test_the_members_before_the_cut_are_kept() -> None:
    assert partial_object('{"a": 1, "b": {"c": [1, {"d": "x"}, 2, tr') == {
        "a": 1,
        "b": {"c": [1, {"d": "x"}, 2]},
    }


# --- traces --------------------------------------------------------------------------------------------

GOLDEN_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("Grüße 🚂", {}),
    "nothing": ("", {}),
    "thinking": ("<think>\nHm\n</think>\n\nOk", {}),
    "thinking_omitted": ("<think>Hm</think>Ok", {"thinking": {"type": "adaptive", "display": "omitted"}}),
    "calls": (CALLS, {"tools": [WEATHER, CLOCK]}),
    "call_cut": (CALLS, {"tools": [WEATHER], "max_tokens": 70}),
    "cached_only": ("Ok", {"max_tokens": 0}),
}


@pytest.mark.parametrize("name", GOLDEN_CALLS)
def test_the_trace_of_a_stream(served: Served, name: str) -> None:
    text, fields = GOLDEN_CALLS[name]
    response = _says(served, text, seed=5, stream=True, **fields)
    trace = read_trace(response.text)
    shown = json.dumps(trace.events).replace(response.headers["request-id"], "REQUEST")
    for number, block in enumerate(trace.message["content"]):
        if block["type"] == "tool_use":
            shown = shown.replace(block["id"], f"CALL {number}")
    assert json.loads(shown) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]
