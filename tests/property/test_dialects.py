"""One answer in every dialect: chats, responses and messages say the same, streamed and whole.

The rules of each stream are in `assembled`, `check_trace` and `read_trace`; here answers are compared.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from tests.fake_host import THINKING_TEMPLATE, TOOL_TEMPLATE, FakeHost, FakeModel
from tests.integration.test_chat_streams import assembled
from tests.messages_trace import read_trace
from tests.response_traces import check_trace, read_stream
from tests.served import Served, events_of, serve

SCHEMA = {"type": "object", "properties": {"city": {"type": "string"}}}
NAMES = ("weather", "time")
QUESTION = [{"role": "user", "content": "hi"}]


@dataclass(frozen=True)
class Said:
    """What an answer says, whatever the dialect. `calls`: name and JSON text of the arguments."""

    text: str
    thoughts: str
    calls: tuple[tuple[str, str], ...]
    ended: str  # "stop", "length" or "calls"


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    models = [
        FakeModel("thinks", chat_template=THINKING_TEMPLATE),
        FakeModel("calls", chat_template=TOOL_TEMPLATE),
        FakeModel("plain"),
    ]
    with serve(FakeHost(*models)) as running:
        yield running


def _chat(served: Served, asked: dict[str, Any], *, with_tools: bool, stream: bool) -> Said:
    tools = [{"type": "function", "function": {"name": name, "parameters": SCHEMA}} for name in NAMES]
    body = asked | {"messages": QUESTION, "stream": stream} | ({"tools": tools} if with_tools else {})
    response = served.post("/v1/chat/completions", body)
    assert response.status_code == 200, response.text
    if stream:
        (choice,) = assembled(events_of(response.text))
        text, thoughts, calls = choice["content"], choice["reasoning"], choice["calls"]
    else:
        (choice,) = response.json()["choices"]
        message = choice["message"]
        text, thoughts = message["content"], message.get("reasoning_content")
        calls = message.get("tool_calls") or []
    made = tuple((call["function"]["name"], call["function"]["arguments"]) for call in calls)
    ended = {"stop": "stop", "length": "length", "tool_calls": "calls"}[choice["finish_reason"]]
    return Said(text or "", thoughts or "", made, ended)


def _response(served: Served, asked: dict[str, Any], *, with_tools: bool, stream: bool) -> Said:
    asked = dict(asked)
    body = asked | {"input": "hi", "stream": stream, "store": False}
    body["max_output_tokens"] = body.pop("max_tokens")
    if with_tools:
        body["tools"] = [{"type": "function", "name": name, "parameters": SCHEMA} for name in NAMES]
    response = served.post("/v1/responses", body)
    assert response.status_code == 200, response.text
    final = check_trace(read_stream(response.text)) if stream else response.json()
    texts, thoughts, calls = [], [], []
    for item in final["output"]:
        if item["type"] == "function_call":
            calls.append((item["name"], item["arguments"]))
        else:
            (texts if item["type"] == "message" else thoughts).append(item["content"][0]["text"])
    ended = "length" if final["status"] == "incomplete" else "calls" if calls else "stop"
    return Said("".join(texts), "".join(thoughts), tuple(calls), ended)


def _message(served: Served, asked: dict[str, Any], *, with_tools: bool, stream: bool) -> Said:
    tools = [{"name": name, "input_schema": SCHEMA} for name in NAMES]
    body = asked | {"messages": QUESTION, "stream": stream} | ({"tools": tools} if with_tools else {})
    response = served.post("/v1/messages", body)
    assert response.status_code == 200, response.text
    message = read_trace(response.text).message if stream else response.json()
    texts, thoughts, calls = [], [], []
    for block in message["content"]:
        if block["type"] == "tool_use":
            # A whole message has the input as an object: its text is told by the stream alone.
            shown = block.get("partial_json", "") if stream else json.dumps(block["input"])
            calls.append((block["name"], shown))
        elif block["type"] == "text":
            texts.append(block["text"])
        else:
            thoughts.append(block["thinking"])
    ended = {"end_turn": "stop", "max_tokens": "length", "tool_use": "calls"}[message["stop_reason"]]
    return Said("".join(texts), "".join(thoughts), tuple(calls), ended)


def _call(name: str, city: str) -> str:
    arguments = json.dumps({"city": city}, ensure_ascii=False)
    return f'<tool_call>\n{{"name": "{name}", "arguments": {arguments}}}\n</tool_call>'


MARKS = ["<think>", "</think>", "<tool_call>", '\n{"name": "', "weather", '", "arguments": ', "{}", "}", "\n"]
ANSWERS = st.lists(
    st.sampled_from(MARKS)
    | st.text(max_size=8)
    | st.builds(_call, st.sampled_from(NAMES), st.text(max_size=5))
    | st.just("<think>\nso\n</think>\n\n"),
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=60, suppress_health_check=list(HealthCheck))
@example(
    "<think>\nhm\n</think>\n\nWell.\n" + _call("time", "é") + "\n" + _call("weather", "🚂"),
    "thinks",
    500,
    True,
)
@given(ANSWERS, st.sampled_from(["thinks", "calls", "plain"]), st.integers(1, 120), st.booleans())
def test_every_dialect_says_the_same(
    served: Served, answer: str, model: str, max_tokens: int, with_tools: bool
) -> None:
    served.host.models[model].answer = lambda request, seed: answer
    asked = {"model": model, "seed": 3, "max_tokens": max_tokens}
    said = {
        (ask.__name__, stream): ask(served, asked, with_tools=with_tools, stream=stream)
        for ask in (_chat, _response, _message)
        for stream in (False, True)
    }
    whole_message = said.pop(("_message", False))
    expected = said["_chat", False]
    assert said == dict.fromkeys(said, expected)
    assert (whole_message.text, whole_message.thoughts) == (expected.text, expected.thoughts)
    assert whole_message.ended == expected.ended
    assert [name for name, _ in whole_message.calls] == [name for name, _ in expected.calls]
    for (_, shown), (_, text) in zip(whole_message.calls, expected.calls, strict=True):
        try:
            arguments = json.loads(text)
        except ValueError:  # cut, or not held to a schema here: there is no model
            continue
        assert json.loads(shown) == arguments
