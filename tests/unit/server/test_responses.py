"""The Responses API over a fake model: answers whole and streamed, what the engine is asked, properties."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_host import DRAWN_SEED, THINKING_TEMPLATE, TOOL_TEMPLATE, FakeHost, FakeModel
from tests.response_traces import check_trace, read_stream
from tests.served import Served, serve

from stoker.api.chat import Chat, Message, ToolCall
from stoker.api.errors import EngineError, QueueFullError
from stoker.api.events import TokenLogprob
from stoker.server.responses import schemas
from stoker.server.responses.events import EventLog, after
from stoker.server.responses.items import item_id, items_of, messages_of, response_of_item
from stoker.server.responses.output import Output
from stoker.tools import chat_format
from stoker.tools.parts import CallArguments, CallStart, Part, ReasoningPart, TextPart

GOLDEN = Path(__file__).parents[2] / "golden" / "response_streams.json"
ANSWER = f"Grüße, 世界! 🚂 Answer {DRAWN_SEED}."
WEATHER = {
    "type": "function",
    "name": "weather",
    "description": "The weather",
    "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}
CALLS = (
    'Let me see.\n<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>\n'
    '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
)
THOUGHTS = "<think>\nTwo words?\n</think>\n\nYes, two."


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    models = (
        FakeModel(cached_tokens=3),
        FakeModel("caller", chat_template=TOOL_TEMPLATE, answer=lambda request, seed: CALLS),
        FakeModel("thinker", chat_template=THINKING_TEMPLATE, answer=lambda request, seed: THOUGHTS),
        FakeModel("base", has_chat_template=False),
    )
    with serve(FakeHost(*models)) as running:
        yield running


def _ask(served: Served, model: str = "fake", **fields: Any) -> Any:
    return served.post("/v1/responses", {"model": model, "input": "hi", **fields})


def _asked(served: Served, model: str = "fake", **fields: Any) -> Any:
    """What the engine is asked."""
    assert _ask(served, model, **fields).status_code == 200
    return served.host.models[model].requests[-1]


def _streamed(served: Served, model: str = "fake", **fields: Any) -> list[dict[str, Any]]:
    response = _ask(served, model, stream=True, **fields)
    assert response.status_code == 200, response.text
    assert response.headers["content-type"] == "text/event-stream; charset=utf-8"
    return read_stream(response.text)


def test_a_whole_answer(served: Served) -> None:
    response = _ask(served, instructions="Be brief.", user="ann", prompt_cache_key="k")
    assert response.status_code == 200
    answer = response.json()
    schemas.Response.model_validate(answer, strict=True)
    assert set(answer) == set(schemas.Response.model_fields)
    assert answer["status"] == "completed"
    assert answer["store"] is False, "nothing is kept by a server without a state"
    assert answer["instructions"] == "Be brief."
    assert (answer["user"], answer["prompt_cache_key"], answer["seed"]) == ("ann", "k", DRAWN_SEED)
    [message] = answer["output"]
    assert message["content"] == [{"type": "output_text", "text": ANSWER, "annotations": [], "logprobs": []}]
    prompt = len(b"<system>Be brief.<user>hi<assistant>")
    assert answer["usage"] == {
        "input_tokens": prompt,
        "input_tokens_details": {"cached_tokens": 3, "cache_write_tokens": 0},
        "output_tokens": len(ANSWER.encode()),
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": prompt + len(ANSWER.encode()),
    }


def test_a_stream_says_what_the_whole_answer_says(served: Served) -> None:
    whole = _ask(served, seed=7).json()
    final = check_trace(_streamed(served, seed=7))
    changing = ("id", "created_at", "completed_at")
    of_item = [{**item, "id": ""} for item in final["output"]]
    assert of_item == [{**item, "id": ""} for item in whole["output"]]
    for name in set(whole) - {*changing, "output"}:
        assert final[name] == whole[name], name


def test_what_is_cut_off_is_incomplete(served: Served) -> None:
    events = _streamed(served, max_output_tokens=4)
    final = check_trace(events)
    assert events[-1]["type"] == "response.incomplete"
    assert final["incomplete_details"] == {"reason": "max_output_tokens"}
    assert (final["output"][0]["status"], final["completed_at"]) == ("incomplete", None)
    assert final["output"][0]["content"][0]["text"] == "Grü"[:4]


def test_calls_are_items_of_their_own(served: Served) -> None:
    events = _streamed(served, "caller", tools=[WEATHER, CLOCK])
    final = check_trace(events)
    assert [item["type"] for item in final["output"]] == ["message", "function_call", "function_call"]
    said, weather, clock = final["output"]
    assert said["content"][0]["text"] == "Let me see."
    assert (weather["name"], json.loads(weather["arguments"])) == ("weather", {"city": "Köln"})
    assert (clock["name"], json.loads(clock["arguments"])) == ("clock", {})
    assert weather["call_id"] != clock["call_id"]
    assert final["tools"][0] == {**WEATHER, "strict": False}
    whole = _ask(served, "caller", tools=[WEATHER, CLOCK]).json()
    assert [item["type"] for item in whole["output"]] == ["message", "function_call", "function_call"]


def test_thoughts_are_items_of_their_own(served: Served) -> None:
    final = check_trace(_streamed(served, "thinker"))
    thoughts, said = final["output"]
    assert thoughts["content"] == [{"type": "reasoning_text", "text": "Two words?"}]
    assert thoughts["summary"] == []
    assert said["content"][0]["text"] == "Yes, two."


def test_log_probabilities_of_the_text(served: Served) -> None:
    events = _streamed(served, top_logprobs=2, max_output_tokens=3)
    final = check_trace(events)
    entries = final["output"][0]["content"][0]["logprobs"]
    assert b"".join(bytes(entry["bytes"]) for entry in entries) == "Grü".encode()[:3]
    assert all(len(entry["top_logprobs"]) == 2 for entry in entries)
    alone = _ask(served, include=["message.output_text.logprobs"], max_output_tokens=1).json()
    assert alone["output"][0]["content"][0]["logprobs"] == [
        {"token": "G", "logprob": -0.5, "bytes": [71], "top_logprobs": []}
    ]


def test_log_probabilities_after_thoughts_are_those_of_the_text(served: Served) -> None:
    final = check_trace(
        _streamed(served, "thinker", top_logprobs=0, include=["message.output_text.logprobs"])
    )
    part = final["output"][1]["content"][0]
    assert "".join(entry["token"] for entry in part["logprobs"]) == part["text"] == "Yes, two."


def test_what_the_engine_is_asked(served: Served) -> None:
    request = _asked(
        served,
        temperature=0,
        top_p=0.5,
        top_k=3,
        min_p=0.1,
        seed=9,
        stop="x",
        max_output_tokens=5,
        presence_penalty=0.5,
        frequency_penalty=-0.5,
        repetition_penalty=1.5,
        priority=-2,
        deadline_ms=9000,
        cache_salt="s",
        safety_identifier="bob",
        service_tier="flex",
        text={"format": {"type": "json_schema", "name": "a", "schema": {"type": "object"}}},
    )
    params = request.sampling
    assert (params.temperature, params.top_p, params.top_k, params.min_p, params.seed) == (0, 0.5, 3, 0.1, 9)
    assert (params.stop, params.max_tokens) == (("x",), 5)
    assert (params.presence_penalty, params.frequency_penalty, params.repetition_penalty) == (0.5, -0.5, 1.5)
    assert (params.constraint.kind, json.loads(params.constraint.text)) == ("json_schema", {"type": "object"})
    assert (request.priority, request.deadline_ms, request.cache_salt) == (-2, 9000, "s")
    assert (request.tenant, request.background) == ("bob", True)
    assert _asked(served, text={"format": {"type": "json_object"}}).sampling.constraint.kind == "json_object"
    assert (
        _asked(served, text={"format": {"type": "text"}, "verbosity": "medium"}).sampling.constraint is None
    )


@pytest.mark.parametrize(
    ("choice", "least", "names"),
    [
        ("required", 1, ["weather", "clock"]),
        ({"type": "function", "name": "clock"}, 1, ["clock"]),
        (
            {"type": "allowed_tools", "mode": "required", "tools": [{"type": "function", "name": "weather"}]},
            1,
            ["weather"],
        ),
        ("auto", 0, ["weather", "clock"]),
    ],
)
def test_tool_choices(served: Served, choice: Any, least: int, names: list[str]) -> None:
    request = _asked(served, "caller", tools=[WEATHER, CLOCK], tool_choice=choice)
    tags = request.sampling.constraint.tags
    assert tags.least == least
    assert [name for name in ("weather", "clock") if any(name in tag.begin for tag in tags.tags)] == names


def test_no_tools_with_the_choice_none(served: Served) -> None:
    request = _asked(served, "caller", tools=[WEATHER], tool_choice="none")
    assert request.sampling.constraint is None
    assert request.prompt.tools == ()


def test_a_conversation_with_calls_and_thoughts(served: Served) -> None:
    items = [
        {"role": "developer", "content": "Rules."},
        {
            "role": "user",
            "content": [{"type": "input_text", "text": "a"}, {"type": "input_text", "text": "b"}],
        },
        {
            "type": "reasoning",
            "id": "rs_1",
            "summary": [],
            "content": [{"type": "reasoning_text", "text": "hm"}],
        },
        {
            "type": "message",
            "id": "msg_1",
            "role": "assistant",
            "status": "completed",
            "content": [{"type": "output_text", "text": "so", "annotations": [], "logprobs": []}],
        },
        {"type": "function_call", "call_id": "c1", "name": "weather", "arguments": '{"city": "Ulm"}'},
        {"type": "function_call", "call_id": "c2", "name": "clock", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c2", "output": "12:00"},
        {
            "type": "function_call_output",
            "call_id": "c1",
            "output": [{"type": "input_text", "text": "dry"}],
        },
        {"role": "assistant", "content": [{"type": "refusal", "refusal": "no"}]},
        {"role": "user", "content": "why"},
    ]
    before = messages_of("Sys.", [], items_of(items, "0" * 32))
    assert before == (
        Message("system", "Sys."),
        Message("system", "Rules."),
        Message("user", "a\nb"),
        Message(
            "assistant",
            "so",
            tool_calls=(ToolCall("c1", "weather", '{"city": "Ulm"}'), ToolCall("c2", "clock", "{}")),
            reasoning="hm",
        ),
        Message("tool", "12:00", tool_call_id="c2", name="clock"),
        Message("tool", "dry", tool_call_id="c1", name="weather"),
        Message("assistant", "no"),
        Message("user", "why"),
    )
    request = _asked(served, "caller", input=items, tools=[WEATHER, CLOCK])
    assert isinstance(request.prompt, Chat)
    assert [message.role for message in request.prompt.messages][-1] == "user"


def test_what_a_response_said_can_be_sent_back_as_it_is(served: Served) -> None:
    for model, tools in (("fake", []), ("caller", [WEATHER, CLOCK]), ("thinker", [])):
        output = _ask(served, model, tools=tools).json()["output"]
        results = [
            {"type": "function_call_output", "call_id": item["call_id"], "output": "1"}
            for item in output
            if item["type"] == "function_call"
        ]
        again = [{"role": "user", "content": "hi"}, *output, *results, {"role": "user", "content": "on"}]
        assert _ask(served, model, input=again, tools=tools).status_code == 200


def test_counting_tokens(served: Served) -> None:
    answer = served.post("/v1/responses/input_tokens", {"input": "hi", "instructions": "Be brief."})
    assert answer.json() == {
        "object": "response.input_tokens",
        "input_tokens": len(b"<system>Be brief.<user>hi<assistant>"),
    }
    schemas.InputTokens.model_validate(answer.json(), strict=True)


def test_an_answer_that_fails_before_its_first_token_has_a_status(served: Served) -> None:
    model = served.host.model
    for error, status in ((QueueFullError("full"), 429), (EngineError("gone"), 500)):
        model.error = error
        try:
            for stream in (False, True):
                assert _ask(served, stream=stream).status_code == status
        finally:
            model.error = None


def test_an_answer_that_fails_under_way(served: Served) -> None:
    model = served.host.model
    model.error_after = (3, EngineError("gone"))
    model.token_delay_s = 0.001  # else all events are there at once, and nothing has been sent
    try:
        assert _ask(served).status_code == 500
        events = _streamed(served)
    finally:
        model.error_after, model.token_delay_s = None, 0.0
    final = check_trace(events)
    assert events[-1]["type"] == "response.failed"
    assert final["error"]["code"] == "server_error"
    assert "gone" not in final["error"]["message"], "what went wrong inside is for the log"
    assert final["output"][0]["content"][0]["text"] == "Gr"
    assert final["output"][0]["status"] == "incomplete"


GOLDEN_CALLS: dict[str, tuple[str, dict[str, Any]]] = {
    "text": ("fake", {"seed": 5, "max_output_tokens": 3}),
    "logprobs": ("fake", {"seed": 5, "max_output_tokens": 2, "top_logprobs": 1}),
    "calls": ("caller", {"seed": 5, "tools": [CLOCK, WEATHER], "metadata": {"a": "b"}}),
    "thoughts": ("thinker", {"seed": 5, "reasoning": {"effort": "low"}}),
}


def steady(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without what differs from call to call: ids and times."""
    hex_id = events[0]["response"]["id"].removeprefix("resp_")
    text = json.dumps(events, ensure_ascii=False).replace(hex_id, "ID")
    found: list[dict[str, Any]] = json.loads(text)
    calls: dict[str, str] = {}
    for event in found:
        response = event.get("response", {})
        for name in ("created_at", "completed_at"):
            if response.get(name) is not None:
                response[name] = 0
        for item in [*response.get("output", []), event.get("item", {})]:
            if "call_id" in item:
                item["call_id"] = calls.setdefault(item["call_id"], f"call_{len(calls)}")
    return found


@pytest.mark.parametrize("name", GOLDEN_CALLS)
def test_the_trace_of_a_stream(served: Served, name: str) -> None:
    model, fields = GOLDEN_CALLS[name]
    events = _streamed(served, model, **fields)
    check_trace(events)
    assert steady(events) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


# --- properties ------------------------------------------------------------------------------------

PARTS = st.lists(
    st.one_of(
        st.text(min_size=1, max_size=8).map(TextPart),
        st.text(min_size=1, max_size=8).map(ReasoningPart),
        st.lists(st.text(min_size=1, max_size=8), max_size=3),
    ),
    max_size=8,
)


def _flat(found: list[Any]) -> list[Part]:
    parts: list[Part] = []
    calls = 0
    for part in found:
        if not isinstance(part, list):
            parts.append(part)
            continue
        parts.append(CallStart(calls, f"call_{calls}", "f"))
        parts += [CallArguments(calls, text) for text in part]
        calls += 1
    return parts


@given(PARTS, st.booleans(), st.booleans(), st.data())
def test_any_parts_make_a_stream_that_equals_the_whole(
    found: list[Any], cut: bool, with_logprobs: bool, data: st.DataObject
) -> None:
    parts = _flat(found)
    log = EventLog()
    token_bytes = (lambda token_id: bytes([token_id])) if with_logprobs else None
    outputs = [Output("f" * 32, first=2, events=events, logprobs_of=token_bytes) for events in (log, None)]
    log.add("response.created", response={"id": "r"})
    log.add("response.in_progress", response={"id": "r"})
    text = b""
    place = 0
    while place < len(parts):
        size = data.draw(st.integers(1, 3))
        entries = tuple(TokenLogprob(place % 256, -1.0, ()) for _ in range(data.draw(st.integers(0, 2))))
        for output in outputs:
            output.add(parts[place : place + size], entries)
        text += log.take()
        place += size
    for output in outputs:
        output.finish("incomplete" if cut else "completed")
    streamed, whole = (output.items for output in outputs)
    assert streamed == whole
    log.add("response.completed", response={"id": "r", "output": streamed})
    text += log.take()
    final = check_trace(read_stream(text.decode()))
    said = "".join(part.text for part in parts if isinstance(part, TextPart))
    assert said == "".join(
        part["text"] for item in final["output"] if item["type"] == "message" for part in item["content"]
    )
    events = read_stream(text.decode())
    number = data.draw(st.integers(0, len(events) + 1))
    rest = after(text, number)
    assert (read_stream(rest.decode()) if rest else []) == events[number + 1 :]


@given(st.sampled_from(["message", "function_call", "reasoning"]), st.integers(0, 5000))
def test_an_items_id_leads_to_its_response(kind: str, number: int) -> None:
    assert response_of_item(item_id(kind, "ab" * 16, number)) == "resp_" + "ab" * 16


@given(st.text(max_size=60))
@settings(max_examples=50)
def test_an_id_of_nobody_leads_nowhere_or_to_a_response(reference: str) -> None:
    found = response_of_item(reference)
    assert found is None or found.startswith("resp_")


def test_the_formats_of_the_tests_are_what_they_say() -> None:
    assert chat_format(TOOL_TEMPLATE).calls.name == "hermes"
    assert chat_format(THINKING_TEMPLATE).thinking is not None
