"""The clients people have, against `stoker serve` with a real model: OpenAI's SDK, LangChain, llm.

The model is small and knows little: what is asserted is what must hold of any answer.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pytest
from pydantic import BaseModel, Field

pytestmark = pytest.mark.model

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 60.0


class City(BaseModel):
    """What is asked for."""

    name: str = Field(max_length=20)
    continent: Literal["Africa", "America", "Asia", "Europe", "Oceania"]
    population: int = Field(ge=0, le=99)


class GetWeather(BaseModel):
    """The weather of a city."""

    city: str = Field(max_length=20)
    unit: Literal["celsius", "fahrenheit"]


QUESTION: Any = [{"role": "user", "content": "What is the weather in Paris?"}]
TOOLS: Any = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a city",
            "parameters": GetWeather.model_json_schema(),
        },
    },
    {"type": "function", "function": {"name": "get_time", "description": "The time now"}},
]
WEATHER_ONLY: Any = {"type": "function", "function": {"name": "get_weather"}}


@pytest.fixture(scope="module")
def url(smollm2_path: Path) -> Iterator[str]:
    command = [sys.executable, "-m", "stoker", "serve", str(smollm2_path), "--port", "0", "--no-disk-cache"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src"), "STOKER_API_KEY": ""}
    process = subprocess.Popen(
        [*command, "--state", "none"],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    )
    timer = threading.Timer(START_LIMIT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        timer.cancel()
        yield line.split()[0] + "/v1"
    finally:
        timer.cancel()
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def name(smollm2_path: Path) -> str:
    return smollm2_path.stem


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=120) as made:
        yield made


# --- OpenAI's SDK ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(4))
def test_a_named_tool_is_called_with_valid_arguments(client: openai.OpenAI, name: str, seed: int) -> None:
    answer = client.chat.completions.create(
        model=name, messages=QUESTION, tools=TOOLS, tool_choice=WEATHER_ONLY, seed=seed, max_tokens=120
    )
    (call,) = answer.choices[0].message.tool_calls or []
    assert call.type == "function"
    assert call.function.name == "get_weather"
    GetWeather.model_validate_json(call.function.arguments)
    assert answer.choices[0].finish_reason == "tool_calls"
    assert answer.choices[0].message.content is None


def test_required_tools_streamed_are_the_whole_ones(client: openai.OpenAI, name: str) -> None:
    options: Any = {
        "model": name, "messages": QUESTION, "tools": TOOLS, "tool_choice": "required", "seed": 3,
        "parallel_tool_calls": False, "max_tokens": 120, "extra_headers": {"x-request-id": "same"},
    }  # fmt: skip
    whole = client.chat.completions.create(**options).choices[0]
    with client.chat.completions.stream(**options) as stream:
        streamed = stream.get_final_completion().choices[0]
    assert whole.message.tool_calls
    assert [(c.id, c.function.name, c.function.arguments) for c in whole.message.tool_calls] == [
        (c.id, c.function.name, c.function.arguments) for c in streamed.message.tool_calls or ()
    ]
    assert whole.finish_reason == streamed.finish_reason == "tool_calls"


@pytest.mark.parametrize("seed", range(3))
def test_auto_is_text_or_calls(client: openai.OpenAI, name: str, seed: int) -> None:
    answer = client.chat.completions.create(
        model=name, messages=QUESTION, tools=TOOLS, seed=seed, max_tokens=60, n=2
    )
    for choice in answer.choices:
        assert "<tool_call>" not in (choice.message.content or "")
        for call in choice.message.tool_calls or ():
            assert call.type == "function"
            assert call.function.name in ("get_weather", "get_time")


def test_a_result_is_answered(client: openai.OpenAI, name: str) -> None:
    called = client.chat.completions.create(
        model=name, messages=QUESTION, tools=TOOLS, tool_choice=WEATHER_ONLY, seed=1, max_tokens=120
    ).choices[0]
    (call,) = called.message.tool_calls or []
    history = [
        *QUESTION,
        called.message,
        {"role": "tool", "tool_call_id": call.id, "content": "17 degrees and rain"},
    ]
    answer = client.chat.completions.create(
        model=name, messages=history, tools=TOOLS, tool_choice="none", seed=1, max_tokens=30
    )
    assert answer.choices[0].message.content
    assert not answer.choices[0].message.tool_calls


def test_parse_gives_objects_of_the_class(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.parse(
        model=name,
        messages=[{"role": "user", "content": "Which city is the capital of Kenya?"}],
        response_format=City,
        seed=2,
        max_tokens=100,
    )
    assert isinstance(answer.choices[0].message.parsed, City)
    called = client.chat.completions.parse(
        model=name,
        messages=QUESTION,
        tools=[openai.pydantic_function_tool(GetWeather)],
        tool_choice={"type": "function", "function": {"name": "GetWeather"}},
        seed=2,
        max_tokens=120,
    )
    (call,) = called.choices[0].message.tool_calls or []
    assert isinstance(call.function.parsed_arguments, GetWeather)


def test_a_stream_that_is_parsed(client: openai.OpenAI, name: str) -> None:
    with client.chat.completions.stream(
        model=name,
        messages=[{"role": "user", "content": "Tell me of Lima."}],
        response_format=City,
        seed=4,
        max_tokens=100,
    ) as stream:
        kinds = {event.type for event in stream}
        final = stream.get_final_completion()
    assert isinstance(final.choices[0].message.parsed, City)
    assert "content.delta" in kinds


@pytest.mark.parametrize(
    ("outputs", "fits"),
    [
        ({"regex": "[a-c]{3}-[0-9]{2}"}, lambda t: len(t) == 6 and t[3] == "-"),
        ({"choice": ["sunny", "rainy day"]}, lambda t: t in ("sunny", "rainy day")),
        ({"grammar": 'start: "a"{2,4} "b"'}, lambda t: t in ("aab", "aaab", "aaaab")),
        ({"json": {"type": "array", "items": {"type": "boolean"}, "maxItems": 3}}, json.loads),
    ],
)
def test_structured_outputs(client: openai.OpenAI, name: str, outputs: dict[str, Any], fits: Any) -> None:
    answer = client.chat.completions.create(
        model=name,
        messages=QUESTION,
        seed=1,
        n=3,
        max_tokens=60,
        logprobs=True,
        extra_body={"structured_outputs": outputs},
    )
    for choice in answer.choices:
        assert choice.finish_reason == "stop"
        assert fits(choice.message.content) is not False


def test_what_cannot_be_enforced_names_the_field(client: openai.OpenAI, name: str) -> None:
    schema = {"type": "object", "properties": {"a": {"$ref": "#/$defs/missing"}}}
    with pytest.raises(openai.BadRequestError) as wrong:
        client.chat.completions.create(
            model=name,
            messages=QUESTION,
            response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}},
        )
    assert wrong.value.param == "response_format"
    function: Any = {"type": "function", "function": {"name": "f", "parameters": schema}}
    with pytest.raises(openai.BadRequestError) as tool:
        client.chat.completions.create(
            model=name, messages=QUESTION, tools=[TOOLS[0], function], tool_choice="required"
        )
    assert tool.value.param == "tools[1].function.parameters"
    with pytest.raises(openai.BadRequestError) as unclosed:
        client.chat.completions.create(
            model=name, messages=QUESTION, extra_body={"structured_outputs": {"regex": "(a"}}
        )
    assert unclosed.value.param == "structured_outputs.regex"


def test_log_probabilities_of_prompts_and_echoes(client: openai.OpenAI, name: str) -> None:
    answer = client.chat.completions.create(
        model=name, messages=QUESTION, max_tokens=2, seed=1, extra_body={"prompt_logprobs": 1}
    )
    entries = answer.model_extra["prompt_logprobs"]
    assert answer.usage is not None
    assert len(entries) == answer.usage.prompt_tokens
    assert entries[0] is None
    text = client.completions.create(
        model=name, prompt="The sky is blue", max_tokens=1, echo=True, logprobs=1, seed=1
    ).choices[0]
    assert text.logprobs is not None
    assert text.logprobs.token_logprobs is not None
    assert text.logprobs.token_logprobs[0] is None
    assert all(value < 0 for value in text.logprobs.token_logprobs[1:])
    assert text.text.startswith("The sky is blue")
    assert "".join(text.logprobs.tokens or ()) == text.text


def test_a_message_goes_on(client: openai.OpenAI, name: str) -> None:
    messages: Any = [*QUESTION, {"role": "assistant", "content": "The weather in Paris is"}]
    options: Any = {"model": name, "messages": messages, "temperature": 0, "max_tokens": 8}
    open_end = client.chat.completions.create(
        **options, extra_body={"continue_final_message": True, "return_token_ids": True}
    )
    closed = client.chat.completions.create(
        **options, extra_body={"add_generation_prompt": False, "return_token_ids": True}
    )
    ids, all_ids = open_end.model_extra["prompt_token_ids"], closed.model_extra["prompt_token_ids"]
    assert all_ids[: len(ids)] == ids
    assert len(all_ids) > len(ids)


# --- LangChain ---------------------------------------------------------------------------------------------


@pytest.fixture
def langchain(url: str, name: str) -> Any:
    module = pytest.importorskip("langchain_openai")
    return module.ChatOpenAI(
        model=name, base_url=url, api_key="none", max_retries=0, seed=7, temperature=0.7, max_tokens=100
    )


def test_langchain_invokes_and_streams(langchain: Any) -> None:
    whole = langchain.invoke("Name a colour.")
    pieces = list(langchain.stream("Name a colour."))
    assert "".join(piece.content for piece in pieces) == whole.content
    assert whole.content
    assert whole.usage_metadata["output_token_details"]["reasoning"] == 0


def test_langchain_binds_tools(langchain: Any) -> None:
    bound = langchain.bind_tools([GetWeather], tool_choice="GetWeather")
    (call,) = bound.invoke("What is the weather in Paris?").tool_calls
    assert call["name"] == "GetWeather"
    GetWeather.model_validate(call["args"])
    gathered = None
    for piece in bound.stream("What is the weather in Paris?"):
        gathered = piece if gathered is None else gathered + piece
    assert gathered is not None
    assert [c["args"] for c in gathered.tool_calls] == [call["args"]]
    required = langchain.bind_tools([GetWeather], tool_choice="required", parallel_tool_calls=False)
    assert len(required.invoke("What is the weather in Rome?").tool_calls) == 1


@pytest.mark.parametrize("method", ["json_schema", "function_calling"])
def test_langchain_gives_structured_output(langchain: Any, method: str) -> None:
    asked = langchain.with_structured_output(City, method=method)
    assert isinstance(asked.invoke("Tell me of Nairobi."), City)


# --- llm ---------------------------------------------------------------------------------------------------


@pytest.fixture
def llm_environment(url: str, name: str, tmp_path: Path) -> dict[str, str]:
    pytest.importorskip("llm")
    (tmp_path / "extra-openai-models.yaml").write_text(
        f"- model_id: stoker\n  model_name: {name}\n  api_base: {url}\n"
        "  supports_tools: true\n  supports_schema: true\n"
    )
    return {**os.environ, "LLM_USER_PATH": str(tmp_path), "OPENAI_API_KEY": "none"}


def _llm(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "llm",
            *arguments,
            "-m",
            "stoker",
            "-o",
            "seed",
            "3",
            "-o",
            "max_tokens",
            "60",
        ],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        stdin=subprocess.DEVNULL,
        env=environment,
    )


def test_llm_answers_streamed_and_whole(llm_environment: dict[str, str]) -> None:
    streamed = _llm(llm_environment, "Name a colour.")
    assert streamed.returncode == 0, streamed.stderr
    whole = _llm(llm_environment, "Name a colour.", "--no-stream")
    assert whole.stdout == streamed.stdout != "\n"


def test_llm_takes_a_schema(llm_environment: dict[str, str]) -> None:
    schema = json.dumps(City.model_json_schema())
    shown = _llm(llm_environment, "Tell me of Cairo.", "--schema", schema)
    assert shown.returncode == 0, shown.stderr
    City.model_validate_json(shown.stdout)


def test_llm_offers_tools(llm_environment: dict[str, str]) -> None:
    function = "def get_weather(city: str) -> str:\n    return 'rain in ' + city\n"
    shown = _llm(
        llm_environment, "What is the weather in Paris?", "--functions", function, "--chain-limit", "2"
    )
    assert shown.returncode in (0, 1), shown.stderr  # 1: it called again and again, up to the limit
    assert "Traceback" not in shown.stderr
    assert shown.stdout.strip() or "limit" in shown.stderr
