"""The fields of chats: each documented one is obeyed or refused by its name."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from typing import Any

import pytest
from openai.types.chat.completion_create_params import CompletionCreateParamsBase
from openai.types.completion_create_params import CompletionCreateParamsBase as TextParams
from tests.fake_host import THINKING_TEMPLATE, TOOL_TEMPLATE, FakeHost, FakeModel
from tests.fakes import ByteTokenizer
from tests.served import Served, events_of, serve

from stoker.api.constraint import Constraint, Tag, Tags
from stoker.api.errors import RequestError
from stoker.api.events import Event
from stoker.api.request import Request
from stoker.process.prompts import PromptEncoder
from stoker.server import schemas
from stoker.server.fields import REFUSED_FIELDS

USER = {"role": "user", "content": "hi"}
TOOL: dict[str, Any] = {"type": "function", "function": {"name": "clock"}}
SCHEMA = {"type": "object", "properties": {"z": {}, "a": {}}}
CLOSED = {**SCHEMA, "additionalProperties": False}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    models = [
        FakeModel("fake"),
        FakeModel("tools", chat_template=TOOL_TEMPLATE),
        FakeModel("thinks", chat_template=THINKING_TEMPLATE),
    ]
    with serve(FakeHost(*models)) as running:
        yield running


def _chat(served: Served, **fields: Any) -> Any:
    return served.post("/v1/chat/completions", {"messages": [USER], "max_tokens": 2, **fields})


def _asked(served: Served, **fields: Any) -> Request:
    response = _chat(served, **fields)
    assert response.status_code == 200, response.text
    schemas.ChatCompletion.model_validate(response.json())
    model: FakeModel = served.host.models[fields.get("model", "fake")]
    return model.requests[-1]


@pytest.mark.parametrize("name", CompletionCreateParamsBase.__annotations__)
def test_every_field_of_openais_is_known_or_refused_by_name(name: str) -> None:
    assert name in schemas.ChatCompletionRequest.model_fields or name in REFUSED_FIELDS


@pytest.mark.parametrize("name", TextParams.__annotations__)
def test_every_field_of_openais_completions_too(name: str) -> None:
    assert name in schemas.CompletionRequest.model_fields or name in REFUSED_FIELDS


@pytest.mark.parametrize(
    ("fields", "constraint"),
    [
        ({"response_format": {"type": "text"}}, None),
        ({"response_format": {"type": "json_object"}}, Constraint("json_object")),
        (
            {"response_format": {"type": "json_schema", "json_schema": {"name": "x", "schema": SCHEMA}}},
            Constraint("json_schema", json.dumps(CLOSED)),
        ),
        (
            {
                "response_format": {
                    "type": "json_schema",
                    "json_schema": {"name": "x", "schema": SCHEMA, "strict": True, "description": "d"},
                }
            },
            Constraint("json_schema", json.dumps(CLOSED)),
        ),
        ({"structured_outputs": {"json": SCHEMA}}, Constraint("json_schema", json.dumps(CLOSED))),
        ({"structured_outputs": {"json": json.dumps(SCHEMA)}}, Constraint("json_schema", json.dumps(CLOSED))),
        ({"structured_outputs": {"regex": "a+"}}, Constraint("regex", "a+")),
        ({"structured_outputs": {"choice": ["a", "b"]}}, Constraint("choice", choices=("a", "b"))),
        ({"structured_outputs": {"grammar": 'start: "a"'}}, Constraint("lark", 'start: "a"')),
        ({"structured_outputs": {"json_object": True}}, Constraint("json_object")),
        ({"structured_outputs": {"regex": "a", "disable_fallback": False}}, Constraint("regex", "a")),
        ({"guided_json": SCHEMA}, Constraint("json_schema", json.dumps(CLOSED))),
        ({"guided_regex": "a+"}, Constraint("regex", "a+")),
        ({"guided_choice": ["a"]}, Constraint("choice", choices=("a",))),
        ({"guided_grammar": 'start: "a"'}, Constraint("lark", 'start: "a"')),
        (
            {
                "structured_outputs": {
                    "structural_tag": {
                        "type": "structural_tag",
                        "structures": [{"begin": "<f>", "schema": SCHEMA, "end": "</f>"}],
                        "triggers": ["<f"],
                    }
                }
            },
            Constraint(
                "tags",
                tags=Tags((Tag("<f>", json.dumps(SCHEMA), "</f>"),), triggers=("<f",), text=True),
            ),
        ),
    ],
)
def test_what_an_answer_must_be(
    served: Served, fields: dict[str, Any], constraint: Constraint | None
) -> None:
    assert _asked(served, **fields).sampling.constraint == constraint
    assert served.complete("a", **fields).status_code == 200
    assert served.host.model.requests[-1].sampling.constraint == constraint


FUNCTION = {"type": "function", "function": {"name": "clock"}}


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"response_format": {"type": "json_schema"}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_schema", "json_schema": {"schema": 5}}},
         "response_format.json_schema.schema"),
        ({"response_format": {"type": "json_object", "json_schema": {}}}, "response_format.json_schema"),
        ({"response_format": {"type": "json_object"}, "guided_regex": "a"}, "response_format"),
        ({"structured_outputs": {}}, "structured_outputs"),
        ({"structured_outputs": {"regex": "a", "choice": ["b"]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"regex": ""}}, "structured_outputs.regex"),
        ({"structured_outputs": {"choice": []}}, "structured_outputs.choice"),
        ({"structured_outputs": {"choice": [""]}}, "structured_outputs.choice"),
        ({"structured_outputs": {"json": "{"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json": "5"}}, "structured_outputs.json"),
        ({"structured_outputs": {"json_object": False}}, "structured_outputs.json_object"),
        ({"structured_outputs": {"json": {}, "whitespace_pattern": " "}},
         "structured_outputs.whitespace_pattern"),
        ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag"),
        ({"structured_outputs": {"structural_tag": {
            "structures": [{"begin": "a", "schema": {}, "end": ""}], "triggers": ["b"]}}},
         "structured_outputs.structural_tag"),
        ({"structured_outputs": {"regex": "a", "disable_any_whitespace": True}},
         "structured_outputs.disable_any_whitespace"),
        ({"guided_regex": "a" * 2_000_000}, "guided_regex"),
        ({"guided_choice": [str(i) for i in range(5000)]}, "guided_choice"),
        ({"guided_decoding_backend": "xgrammar"}, "guided_decoding_backend"),
        ({"tools": [TOOL, TOOL]}, "tools[1].function.name"),
        ({"tools": [{"type": "custom", "custom": {"name": "x"}}]}, "tools[0].type"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "tools[0].function.name"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": "x"}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": "a", "parameters": {"type": "array"}}}]},
         "tools[0].function.parameters"),
        ({"tools": [{"type": "function", "function": {"name": f"t{i}"}} for i in range(1000)]}, "tools"),
        ({"tool_choice": FUNCTION}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "function", "function": {"name": "x"}}}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": "any"}, "tool_choice"),
        ({"tools": [TOOL], "tool_choice": {"type": "allowed_tools", "allowed_tools": {
            "mode": "auto", "tools": [{"type": "function", "function": {"name": "x"}}]}}}, "tool_choice"),
        ({"functions": [{"name": "x"}]}, "functions"),
        ({"function_call": "auto"}, "function_call"),
        ({"messages": [USER, {"role": "tool", "tool_call_id": "x", "content": "4"}]},
         "messages[1].tool_call_id"),
        ({"messages": [USER, {"role": "tool", "content": "4"}]}, "messages[1].tool_call_id"),
        ({"messages": [{"role": "user", "content": "a", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{}"}}]}]},
         "messages[0].tool_calls"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [
            {"id": "a", "type": "function", "function": {"name": "clock", "arguments": "{"}}]}]},
         "messages[1].tool_calls[0].function.arguments"),
        ({"messages": [USER, {"role": "assistant", "tool_calls": [{"id": "a", "type": "function"}]}]},
         "messages[1].tool_calls[0].function"),
        ({"messages": [USER, {"role": "assistant"}]}, "messages[1].content"),
        ({"messages": [USER, {"role": "assistant", "function_call": {"name": "x"}}]},
         "messages[1].function_call"),
        ({"reasoning_effort": "low"}, "reasoning_effort"),
        ({"reasoning_effort": "much"}, "reasoning_effort"),
        ({"thinking_token_budget": 5}, "thinking_token_budget"),
        ({"thinking_token_budget": -1}, "thinking_token_budget"),
        ({"chat_template_kwargs": {"x": 1}}, "chat_template_kwargs"),
        ({"service_tier": "priority"}, "service_tier"),
        ({"metadata": {"a": "b"}}, "metadata"),
        ({"metadata": {"a": 5}, "store": True}, "metadata.a"),
        ({"verbosity": "low"}, "verbosity"),
        ({"prediction": {"type": "content", "content": 5}}, "prediction.content"),
        ({"prediction": {"type": "text", "content": "x"}}, "prediction.type"),
        ({"moderation": {}}, "moderation"),
        ({"web_search_options": {}}, "web_search_options"),
        ({"stream": True, "stream_options": {"include_obfuscation": True}},
         "stream_options.include_obfuscation"),
        ({"continue_final_message": True, "add_generation_prompt": True}, "continue_final_message"),
    ],
)  # fmt: skip
def test_what_is_refused_is_named(served: Served, fields: dict[str, Any], param: str) -> None:
    response = _chat(served, **fields)
    assert response.status_code == 400, response.text
    error = response.json()["error"]
    assert error["param"] == param
    assert param.split("[")[0].split(".")[0] in error["message"]


class Predicting(FakeModel):
    """Encodes predictions as a worker's parent does."""

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        tokenizer: Any = ByteTokenizer()
        encoder = PromptEncoder(tokenizer, name=self.name, context_tokens=100)
        await encoder.encode_prediction(request.prediction)
        async for event in super().generate(request):
            yield event


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize(("chars", "says"), [(101, "has 101 tokens"), (100_000, "has at least ")])
def test_a_prediction_longer_than_the_context(stream: bool, chars: int, says: str) -> None:
    with serve(FakeHost(Predicting())) as running:
        answer = _chat(running, prediction={"type": "content", "content": "x" * chars}, stream=stream)
        assert answer.status_code == 400
        error = answer.json()["error"]
        assert error["code"] == "context_length_exceeded"
        assert error["message"].startswith("the prediction " + says)
        assert "allowed: at most 100" in error["message"]
        good = _chat(running, prediction={"type": "content", "content": "x" * 100})
        assert good.status_code == 200


def test_fields_that_are_obeyed(served: Served) -> None:
    request = _asked(
        served,
        service_tier="flex",
        safety_identifier="ann",
        prompt_cache_key="k",
        prompt_cache_retention="in_memory",
        verbosity="medium",
        skip_special_tokens=False,
        prompt_logprobs=2,
        prediction={"type": "content", "content": [{"type": "text", "text": t} for t in "ab"]},
    )
    assert request.prediction == "ab"
    assert _asked(served, prediction={"type": "content", "content": "x"}).prediction == "x"
    assert request.background
    assert request.tenant == "ann"
    assert not request.sampling.skip_special_tokens
    assert request.sampling.prompt_logprobs == 2
    assert not _asked(served, service_tier="default").background
    assert _chat(served, service_tier="flex").json()["service_tier"] == "flex"
    assert _chat(served, service_tier="auto").json()["service_tier"] == "default"
    assert "service_tier" not in _chat(served).json()


def test_tools_reach_the_engine(served: Served) -> None:
    choices: list[Any] = [
        "required",
        FUNCTION,
        {"type": "allowed_tools", "allowed_tools": {"mode": "required", "tools": [FUNCTION]}},
    ]
    tools = [TOOL, {"type": "function", "function": {"name": "x", "strict": True, "description": None}}]
    for choice, tags in zip(choices, (2, 1, 1), strict=True):
        request = _asked(served, model="tools", tools=tools, tool_choice=choice, parallel_tool_calls=True)
        constraint = request.sampling.constraint
        assert constraint is not None
        assert constraint.tags is not None
        assert (len(constraint.tags.tags), constraint.tags.least) == (tags, 1)


def test_a_history_of_calls_reaches_the_template(served: Served) -> None:
    call = {"id": "a", "type": "function", "function": {"name": "clock", "arguments": '{"tz": 1}'}}
    assistant = {"role": "assistant", "content": None, "tool_calls": [call], "reasoning_content": "hm"}
    result = {"role": "tool", "tool_call_id": "a", "content": [{"type": "text", "text": "noon"}]}
    request = _asked(served, model="tools", messages=[USER, assistant, result], tools=[TOOL])
    _, said, answer = request.prompt.messages  # type: ignore[union-attr]
    assert said.tool_calls[0].arguments == '{"tz": 1}'
    assert said.reasoning == "hm"
    assert (answer.role, answer.tool_call_id, answer.content) == ("tool", "a", "noon")


def test_an_answer_with_calls_may_be_sent_back_as_it_is(served: Served) -> None:
    served.host.models["tools"].answer = lambda request, seed: (
        '<tool_call>\n{"name": "clock", "arguments": {}}\n</tool_call>'
    )
    message = _chat(served, model="tools", tools=[TOOL], max_tokens=None).json()["choices"][0]["message"]
    assert message["content"] is None
    result = {"role": "tool", "tool_call_id": message["tool_calls"][0]["id"], "content": "noon"}
    nulls = {"audio": None, "function_call": None, "annotations": [], "refusal": None}
    assert _asked(served, model="tools", messages=[USER, message | nulls, result])


def test_log_probabilities_of_a_prompt(served: Served) -> None:
    answer = _chat(served, messages=[{"role": "user", "content": "ab"}], prompt_logprobs=1).json()
    schemas.ChatCompletion.model_validate(answer)
    first, second, *_ = answer["prompt_logprobs"]
    assert first is None
    assert second == {str(ord("u")): {"logprob": -0.5, "rank": 1, "decoded_token": "u"}}
    assert len(answer["prompt_logprobs"]) == answer["usage"]["prompt_tokens"]
    text = served.complete(["ab", "c"], prompt_logprobs=0, max_tokens=1).json()
    schemas.Completion.model_validate(text)
    assert [len(c["prompt_logprobs"]) for c in text["choices"]] == [2, 1]
    assert text["choices"][0]["prompt_logprobs"][1] == {
        "98": {"logprob": -0.5, "rank": None, "decoded_token": "b"}
    }
    chunks = events_of(_chat(served, prompt_logprobs=1, stream=True).text)
    assert [len(c["prompt_logprobs"]) for c in chunks[:-1] if "prompt_logprobs" in c] == [19]


def test_an_echo_has_its_log_probabilities(served: Served) -> None:
    fields: dict[str, Any] = {"echo": True, "logprobs": 1, "max_tokens": 2, "n": 2}
    whole = served.complete(["ab", "c"], **fields).json()
    schemas.Completion.model_validate(whole)
    for choice, prompt in zip(whole["choices"], ("ab", "ab", "c", "c"), strict=True):
        found = choice["logprobs"]
        assert choice["text"] == prompt + "Gr"
        assert found["tokens"] == [*prompt, "G", "r"]
        assert found["token_logprobs"] == [None, *[-0.5] * (len(prompt) + 1)]
        assert found["top_logprobs"][0] is None
        assert found["text_offset"] == list(range(len(prompt) + 2))
        assert "prompt_logprobs" not in choice
    streamed = events_of(served.complete(["ab", "c"], stream=True, **fields).text)[:-1]
    for choice in whole["choices"]:
        pieces = [c for chunk in streamed for c in chunk["choices"] if c["index"] == choice["index"]]
        assert "".join(piece["text"] for piece in pieces) == choice["text"]
        for name in choice["logprobs"]:
            joined = [item for piece in pieces if piece["logprobs"] for item in piece["logprobs"][name]]
            assert joined == choice["logprobs"][name]


def test_the_last_message_goes_on(served: Served) -> None:
    messages = [USER, {"role": "assistant", "content": "Once upon"}]
    request = _asked(served, messages=messages, continue_final_message=True)
    assert bytes(request.prompt).endswith(b"<assistant>Once upon")  # type: ignore[arg-type]
    closed = _asked(served, messages=messages, add_generation_prompt=False)
    assert not closed.prompt.add_generation_prompt  # type: ignore[union-attr]


def test_what_the_engine_cannot_enforce_names_the_field() -> None:
    model = FakeModel(error=RequestError("the json_schema constraint cannot be enforced: $dynamicRef"))
    with serve(FakeHost(model)) as served:
        cases: list[tuple[dict[str, Any], str | None]] = [
            ({"response_format": {"type": "json_object"}}, "response_format"),
            ({"structured_outputs": {"json": SCHEMA}}, "structured_outputs.json"),
            ({"tools": [TOOL]}, "tools"),
            ({}, None),
        ]
        for stream in (False, True):
            for fields, param in cases:
                response = _chat(served, stream=stream, **fields)
                assert response.status_code == 400
                assert response.json()["error"]["param"] == param
