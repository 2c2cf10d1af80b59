"""What the Messages API refuses: Anthropic's error object, the status, and a message that names the field."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from typing import Any

import pytest
from tests.fake_host import FakeHost, FakeModel
from tests.messages_trace import read_trace
from tests.served import Served, serve

from stoker.api.errors import (
    CapacityError,
    EngineError,
    ModelNotFoundError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    TemplateError,
    UnavailableError,
)
from stoker.server.errors import Refusal
from stoker.server.messages import schemas
from stoker.server.messages.fields import parse
from stoker.server.messages.turns import conversation_of
from stoker.server.options import ServerOptions

USER = [{"role": "user", "content": "a"}]
TOOL = {"name": "f", "input_schema": {"type": "object"}}
CALL = {"type": "tool_use", "id": "c1", "name": "f", "input": {}}
RESULT = {"type": "tool_result", "tool_use_id": "c1", "content": "x"}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(FakeHost(FakeModel(), FakeModel("base", has_chat_template=False))) as running:
        yield running


def _error(response: Any, status: int = 400, kind: str = "invalid_request_error") -> str:
    assert response.status_code == status, response.text
    body = response.json()
    schemas.MessagesError.model_validate(body)
    assert set(body) == {"type", "error", "request_id"}
    assert set(body["error"]) in ({"type", "message"}, {"type", "message", "details"})
    assert body["error"]["type"] == kind
    assert body["request_id"] == response.headers["request-id"] == response.headers["x-request-id"]
    return body["error"]["message"]


def _content(*blocks: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": list(blocks)}]}


def _after_a_call(*blocks: Any) -> dict[str, Any]:
    return {
        "messages": [
            *USER,
            {"role": "assistant", "content": [CALL]},
            {"role": "user", "content": list(blocks)},
        ]
    }


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"max_tokens": None}, "max_tokens"),
    ({"max_tokens": -1}, "max_tokens"),
    ({"max_tokens": 1.5}, "max_tokens"),
    ({"max_tokens": 10**30}, "max_tokens"),
    ({"temperature": -1}, "temperature"),
    ({"temperature": True}, "temperature"),
    ({"top_p": 0}, "top_p"),
    ({"top_k": -2}, "top_k"),
    ({"stop_sequences": [""]}, "stop_sequences[0]"),
    ({"stop_sequences": ["a"] * 65}, "stop_sequences"),
    ({"stop_sequences": "a"}, "stop_sequences"),
    ({"stream": "yes"}, "stream"),
    ({"seed": -1}, "seed"),
    ({"model": 5}, "model"),
    ({"metadata": {"user_id": 5}}, "metadata.user_id"),
    ({"metadata": {"other": "x"}}, "metadata.other"),
    ({"service_tier": "priority"}, "service_tier"),
    ({"speed": "fast"}, "speed"),
    ({"container": "c"}, "container"),
    ({"mcp_servers": []}, "mcp_servers"),
    ({"inference_geo": "eu"}, "inference_geo"),
    ({"diagnostics": {}}, "diagnostics"),
    ({"thread": {"type": "create"}}, "thread"),
    ({"compaction": {}}, "compaction"),
    ({"user_profile_id": "u"}, "user_profile_id"),
    (
        {"context_management": {"edits": [{"type": "clear_tool_uses_20250919"}]}},
        "context_management.edits[0]",
    ),
    ({"cache_control": {"type": "forever"}}, "cache_control.type"),
    ({"max_completion_tokens": 5}, "max_completion_tokens"),
    ({"temprature": 1}, "temprature"),
    ({"keep_alive": "5 parsecs"}, "keep_alive"),
    ({"output_config": {"effort": "some"}}, "output_config.effort"),
    ({"output_config": {"format": {"type": "json_object"}}}, "output_config.format.type"),
    ({"output_config": {"format": {"type": "json_schema"}}}, "output_config.format.schema"),
    ({"thinking": {"type": "between_tools"}}, "thinking.type"),
    ({"thinking": {"type": "enabled"}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "enabled", "budget_tokens": 9}}, "thinking.budget_tokens"),  # max_tokens is 9
    ({"thinking": {"type": "enabled", "budget_tokens": 5}}, "thinking.budget_tokens"),  # it does not think
    ({"thinking": {"type": "disabled", "budget_tokens": 5}}, "thinking.budget_tokens"),
    ({"thinking": {"type": "disabled", "display": "omitted"}}, "thinking.display"),
    ({"messages": []}, "messages"),
    ({"messages": None}, "messages"),
    ({"messages": "hi"}, "messages"),
    ({"messages": [5]}, "messages[0]"),
    ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    ({"messages": [{"role": "user"}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
    ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
    (_content({"type": "text"}), "messages[0].content[0].text"),
    (_content({"type": "text", "text": "a", "extra": 1}), "messages[0].content[0].extra"),
    (_content({"type": "text", "text": "a", "citations": [1]}), "messages[0].content[0].citations"),
    (_content({"type": "text", "text": "a"}, {"type": "image"}), "messages[0].content[1].type"),
    (_content({"type": "document", "source": {}}), "messages[0].content[0].type"),
    (_content({"type": "search_result"}), "messages[0].content[0].type"),
    (_content({"type": "redacted_thinking", "data": "x"}), "messages[0].content[0].type"),
    (_content({"type": "server_tool_use"}), "messages[0].content[0].type"),
    (_content({"text": "a"}), "messages[0].content[0].type"),
    (_content(CALL), "messages[0].content[0].type"),
    (_content({"type": "thinking", "thinking": "a"}), "messages[0].content[0].type"),
    (_content(RESULT), "messages[0].content[0].tool_use_id"),
    ({"messages": [*USER, {"role": "assistant", "content": [RESULT]}]}, "messages[1].content[0].type"),
    ({"messages": [*USER, {"role": "assistant", "content": [CALL]}]}, "messages"),
    (_after_a_call({"type": "text", "text": "never mind"}), "messages[2]"),
    (_after_a_call({"type": "text", "text": "first"}, RESULT), "messages[2].content[1]"),
    (_after_a_call(RESULT, RESULT), "messages[2].content[1].tool_use_id"),
    (_after_a_call({**RESULT, "tool_use_id": "c2"}), "messages[2].content[0].tool_use_id"),
    (_after_a_call({**RESULT, "content": [{"type": "image"}]}), "messages[2].content[0].content[0].type"),
    ({"messages": [*USER, {"role": "assistant", "content": [CALL, CALL]}]}, "messages[1].content[1]"),
    ({"messages": [*USER, {"role": "assistant", "content": "It is "}]}, "messages[1].content"),
    ({"messages": [*USER, {"role": "assistant", "content": ""}]}, "messages[1].content"),
    ({"system": [{"type": "image"}]}, "system[0].type"),
    ({"system": 5}, "system"),
    ({"tools": [{"type": "web_search_20250305", "name": "web_search"}]}, "tools[0].type"),
    ({"tools": [{"type": "bash_20250124", "name": "bash"}]}, "tools[0].type"),
    ({"tools": [{"name": "f"}]}, "tools[0].input_schema"),
    ({"tools": [{"name": "a b", "input_schema": {"type": "object"}}]}, "tools[0].name"),
    ({"tools": [{"name": "f", "input_schema": {"type": "string"}}]}, "tools[0].input_schema"),
    ({"tools": [TOOL, TOOL]}, "tools[1].name"),
    ({"tools": [{**TOOL, "defer_loading": True}]}, "tools[0].defer_loading"),
    ({"tools": [{**TOOL, "allowed_callers": ["code_execution_20250825"]}]}, "tools[0].allowed_callers[0]"),
    ({"tools": [{**TOOL, "name": f"f{i}"} for i in range(1000)]}, "tools"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool", "name": "g"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "tool"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": {"type": "auto", "name": "f"}}, "tool_choice.name"),
    ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
    ({"tool_choice": {"type": "any"}}, "tool_choice"),
    ({"tools": [TOOL], "tool_choice": {"type": "none", "disable_parallel_tool_use": True}}, "tool_choice."),
]


@pytest.mark.parametrize(("fields", "named"), WRONG, ids=lambda value: str(value)[:60])
def test_a_wrong_field_is_named(served: Served, fields: dict[str, Any], named: str) -> None:
    body = {"messages": USER, "max_tokens": 9} | fields
    message = _error(served.post("/v1/messages", body))
    assert message.startswith(named)
    assert len(message) < 600


@pytest.mark.parametrize("fields", [{"max_tokens": 5}, {"stream": True}, {"temperature": 1}])
def test_counting_takes_no_fields_of_an_answer(served: Served, fields: dict[str, Any]) -> None:
    message = _error(served.post("/v1/messages/count_tokens", {"messages": USER} | fields))
    assert message.startswith(next(iter(fields)))


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"\xff\xfe",
        b'{"max_tokens": 1, "messages": "\xff"}',
        b'{"max_tokens": 1, "messages": "\\ud800"}',
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"max_tokens": ' + b"9" * 5000 + b"}",
    ],
)
@pytest.mark.parametrize("path", ["/v1/messages", "/v1/messages/count_tokens"])
def test_a_body_that_is_no_object(served: Served, path: str, body: bytes) -> None:
    assert _error(served.post(path, body))


@pytest.mark.parametrize("depth", [100, 500, *range(970, 990), 5000])
def test_inputs_and_schemas_that_nest_deeply(served: Served, depth: int) -> None:
    """Also where what was decoded cannot be encoded again, being a few calls deeper in the stack."""
    deep = b'{"a":' * depth + b"1" + b"}" * depth
    user = b'{"role": "user", "content": "a"}'
    called = b'{"role": "assistant", "content": [{"type": "tool_use", "id": "c", "name": "f", "input": %b}]}'
    result = b'{"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c"}]}'
    for fields in (
        b'"messages": [%b], "tools": [{"name": "f", "input_schema": {"type": "object", "x": %b}}]'
        % (user, deep),
        b'"messages": [%b, %b, %b]' % (user, called % deep, result),
        b'"messages": [%b], "output_config": {"format": {"type": "json_schema", "schema": %b}}'
        % (user, deep),
    ):
        response = served.post("/v1/messages", b'{"max_tokens": 9, %b}' % fields)
        if response.status_code != 200:
            message = _error(response)
            assert "nests too deeply" in message or "recursion depth" in message


@pytest.mark.parametrize(
    "content",
    [
        [{"type": "text", "z": 1}] * 300_000,
        [{"type": "text", "text": ""}] * 300_000,
        [{"type": "text", "text": ""} | {f"f{i}": 1 for i in range(300_000)}],
        [{"type": "tool_use", "id": f"c{i}", "name": "f", "input": {}} for i in range(30_000)],
    ],
    ids=["mistakes", "blocks", "fields", "calls"],
)
def test_a_body_with_many_mistakes_costs_no_more_than_its_first(content: list[Any]) -> None:
    body = json.dumps({"max_tokens": 9, "messages": [*USER, {"role": "assistant", "content": content}]})
    started = time.process_time()
    with pytest.raises(Refusal) as refused:
        conversation_of(parse(body.encode(), schemas.MessagesRequest))
    assert time.process_time() - started < 3  # 300 000 mistakes, all listed, took 15
    assert len(refused.value.problem.message) < 600


def test_a_long_wrong_value_is_not_sent_back_whole(served: Served) -> None:
    for fields in ({"temperature": "x" * 100_000}, {"system": [{"type": "x" * 100_000}]}):
        response = served.post("/v1/messages", {"messages": USER, "max_tokens": 9} | fields)
        assert len(response.content) < 1000


def test_models_paths_methods_and_types(served: Served) -> None:
    body = {"messages": USER, "max_tokens": 9}
    for path in ("/v1/messages", "/v1/messages/count_tokens"):
        asked = {**body, "model": "claude-opus-4-5"}
        if path.endswith("count_tokens"):
            del asked["max_tokens"]
        assert "fake, base" in _error(served.post(path, asked), 404, "not_found_error")
        assert "base" in _error(served.post(path, {**asked, "model": "base"}))
    _error(served.get("/v1/messages/batches"), 404, "not_found_error")
    assert "POST" in _error(served.get("/v1/messages"), 405)
    kind = {"content-type": "text/plain"}
    assert "application/json" in _error(served.post("/v1/messages", body, **kind), 415)


def test_keys_hosts_and_sizes_speak_the_dialect() -> None:
    options = ServerOptions(api_keys=("right",), max_body_bytes=1000, allowed_hosts=("127.0.0.1",))
    body = {"messages": USER, "max_tokens": 9}
    with serve(FakeHost(), options) as served:
        _error(served.post("/v1/messages", body), 401, "authentication_error")
        _error(served.post("/v1/messages", body, **{"x-api-key": "wrong"}), 401, "authentication_error")
        key = {"x-api-key": "right", "anthropic-version": "2023-06-01"}
        assert served.post("/v1/messages", body, **key).status_code == 200
        assert served.post("/v1/messages", body, authorization="Bearer right").status_code == 200
        large = {**body, "system": "x" * 2000}
        _error(served.post("/v1/messages", large, **key), 413, "request_too_large")
        _error(served.post("/v1/messages", body, host="evil.example", **key), 403, "permission_error")


_RAISED = [
    (RequestError("the schema is odd"), 400, "invalid_request_error"),
    (PromptTooLongError("the prompt has 9 tokens; allowed: at most 8"), 400, "invalid_request_error"),
    (TemplateError("it loops"), 400, "invalid_request_error"),
    (ModelNotFoundError("gone"), 404, "not_found_error"),
    (QueueFullError("full", retry_after_s=7.2), 429, "rate_limit_error"),
    (UnavailableError("down"), 503, "api_error"),
    (CapacityError("no memory"), 529, "overloaded_error"),
    (EngineError("secret detail"), 500, "api_error"),
    (ValueError("secret detail"), 500, "api_error"),
]


@pytest.mark.parametrize(("raised", "status", "kind"), _RAISED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_endpoint_refuses_has_its_status(
    raised: Exception, status: int, kind: str, stream: bool
) -> None:
    with serve(FakeHost(FakeModel(error=raised))) as served:
        body = {"messages": USER, "max_tokens": 9, "stream": stream}
        response = served.post("/v1/messages", body)
        message = _error(response, status, kind)
        assert ("retry-after" in response.headers) == (status in (429, 503, 529))
        assert "secret" not in response.text
        if status == 400:
            assert message == str(raised)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [(UnavailableError("the engine is gone"), "api_error"), (KeyError("secret"), "api_error")],
)
def test_a_stream_that_fails_ends_in_an_error(failure: Exception, kind: str) -> None:
    with serve(FakeHost(FakeModel(error_after=(3, failure)))) as served:
        response = served.post("/v1/messages", {"messages": USER, "max_tokens": 50, "stream": True})
        trace = read_trace(response.text)
        assert trace.message["content"][0]["text"] == "Gr"
        assert trace.error is not None
        assert trace.error["error"]["type"] == kind
        assert trace.error["request_id"] == response.headers["request-id"]
        assert "secret" not in response.text
        assert served.host.model.open == 0


def test_a_request_that_is_late_has_a_status_of_its_own() -> None:
    from stoker.api.events import DoneEvent, Usage

    class Late(FakeModel):
        async def generate(self, request: Any) -> Any:
            yield DoneEvent(request.request_id, 0, "abort", "deadline", 1, Usage(1, 0))

    with serve(FakeHost(Late())) as served:
        body = json.dumps({"messages": USER, "max_tokens": 9, "deadline_ms": 1}).encode()
        assert "deadline" in _error(served.post("/v1/messages", body), 504, "timeout_error")
