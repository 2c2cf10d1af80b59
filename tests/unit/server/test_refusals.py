"""What is refused, with which status, and that the message names the field."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from pydantic import ValidationError
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, events_of, serve

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
from stoker.server import schemas

USER = [{"role": "user", "content": "a"}]


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(FakeHost(FakeModel(), FakeModel("base", has_chat_template=False))) as running:
        yield running


def _error(response: Any, status: int = 400) -> dict[str, Any]:
    assert response.status_code == status, response.text
    schemas.ErrorAnswer.model_validate(response.json())
    assert set(response.json()) == {"error"}
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
    assert response.headers["x-request-id"]
    return response.json()["error"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": -1}, "temperature"),
        ({"temperature": "0.5"}, "temperature"),
        ({"temperature": True}, "temperature"),
        ({"temperature": 1e300}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"top_k": 1.5}, "top_k"),
        ({"top_k": -2}, "top_k"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": -5}, "max_tokens"),
        ({"max_tokens": 10**30}, "max_tokens"),
        ({"max_tokens": "many"}, "max_tokens"),
        ({"n": 0}, "n"),
        ({"n": 10**9}, "n"),
        ({"seed": -1}, "seed"),
        ({"seed": 1 << 64}, "seed"),
        ({"seed": 1.5}, "seed"),
        ({"stop": [1]}, "stop[0]"),
        ({"stop": ""}, "stop"),
        ({"stop": ["a"] * 65}, "stop"),
        ({"stop_token_ids": [-1]}, "stop_token_ids[0]"),
        ({"logit_bias": {"x": 1}}, "logit_bias.x"),
        ({"logit_bias": {"5": 101}}, "logit_bias.5"),
        ({"logit_bias": [1]}, "logit_bias"),
        ({"min_tokens": 5, "max_tokens": 2}, "min_tokens"),
        ({"max_tokens": 5, "max_completion_tokens": 6}, "max_completion_tokens"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"logprobs": 3}, "logprobs"),
        ({"stream": "yes"}, "stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
        ({"stream": True, "stream_options": {"continuous_usage_stats": True}}, "stream_options"),
        ({"user": 5}, "user"),
        ({"user": "x" * 2000}, "user"),
        ({"priority": 1 << 40}, "priority"),
        ({"keep_alive": "5 parsecs"}, "keep_alive"),
        ({"model": 5}, "model"),
        ({"tools": [{"type": "function"}]}, "tools[0].function"),
        ({"tool_choice": "required"}, "tool_choice"),
        ({"response_format": {"type": "yaml"}}, "response_format.type"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"audio": {"voice": "x"}}, "audio"),
        ({"modalities": ["audio"]}, "modalities"),
        ({"prompt_logprobs": -2}, "prompt_logprobs"),
        ({"chat_template": "{{ x }}"}, "chat_template"),
        ({"echo": True}, "echo"),
        ({"temprature": 1}, "temprature"),
        ({"messages": []}, "messages"),
        ({"messages": "hi"}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [5]}, "messages[0]"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "messages[0].role"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages[0].tool_call_id"),
        ({"messages": [{"role": "user"}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": []}]}, "messages[0].content"),
        ({"messages": [{"role": "user", "content": "a", "name": "Bob"}]}, "messages[0].name"),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages[0].content[0].type",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "input_audio", "input_audio": {}}]}]},
            "messages[0].content[0].type",
        ),
    ],
)
def test_a_wrong_field_of_a_chat_is_named(served: Served, fields: dict[str, Any], param: str) -> None:
    error = _error(served.post("/v1/chat/completions", {"messages": USER} | fields))
    assert error["param"] == param
    assert param.split("[")[0].split(".")[0] in error["message"]
    assert error["type"] == "invalid_request_error"
    assert error["code"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": [1, "a"]}, "prompt[1]"),
        ({"prompt": [1] * 5000 + ["a"]}, "prompt[5000]"),
        ({"prompt": ["a", 1]}, "prompt[1]"),
        ({"prompt": [1] * ((1 << 20) + 1)}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"prompt": [1.5]}, "prompt[0]"),
        ({"prompt": ["a"] * 129}, "prompt"),
        ({"prompt": {"a": 1}}, "prompt"),
        ({"prompt": "a", "best_of": 3}, "best_of"),
        ({"prompt": "a", "suffix": "b"}, "suffix"),
        ({"prompt": "a", "logprobs": 500}, "logprobs"),
        ({"prompt": "a", "logprobs": True}, "logprobs"),
        ({"prompt": "a", "top_logprobs": 1}, "top_logprobs"),
    ],
)
def test_a_wrong_field_of_a_completion_is_named(served: Served, fields: dict[str, Any], param: str) -> None:
    assert _error(served.post("/v1/completions", fields))["param"] == param


@pytest.mark.parametrize(
    ("model", "fields"),
    [
        (schemas.CompletionRequest, {"prompt": [-1] * 5000}),
        (schemas.CompletionRequest, {"prompt": [[]] * 5000}),
        (schemas.CompletionRequest, {"prompt": [[-1] * 5000]}),
        (schemas.CompletionRequest, {"prompt": [""] * 5000}),
        (schemas.CompletionRequest, {"prompt": "a", "logit_bias": {f"x{i}": 1 for i in range(5000)}}),
        (schemas.CompletionRequest, {"prompt": "a", "logit_bias": {str(i): "x" for i in range(5000)}}),
        (schemas.CompletionRequest, {"prompt": "a", "stop": [1] * 5000}),
        (schemas.CompletionRequest, {"prompt": "a", **{f"x{i}": 1 for i in range(5000)}}),
        (schemas.ChatCompletionRequest, {"messages": [{}] * 5000}),
        (schemas.ChatCompletionRequest, {"messages": [{"role": "user", "content": [1] * 5000}]}),
        (
            schemas.ChatCompletionRequest,
            {"messages": [{"role": "user", "content": "a", **{f"x{i}": 1 for i in range(5000)}}]},
        ),
        (schemas.DetokenizeRequest, {"tokens": [-1] * 5000}),
    ],
)
def test_a_million_mistakes_are_not_a_million_errors(
    served: Served, model: type[schemas.Fields], fields: dict[str, Any]
) -> None:
    """Each would be a kilobyte, and all of them minutes in which the server does nothing else."""
    with pytest.raises(ValidationError) as found:
        model.model_validate(fields)
    assert found.value.error_count() < 10


def test_a_body_of_thousands_of_fields_is_refused(served: Served) -> None:
    error = _error(served.post("/v1/completions", {"prompt": "a", **{f"x{i}": None for i in range(5000)}}))
    assert "5001 fields" in error["message"]
    error = _error(served.post("/v1/completions", {"prompt": "a", "x" * 100_000: 1}))
    assert len(error["message"]) < 1000


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"nonsense",
        b"[]",
        b"5",
        b"null",
        b'"text"',
        b"\xff\xfe",
        b'{"messages": "\xff"}',
        b'{"messages": "\\ud800"}',
        b'{"temperature": NaN}',
        b'{"temperature": 1e999}',
        b'{"temperature": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"messages": [{"role": "user", "content": "a"}]} trailing',
    ],
)
@pytest.mark.parametrize("path", ["/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"])
def test_a_body_that_is_no_object(served: Served, path: str, body: bytes) -> None:
    assert _error(served.post(path, body))["message"]


def test_a_long_wrong_value_is_not_sent_back_whole(served: Served) -> None:
    assert len(served.chat(temperature="x" * 100_000).content) < 1000


def test_other_content_types_are_refused(served: Served) -> None:
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        response = served.post("/v1/completions", {"prompt": "a"}, **{"content-type": kind})
        assert _error(response, 415)["code"] == "content_type"
    good = served.post(
        "/v1/completions", {"prompt": "a"}, **{"content-type": "Application/JSON; charset=utf-8"}
    )
    assert good.status_code == 200


def test_unknown_models_paths_and_methods(served: Served) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"):
        body = (
            {"prompt": "a", "model": "gpt-5"} if "chat" not in path else {"messages": USER, "model": "gpt-5"}
        )
        body = {"tokens": [1], "model": "gpt-5"} if path == "/detokenize" else body
        error = _error(served.post(path, body), 404)
        assert (error["code"], error["param"]) == ("model_not_found", "model")
        assert "fake, base" in error["message"]
    assert _error(served.get("/nope"), 404)["code"] == "not_found"
    assert _error(served.get("/v1/completions"), 405)["code"] == "method_not_allowed"
    assert served.get("/v1/completions").headers["allow"] == "POST"


def test_a_base_model_takes_no_chat(served: Served) -> None:
    assert "/v1/completions" in _error(served.chat(model="base"))["message"]
    assert served.complete(model="base").status_code == 200
    assert _error(served.post("/tokenize", {"model": "base", "messages": USER}))["param"] == "messages"


def test_tokenize_wants_one_of_two(served: Served) -> None:
    assert _error(served.post("/tokenize", {}))["param"] == "prompt"
    assert _error(served.post("/tokenize", {"prompt": "a", "messages": USER}))["param"] == "prompt"
    assert _error(served.post("/detokenize", {}))["param"] == "tokens"


_RAISED = [
    (RequestError("temperature is odd"), 400, "invalid_value"),
    (PromptTooLongError("the prompt has 9 tokens; allowed: at most 8"), 400, "context_length_exceeded"),
    (TemplateError("it loops"), 400, "invalid_value"),
    (ModelNotFoundError("gone"), 404, "model_not_found"),
    (QueueFullError("full", retry_after_s=7.2), 429, "queue_full"),
    (UnavailableError("down"), 503, "unavailable"),
    (CapacityError("no memory"), 503, "out_of_capacity"),
    (EngineError("secret detail"), 500, "internal_error"),
    (ValueError("secret detail"), 500, "internal_error"),
]


@pytest.mark.parametrize(("raised", "status", "code"), _RAISED, ids=lambda value: type(value).__name__)
@pytest.mark.parametrize("stream", [False, True])
def test_what_an_endpoint_refuses_has_its_status(
    raised: Exception, status: int, code: str, stream: bool
) -> None:
    with serve(FakeHost(FakeModel(error=raised))) as served:
        response = served.chat(stream=stream)
        error = _error(response, status)
        assert error["code"] == code
        assert ("retry-after" in response.headers) == (status in (429, 503))
        assert "secret" not in response.text
        if status == 429:
            assert response.headers["retry-after"] == "8"
        if status == 400:
            assert error["message"] == str(raised)


@pytest.mark.parametrize(
    "failure", [UnavailableError("the engine is gone"), EngineError("secret"), KeyError("secret")]
)
def test_a_stream_that_fails_ends_in_an_error(failure: Exception) -> None:
    with serve(FakeHost(FakeModel(error_after=(3, failure)))) as served:
        *chunks, error, done = events_of(served.complete(stream=True).text)
        assert done == "[DONE]"
        assert "".join(chunk["choices"][0]["text"] for chunk in chunks) == "Gr"
        assert error["error"]["type"] in ("service_unavailable_error", "server_error")
        assert "secret" not in str(error)
        status = 503 if isinstance(failure, UnavailableError) else 500
        assert served.complete().status_code == status


def test_one_failing_prompt_of_several_fails_the_call() -> None:
    def answer(request: Any, seed: int) -> str:
        if request.prompt == "b":
            raise UnavailableError("b is out")
        return "fine"

    with serve(FakeHost(FakeModel(answer=answer))) as served:
        assert _error(served.complete(["a", "b"]), 503)["message"] == "b is out"
        assert served.complete(["a", "a"]).status_code == 200
        assert served.host.model.open == 0
