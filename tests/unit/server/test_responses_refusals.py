"""What the Responses API refuses, by name: fields, tools, items, contradictions."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_host import TOOL_TEMPLATE, FakeHost, FakeModel
from tests.served import Served, serve

from stoker.api.errors import RequestError

CLOCK = {"type": "function", "name": "clock", "parameters": {"type": "object", "properties": {}}}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    host = FakeHost(FakeModel(chat_template=TOOL_TEMPLATE), FakeModel("base", has_chat_template=False))
    with serve(host) as running:
        yield running


def _refused(served: Served, fields: Any, param: str | None, *words: str, status: int = 400) -> None:
    before = len(served.host.model.requests)
    response = served.post("/v1/responses", fields)
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert error["param"] == param, error
    for word in words:
        assert word in error["message"], error
    assert len(served.host.model.requests) == before


@pytest.mark.parametrize(
    ("name", "value", "word"),
    [
        ("conversation", "conv_1", "previous_response_id"),
        ("prompt", {"id": "pmpt_1"}, "instructions"),
        ("moderation", {"model": "m"}, "nothing is moderated"),
        ("max_tool_calls", 3, "built-in tools"),
        ("context_management", [{"type": "compaction"}], "not compacted"),
        ("access_programs", {"cyber": "standard"}, "programs"),
        ("image", {"context_compression": "auto"}, "only text"),
        ("background_options", {"completion_window": "2h"}, "soonest"),
        ("prompt_cache_options", {"mode": "explicit"}, "every prefix"),
        ("prompt_cache_retention", "24h", "every prefix"),
        ("truncation", "auto", "disabled"),
        ("service_tier", "priority", "flex"),
        ("temperature", -1, "greater than or equal to 0"),
        ("temperature", "1", "number"),
        ("top_logprobs", 1000, "less than or equal"),
        ("max_output_tokens", 0, "greater than or equal to 1"),
        ("metadata", {"a": 1}, "string"),
        ("metadata", {str(i): "" for i in range(17)}, "16"),
        ("metadata", {"k": "v" * 513}, "512"),
        ("stream", "true", "boolean"),
        ("nonsense", 1, "allowed: background, cache_salt"),
        ("messages", [], "not a known field"),
    ],
)
def test_fields(served: Served, name: str, value: Any, word: str) -> None:
    param = name if name != "metadata" or len(value) == 17 else f"metadata.{next(iter(value))}"
    _refused(served, {"input": "hi", name: value}, param, word, name)


@pytest.mark.parametrize("name", ["conversation", "prompt", "moderation", "context_management", "tools"])
def test_null_means_left_out(served: Served, name: str) -> None:
    assert served.post("/v1/responses", {"input": "hi", name: None}).status_code == 200


@pytest.mark.parametrize(
    ("fields", "param", "word"),
    [
        ({"reasoning": {"summary": "auto"}}, "reasoning.summary", "allowed: null"),
        ({"reasoning": {"effort": "huge"}}, "reasoning.effort", "minimal"),
        ({"reasoning": {"effort": "high"}}, "reasoning.effort", "does not think"),
        ({"reasoning": {"mode": "pro"}}, "reasoning.mode", "standard"),
        ({"text": {"verbosity": "low"}}, "text.verbosity", "medium"),
        ({"text": {"format": {"type": "xml"}}}, "text.format.type", "json_schema"),
        ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema", "missing"),
        ({"text": {"format": {"type": "json_object", "x": 1}}}, "text.format.x", "not a known field"),
        ({"include": ["reasoning.encrypted_content"]}, "include[0]", "message.output_text.logprobs"),
        ({"stream_options": {"include_obfuscation": False}}, "stream_options", "stream is not true"),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "false",
        ),
        ({"background": True, "store": False}, "background", "store"),
        ({"user": "a", "safety_identifier": "b"}, "user", "differ"),
        ({"tool_choice": "required"}, "tool_choice", "no tools"),
        ({"tool_choice": "any"}, "tool_choice", "auto, none, required"),
        ({"tool_choice": {"type": "web_search"}}, "tool_choice.type", "web_search"),
        ({"tools": [CLOCK], "tool_choice": {"type": "function", "name": "x"}}, "tool_choice.name", "clock"),
        (
            {"tool_choice": {"type": "allowed_tools", "mode": "auto", "tools": []}},
            "tool_choice.tools",
            "empty",
        ),
        (
            {"tools": [CLOCK], "tool_choice": {"type": "allowed_tools", "mode": "x", "tools": []}},
            "tool_choice.mode",
            "required",
        ),
        ({"tools": [CLOCK, CLOCK]}, None, "clock"),
        ({"tools": [{**CLOCK, "name": "a b"}]}, None, "a b"),
        ({"tools": [{**CLOCK, "defer_loading": True}]}, "tools[0].defer_loading", "not a known field"),
        ({"tools": [{"type": "function"}]}, "tools[0].name", "missing"),
        ({"model": "base"}, None, "chat template"),
        ({"model": "other"}, "model", "known: fake, base"),
    ],
)
def test_values(served: Served, fields: dict[str, Any], param: str | None, word: str) -> None:
    response = served.post("/v1/responses", {"input": "hi", **fields})
    assert response.status_code in (400, 404), response.text
    error = response.json()["error"]
    assert word in error["message"], error
    if param is not None:
        assert error["param"] == param, error


@pytest.mark.parametrize(
    "kind",
    [
        "web_search",
        "web_search_2025_08_26",
        "web_search_preview",
        "file_search",
        "computer_use_preview",
        "code_interpreter",
        "mcp",
        "image_generation",
        "local_shell",
        "shell",
        "apply_patch",
        "custom",
        "namespace",
        "tool_search",
        "nonsense",
    ],
)
def test_tools_that_the_server_would_have_to_run(served: Served, kind: str) -> None:
    _refused(
        served, {"input": "hi", "tools": [CLOCK, {"type": kind}]}, "tools[1].type", kind, "allowed: function"
    )


def test_more_tools_than_fit(served: Served) -> None:
    tools = [{**CLOCK, "name": f"t{i}"} for i in range(1000)]
    _refused(served, {"input": "hi", "tools": tools}, "tools", "1000", "at most")


@pytest.mark.parametrize(
    ("items", "param", "word"),
    [
        (None, "input", "missing"),
        ([], "input", "empty"),
        ([5], "input[0]", "object"),
        (5, "input", "string"),
        ([{"type": "web_search_call", "id": "ws"}], "input[0].type", "allowed: message"),
        ([{"role": "user"}], "input[0].content", "missing"),
        ([{"role": "tool", "content": "x"}], "input[0].role", "tool"),
        ([{"role": "user", "content": []}], "input[0].content", "empty"),
        (
            [{"role": "user", "content": [{"type": "input_image", "image_url": "x"}]}],
            "input[0].content[0].type",
            "only text",
        ),
        (
            [{"role": "user", "content": [{"type": "input_file", "file_id": "x"}]}],
            "input[0].content[0].type",
            "only text",
        ),
        ([{"role": "user", "content": [{"type": "input_text"}]}], "input[0].content[0].text", "missing"),
        ([{"type": "function_call_output", "call_id": "c", "output": "x"}], "input[0].call_id", "no call"),
        (
            [
                {"role": "user", "content": "x"},
                {"type": "function_call", "call_id": "c", "name": "clock", "arguments": "{"},
            ],
            "input[1].arguments",
            "JSON",
        ),
        (
            [{"type": "reasoning", "id": "r", "summary": [], "encrypted_content": "x"}],
            "input[0].encrypted_content",
            "cannot be read",
        ),
        ([{"type": "item_reference", "id": "msg_1"}], "input[0].id", "no item"),
    ],
)
def test_items(served: Served, items: Any, param: str, word: str) -> None:
    _refused(served, {"input": items, "tools": [CLOCK]}, param, word)
    counted = served.post("/v1/responses/input_tokens", {"input": items, "tools": [CLOCK]})
    assert (counted.status_code, counted.json()["error"]["param"]) == (400, param)


@pytest.mark.parametrize(
    "items",
    [
        [{"role": "user", "content": "x"}] * 70_000,
        [{"role": "user", "content": [{"type": "input_text", "text": "x"}] * 70_000}],
    ],
)
def test_more_items_than_any_context_holds(served: Served, items: Any) -> None:
    _refused(served, {"input": items}, "input", "at most 65536")


def test_a_schema_that_cannot_be_enforced_is_blamed(served: Served) -> None:
    model = served.host.model
    model.error = RequestError("the schema cannot be compiled: $ref leads nowhere")
    format_ = {"type": "json_schema", "name": "a", "schema": {"$ref": "#/nowhere"}}
    try:
        for fields, param in (({"text": {"format": format_}}, "text.format"), ({"tools": [CLOCK]}, "tools")):
            for stream in (False, True):
                response = served.post("/v1/responses", {"input": "hi", "stream": stream, **fields})
                assert (response.status_code, response.json()["error"]["param"]) == (400, param)
    finally:
        model.error = None


def test_a_server_that_keeps_nothing(served: Served) -> None:
    for fields in ({"store": True}, {"background": True}, {"previous_response_id": "resp_1"}):
        response = served.post("/v1/responses", {"input": "hi", **fields})
        assert response.status_code == 501, response.text
        assert "--state none" in response.json()["error"]["message"]
    assert served.get("/v1/responses/resp_1").status_code == 501
    assert served.get("/v1/chat/completions").status_code == 501
    assert served.post("/v1/responses", {"input": "hi"}).json()["store"] is False


def test_bodies_that_are_none(served: Served) -> None:
    for body, word in ((b"{", "not valid JSON"), (b"[]", "object"), (b"\xff", "JSON"), (b"[" * 100_000, "")):
        response = served.post("/v1/responses", body)
        assert response.status_code == 400
        assert word in response.json()["error"]["message"]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(-10, 10), st.text(max_size=5)),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "role", "content", "text", "name", "call_id", "id", "output", "x"]),
            inner,
            max_size=4,
        )
    ),
    max_leaves=6,
)
KINDS = st.sampled_from(
    ["message", "function_call", "function_call_output", "reasoning", "item_reference", "other", None]
)
ITEMS = st.lists(
    st.builds(lambda kind, rest: {"type": kind, **rest}, KINDS, st.dictionaries(st.text(max_size=4), JSON)),
    max_size=3,
)


@given(st.fixed_dictionaries({"input": ITEMS | JSON, "tools": JSON, "tool_choice": JSON, "text": JSON}))
@settings(max_examples=60, deadline=None)
def test_no_body_breaks_it(served: Served, fields: dict[str, Any]) -> None:
    response = served.post("/v1/responses", fields)
    assert response.status_code in (200, 400), response.text
    if response.status_code == 400:
        assert response.json()["error"]["message"]
