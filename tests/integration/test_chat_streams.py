"""Streams of chats with tools and thoughts: golden traces through the SDK, and what holds for all of them."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fake_host import THINKING_TEMPLATE, TOOL_TEMPLATE, FakeHost, FakeModel
from tests.served import Served, events_of, serve

from stoker.api.request import Request

GOLDEN = Path(__file__).parents[1] / "golden" / "chat_streams.json"
USER: Any = [{"role": "user", "content": "hi"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": name,
            "description": f"The {name} of a city",
            "parameters": {"type": "object", "properties": {"city": {"type": "string"}}},
        },
    }
    for name in ("weather", "time")
]
WEATHER = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
TIME = '<tool_call>\n{"name": "time", "arguments": {}}\n</tool_call>'


def _answer(request: Request, seed: int) -> str:
    """What the prompt's last message says; so each test chooses it."""
    return request.prompt.messages[-1].content  # type: ignore[union-attr]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    tools = FakeModel("tools", answer=_answer, chat_template=TOOL_TEMPLATE)
    thinks = FakeModel(
        "thinks",
        answer=_answer,
        chat_template=THINKING_TEMPLATE,
        reasoning_tokens=7,
        warnings=("uniqueItems is not enforced",),
    )
    plain = FakeModel("plain", answer=_answer)
    with serve(FakeHost(tools, thinks, plain)) as running:
        yield running


@pytest.fixture(scope="module")
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def _asked(model: str, answer: str, **fields: Any) -> dict[str, Any]:
    return {"model": model, "messages": [{"role": "user", "content": answer}], "seed": 5, **fields}


GOLDEN_CALLS: dict[str, dict[str, Any]] = {
    "call": _asked("tools", TIME, tools=TOOLS),
    "text_and_calls": _asked(
        "tools", f"Well.\n{TIME}\n{TIME}", tools=TOOLS, stream_options={"include_usage": True}
    ),
    "call_cut_off": _asked("tools", WEATHER, tools=TOOLS, max_tokens=60),
    "call_logprobs": _asked("tools", "a", tools=TOOLS, logprobs=True, top_logprobs=1),
    "thoughts": _asked(
        "thinks", "<think>\nhm\n</think>\n\nok", service_tier="flex", stream_options={"include_usage": True}
    ),
    "thoughts_and_call": _asked("thinks", f"<think>e</think>{TIME}", tools=TOOLS),
    "plain_call": _asked("plain", TIME, tools=TOOLS, tool_choice="required", n=1),
}


def _trace(client: openai.OpenAI, fields: dict[str, Any]) -> list[dict[str, Any]]:
    trace = []
    create: Any = client.chat.completions.create
    for chunk in create(stream=True, **fields):
        seen = chunk.model_dump(mode="json", exclude_unset=True)
        assert seen.pop("id")
        assert abs(seen.pop("created") - time.time()) < 60
        for choice in seen["choices"]:
            for call in choice["delta"].get("tool_calls") or []:
                if "id" in call:
                    assert call.pop("id").startswith("call_")
        trace.append(seen)
    return trace


@pytest.mark.parametrize("name", GOLDEN_CALLS)
def test_the_trace_of_a_stream(client: openai.OpenAI, name: str) -> None:
    assert _trace(client, GOLDEN_CALLS[name]) == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def assembled(chunks: list[Any]) -> list[dict[str, Any]]:
    """The choices of a stream, its deltas put together. What must hold of every stream is asserted."""
    assert chunks[-1] == "[DONE]"
    choices: dict[int, dict[str, Any]] = {}
    for chunk in chunks[:-1]:
        for piece in chunk["choices"]:
            choice = choices.setdefault(
                piece["index"],
                {"content": "", "reasoning": "", "calls": [], "finish_reason": None, "logprobs": []},
            )
            assert choice["finish_reason"] is None, "a piece after the last one of its choice"
            delta = piece["delta"]
            choice["content"] += delta.get("content") or ""
            choice["reasoning"] += delta.get("reasoning_content") or ""
            for call in delta.get("tool_calls", ()):
                if call["index"] == len(choice["calls"]):
                    choice["calls"].append({"id": call["id"], "type": call["type"], "function": {
                        "name": call["function"]["name"], "arguments": ""}})  # fmt: skip
                assert call["index"] == len(choice["calls"]) - 1
                choice["calls"][-1]["function"]["arguments"] += call["function"]["arguments"]
            if piece["logprobs"] is not None:
                choice["logprobs"] += piece["logprobs"]["content"]
            choice["finish_reason"] = piece["finish_reason"]
    assert all(choice["finish_reason"] for choice in choices.values())
    return [choices[index] for index in sorted(choices)]


fragments = st.sampled_from(
    [
        WEATHER, TIME, "<tool_call>", '\n{"name": "', "weather", '", "arguments": ', "{}", "}",
        "</tool_call>", "<think>", "</think>", " ", "\n\n", "ok", "Köln 世界 🚂",
    ]
)  # fmt: skip


@given(
    model=st.sampled_from(["tools", "thinks", "plain"]),
    pieces=st.lists(fragments, min_size=1, max_size=8),
    with_tools=st.booleans(),
    n=st.integers(1, 3),
    logprobs=st.booleans(),
    max_tokens=st.integers(1, 120) | st.none(),
)
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
def test_the_deltas_of_a_stream_are_the_whole_answer(
    served: Served,
    model: str,
    pieces: list[str],
    with_tools: bool,
    n: int,
    logprobs: bool,
    max_tokens: int | None,
) -> None:
    fields = _asked(model, "".join(pieces), n=n, logprobs=logprobs, max_tokens=max_tokens)
    if with_tools:
        fields["tools"] = TOOLS
    identity = {"x-request-id": "the-same"}
    whole = served.post("/v1/chat/completions", fields, **identity).json()
    stream = served.post("/v1/chat/completions", {**fields, "stream": True}, **identity)
    streamed = assembled(events_of(stream.text))
    assert len(streamed) == n
    for choice, found in zip(whole["choices"], streamed, strict=True):
        message = choice["message"]
        assert (message["content"] or "") == found["content"]
        assert message.get("reasoning_content", "") == found["reasoning"]
        assert message.get("tool_calls", []) == found["calls"]  # ids too
        assert choice["finish_reason"] == found["finish_reason"]
        assert (choice["logprobs"] or {"content": []})["content"] == found["logprobs"]
        if message.get("tool_calls"):
            assert (choice["finish_reason"] == "tool_calls") == (choice["finish_reason"] != "length")


def test_warnings_come_once_with_the_last_chunk(served: Served) -> None:
    warnings = ["uniqueItems is not enforced"]
    for options in ({}, {"stream_options": {"include_usage": True}}):
        stream = served.post("/v1/chat/completions", _asked("thinks", "ok", n=2, stream=True, **options))
        *chunks, _ = events_of(stream.text)
        assert [chunk.get("warnings") for chunk in chunks] == [None] * (len(chunks) - 1) + [warnings]
    assert served.post("/v1/chat/completions", _asked("thinks", "ok", n=2)).json()["warnings"] == warnings


def test_what_a_request_is_called_decides_its_calls_ids(served: Served) -> None:
    def ids(name: str) -> list[str]:
        answer = served.post(
            "/v1/chat/completions",
            _asked("tools", TIME + WEATHER, tools=TOOLS, n=2),
            **{"x-request-id": name},
        ).json()
        return [call["id"] for c in answer["choices"] for call in c["message"]["tool_calls"]]

    assert ids("a") == ids("a")
    assert len({*ids("a"), *ids("b")}) == 8


def test_the_sdks_stream_assembles_calls(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(**_asked("tools", f"Well. {WEATHER}\n{TIME}", tools=TOOLS)) as stream:
        done = [event for event in stream if event.type == "tool_calls.function.arguments.done"]
        final = stream.get_final_completion()
    message = final.choices[0].message
    assert [event.name for event in done] == ["weather", "time"]
    assert message.content == "Well."
    assert [call.function.arguments for call in message.tool_calls or ()] == ['{"city": "Köln"}', "{}"]
    assert final.choices[0].finish_reason == "tool_calls"
