"""The official Anthropic SDK against the server: messages, streams, tools, errors, timeouts, leaving."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import anthropic
import httpx
import pydantic
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fake_host import FakeHost, FakeModel
from tests.integration.test_server_command import _serving
from tests.messages_trace import read_trace
from tests.served import Served, serve

from stoker.api.errors import CapacityError, EngineError, QueueFullError, UnavailableError
from stoker.server.options import ServerOptions

USER: Any = [{"role": "user", "content": "hi"}]
ANSWER = "Grüße, 世界! 🚂 Answer 5."
TEMPLATE = "tools <tool_call> <think> </think> enable_thinking add_generation_prompt"
WEATHER: Any = {
    "name": "weather",
    "description": "The weather of a city",
    "input_schema": {
        "type": "object",
        "properties": {"city": {"type": "string", "maxLength": 20}},
        "required": ["city"],
        "additionalProperties": False,
    },
}


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(FakeHost(FakeModel(cached_tokens=2), FakeModel("thinker", chat_template=TEMPLATE))) as running:
        yield running


def _client(url: str, **options: Any) -> anthropic.Anthropic:
    return anthropic.Anthropic(base_url=url, **{"api_key": "none", "max_retries": 0, **options})


@pytest.fixture
def client(served: Served) -> Iterator[anthropic.Anthropic]:
    with _client(served.url) as made:
        yield made


def _ask(client: anthropic.Anthropic, **fields: Any) -> Any:
    given: dict[str, Any] = {"model": "fake", "max_tokens": 100, "messages": USER}
    return client.messages.create(**(given | fields))


def test_a_whole_message(client: anthropic.Anthropic) -> None:
    message = _ask(client, extra_body={"seed": 5})
    assert message.content[0].text == ANSWER
    assert (message.stop_reason, message.stop_sequence, message.role) == ("end_turn", None, "assistant")
    assert (message.usage.input_tokens, message.usage.cache_read_input_tokens) == (17, 2)
    assert message.usage.output_tokens_details.thinking_tokens == 0
    assert message._request_id
    assert message.seed == 5
    again = _ask(client, messages=[*USER, message.to_param(), {"role": "user", "content": "go on"}])
    assert again.stop_reason == "end_turn"


def test_streams_in_both_faces_of_the_sdk(client: anthropic.Anthropic) -> None:
    text = ""
    for event in _ask(client, stream=True, extra_body={"seed": 5}):
        if event.type == "content_block_delta":
            text += event.delta.text
    assert text == ANSWER
    with client.messages.stream(
        model="fake", max_tokens=100, messages=USER, extra_body={"seed": 5}
    ) as stream:
        assert "".join(stream.text_stream) == ANSWER
        final = stream.get_final_message()
    assert final.content[0].text == ANSWER
    assert (final.stop_reason, final.usage.input_tokens) == ("end_turn", 17)
    assert final.usage.cache_read_input_tokens == 2


def test_thoughts_through_the_sdk(served: Served, client: anthropic.Anthropic) -> None:
    served.host.models["thinker"].answer = lambda request, seed: "<think>\nHm, ü.\n</think>\n\nFour."
    options: Any = {"model": "thinker", "max_tokens": 5000, "messages": USER}
    whole = client.messages.create(**options, thinking={"type": "enabled", "budget_tokens": 1024})
    thoughts, text = whole.content
    assert (thoughts.type, thoughts.thinking, text.text) == ("thinking", "Hm, ü.", "Four.")
    seen = []
    with client.messages.stream(**options) as stream:
        for event in stream:
            if event.type == "thinking":
                seen.append(event.thinking)
        final = stream.get_final_message()
    assert [final.content[0], final.content[1].text] == [thoughts, text.text]
    assert "".join(seen) == "Hm, ü."
    again = [*USER, whole.to_param(), {"role": "user", "content": "why?"}]
    assert client.messages.create(**(options | {"messages": again})).content[1].text == "Four."


def test_tools_there_and_back(served: Served, client: anthropic.Anthropic) -> None:
    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
    model = served.host.models["thinker"]

    def answer(request: Any, seed: int) -> str:
        return "It rains in Köln." if b"rain" in bytes(request.prompt) else call

    model.answer = answer
    options: Any = {"model": "thinker", "max_tokens": 500, "tools": [WEATHER]}
    first = client.messages.create(**options, messages=USER, tool_choice={"type": "any"})
    (block,) = first.content
    assert (first.stop_reason, block.type, block.name) == ("tool_use", "tool_use", "weather")
    assert block.input == {"city": "Köln"}
    result = {"type": "tool_result", "tool_use_id": block.id, "content": "rain"}
    turns = [*USER, first.to_param(), {"role": "user", "content": [result]}]
    second = client.messages.create(**options, messages=turns)
    assert (second.content[0].text, second.stop_reason) == ("It rains in Köln.", "end_turn")
    with client.messages.stream(**options, messages=USER) as stream:
        pieces = [event.partial_json for event in stream if event.type == "input_json"]
        final = stream.get_final_message()
    assert json.loads("".join(pieces)) == final.content[0].input == {"city": "Köln"}
    assert len(pieces) > 1


def test_the_tool_runner_of_the_sdk(served: Served, client: anthropic.Anthropic) -> None:
    asked: list[str] = []

    @anthropic.beta_tool
    def weather(city: str) -> str:
        """The weather.

        Args:
            city: where
        """
        asked.append(city)
        return "rain"

    call = '<tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>'
    served.host.models["thinker"].answer = lambda request, seed: (
        "Take an umbrella." if b"rain" in bytes(request.prompt) else call
    )
    runner = client.beta.messages.tool_runner(model="thinker", max_tokens=500, messages=USER, tools=[weather])
    assert runner.until_done().content[0].text == "Take an umbrella."
    assert asked == ["Ulm"]


def test_structured_output_is_parsed(served: Served, client: anthropic.Anthropic) -> None:
    class City(pydantic.BaseModel):
        name: str
        people: int

    said = '{"name": "Ulm", "people": 130000}'
    served.host.models["thinker"].answer = lambda request, seed: said
    parsed = client.messages.parse(model="thinker", max_tokens=99, messages=USER, output_format=City)
    assert parsed.parsed_output == City(name="Ulm", people=130000)
    constraint = served.host.models["thinker"].requests[-1].sampling.constraint
    assert constraint is not None
    assert set(json.loads(constraint.text)["properties"]) == {"name", "people"}


def test_tokens_are_counted(client: anthropic.Anthropic) -> None:
    counted = client.messages.count_tokens(model="fake", messages=USER, system="Be brief.")
    usage = _ask(client, system="Be brief.").usage
    assert counted.input_tokens == usage.input_tokens + usage.cache_read_input_tokens


def test_async_streams_side_by_side(served: Served) -> None:
    async def one(client: anthropic.AsyncAnthropic, seed: int) -> str:
        async with client.messages.stream(
            model="fake", max_tokens=100, messages=USER, extra_body={"seed": seed}
        ) as stream:
            return "".join([text async for text in stream.text_stream])

    async def main() -> list[str]:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="none") as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(20)))

    assert asyncio.run(main()) == [f"Grüße, 世界! 🚂 Answer {seed}." for seed in range(20)]


def test_errors_are_the_sdks_own(client: anthropic.Anthropic) -> None:
    with pytest.raises(anthropic.BadRequestError) as bad:
        _ask(client, extra_body={"temperature": -1})
    assert bad.value.type == "invalid_request_error"
    assert bad.value.request_id
    assert "temperature" in str(bad.value.api_message)
    with pytest.raises(anthropic.NotFoundError, match="known: fake"):
        _ask(client, model="claude-of-elsewhere")
    with pytest.raises(anthropic.BadRequestError, match="web_search"):
        _ask(client, tools=[{"type": "web_search_20250305", "name": "web_search"}])
    image = {"type": "image", "source": {"type": "url", "url": "http://localhost/x.png"}}
    with pytest.raises(anthropic.BadRequestError, match="pictures"):
        _ask(client, messages=[{"role": "user", "content": [image]}])


def test_keys_in_both_headers() -> None:
    with serve(FakeHost(), ServerOptions(api_keys=("right",))) as served:
        with pytest.raises(anthropic.AuthenticationError):
            _ask(_client(served.url))
        assert _ask(_client(served.url, api_key="right")).role == "assistant"
        assert _ask(_client(served.url, api_key=None, auth_token="right")).role == "assistant"


@pytest.mark.parametrize(
    ("error", "raised", "retried"),
    [
        (QueueFullError("full"), anthropic.RateLimitError, True),
        (CapacityError("no room"), anthropic.InternalServerError, True),
        (UnavailableError("down"), anthropic.InternalServerError, True),
        (EngineError("broken"), anthropic.InternalServerError, True),
    ],
)
def test_retries_of_the_sdk(error: Exception, raised: type[Exception], retried: bool) -> None:
    host = FakeHost(FakeModel(error=error))
    with serve(host) as served:
        with pytest.raises(raised):
            _ask(_client(served.url, max_retries=1))
        assert len(host.model.requests) == 1 + retried


def test_an_error_in_a_stream_is_raised() -> None:
    with serve(FakeHost(FakeModel(error_after=(3, UnavailableError("the engine is gone"))))) as served:
        seen = ""
        with pytest.raises(anthropic.APIStatusError, match="the engine is gone"):  # noqa: PT012
            for event in _ask(_client(served.url), stream=True):
                if event.type == "content_block_delta":
                    seen += event.delta.text
        assert seen == "Gr"


def _wait_until_idle(host: FakeHost) -> None:
    end = time.monotonic() + 3
    while host.model.open:
        assert time.monotonic() < end, "a request was not aborted"
        time.sleep(0.01)


def test_a_timeout_aborts() -> None:
    host = FakeHost(FakeModel(first_delay_s=20))
    with serve(host) as served:
        with pytest.raises(anthropic.APITimeoutError):
            _ask(_client(served.url, timeout=0.4))
        _wait_until_idle(host)
        assert len(host.model.aborted) == 1


def test_leaving_a_stream_aborts() -> None:
    host = FakeHost(FakeModel(token_delay_s=0.02, answer=lambda r, s: "x" * 1000))
    with serve(host) as served:
        stream = _ask(_client(served.url), stream=True, max_tokens=1000)
        for event in stream:
            if event.type == "content_block_delta":
                break
        stream.close()
        _wait_until_idle(host)
        assert len(host.model.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_task_aborts(stream: bool) -> None:
    host = FakeHost(FakeModel(token_delay_s=0.02, answer=lambda r, s: "x" * 1000))

    async def main(served: Served) -> None:
        async with anthropic.AsyncAnthropic(base_url=served.url, api_key="none", max_retries=0) as client:

            async def ask() -> None:
                answer: Any = await client.messages.create(
                    model="fake", max_tokens=1000, messages=USER, stream=stream
                )
                async for _ in answer:
                    continue

            task = asyncio.create_task(ask())
            while not host.model.open:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    with serve(host) as served:
        asyncio.run(main(served))
        _wait_until_idle(host)
        assert len(host.model.aborted) == 1


# What a model may say: texts, thoughts and calls in any order, whole or cut anywhere.
PIECES = st.lists(
    st.text(max_size=12)
    | st.sampled_from(["<think>", "</think>", "<tool_call>", "</tool_call>", "\n", "{", "}", '"'])
    | st.builds(
        lambda city: (
            "<tool_call>\n"
            + json.dumps({"name": "weather", "arguments": {"city": city}}, ensure_ascii=False)
            + "\n</tool_call>"
        ),
        st.text(max_size=6),
    ),
    max_size=6,
).map("".join)


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    said=PIECES,
    max_tokens=st.integers(0, 80),
    tools=st.booleans(),
    display=st.sampled_from([None, "summarized", "omitted"]),
)
def test_a_stream_is_the_whole_message_in_pieces(
    served: Served, said: str, max_tokens: int, tools: bool, display: str | None
) -> None:
    """Blocks nest, deltas together are the whole, one reason to stop, nothing after message_stop."""
    served.host.models["thinker"].answer = lambda request, seed: said
    fields: dict[str, Any] = {
        "model": "thinker",
        "max_tokens": max_tokens,
        "messages": USER,
        "seed": 3,
        "tools": [WEATHER] if tools else [],
        "thinking": {"type": "adaptive", "display": display},
    }
    whole = served.post("/v1/messages", fields).json()
    trace = read_trace(served.post("/v1/messages", fields | {"stream": True}).text)
    inputs = [block.pop("partial_json", None) for block in trace.message["content"]]
    for streamed, block, given_input in zip(trace.message["content"], whole["content"], inputs, strict=True):
        assert streamed.get("id", "") == "" or streamed.pop("id") != block.pop("id")  # a new one each time
        if given_input is not None and whole["stop_reason"] != "max_tokens":
            streamed["input"] = json.loads(given_input)
        if block["type"] == "tool_use" and whole["stop_reason"] == "max_tokens":
            continue
        assert streamed == block
    for name in ("stop_reason", "stop_sequence", "usage", "seed"):
        assert trace.message[name] == whole[name]


@pytest.mark.model
def test_a_real_model(smollm2_path: Path) -> None:
    """Messages, streams, calls and counts of SmolLM2 behind `stoker serve`."""
    with _serving(smollm2_path) as (url, _), _client(url) as client:
        options: Any = {"model": smollm2_path.stem, "max_tokens": 24, "extra_body": {"seed": 11}}
        asked: Any = [{"role": "user", "content": "Name three uses of coal."}]
        whole = client.messages.create(**options, messages=asked, system="Be brief.")
        assert whole.content[0].text
        assert whole.stop_reason in ("end_turn", "max_tokens")
        with client.messages.stream(**options, messages=asked, system="Be brief.") as stream:
            assert "".join(stream.text_stream) == whole.content[0].text
            final = stream.get_final_message()
        assert final.stop_reason == whole.stop_reason
        # The prompt of the second request was in the cache.
        assert final.usage.cache_read_input_tokens > 0
        counted = client.messages.count_tokens(model=smollm2_path.stem, messages=asked, system="Be brief.")
        for usage in (whole.usage, final.usage):
            assert counted.input_tokens == usage.input_tokens + (usage.cache_read_input_tokens or 0)
        open_turn = [*asked, {"role": "assistant", "content": whole.content[0].text[:20].rstrip()}]
        assert client.messages.create(**options, messages=open_turn).content[0].text
        stopped = client.messages.create(**options, messages=asked, stop_sequences=["e"])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "e")
        assert "e" not in "".join(block.text for block in stopped.content)
        with pytest.raises(anthropic.BadRequestError, match="tokens"):
            client.messages.create(**options, messages=[{"role": "user", "content": "a " * 20_000}])


def _told(message: dict[str, Any]) -> list[Any]:
    """The content, of calls what they call and with what."""
    told = []
    for block in message["content"]:
        if "partial_json" in block and message["stop_reason"] != "max_tokens":
            block = {**block, "input": json.loads(block["partial_json"])}
        told.append((block["type"], block.get("text"), block.get("name"), block.get("input")))
    return told


@pytest.mark.model
def test_a_real_model_calls_tools(smollm2_path: Path) -> None:
    """What it calls with is valid, streamed as well as whole; a format is kept."""
    with _serving(smollm2_path) as (url, _), _client(url) as client:
        options: Any = {"model": smollm2_path.stem, "max_tokens": 120, "tools": [WEATHER]}
        asked: Any = [{"role": "user", "content": "How is the weather in Paris?"}]
        for seed in range(2):
            extra = {"extra_body": {"seed": seed}, "tool_choice": {"type": "tool", "name": "weather"}}
            first = client.messages.create(**options, **extra, messages=asked)
            (call,) = first.content
            assert (first.stop_reason, call.name, list(call.input)) == ("tool_use", "weather", ["city"])
            with client.messages.stream(**options, **extra, messages=asked) as stream:
                assert stream.get_final_message().content[0].input == call.input
            result = {"type": "tool_result", "tool_use_id": call.id, "content": "It rains."}
            turns = [*asked, first.to_param(), {"role": "user", "content": [result]}]
            second = client.messages.create(
                **options, messages=turns, tool_choice={"type": "none"}, extra_body={"seed": seed}
            )
            assert second.content[0].text
        for seed in range(2):
            fields = {
                **options,
                "max_tokens": 60,
                "messages": asked,
                "seed": seed,
                "tool_choice": {"type": "auto"},
            }
            whole = httpx.post(url + "/v1/messages", json=fields, timeout=60).json()
            streamed = httpx.post(url + "/v1/messages", json={**fields, "stream": True}, timeout=60)
            trace = read_trace(streamed.text)
            assert _told(trace.message) == _told(whole)
            assert trace.message["stop_reason"] == whole["stop_reason"]
            fields["tool_choice"] = {"type": "any", "disable_parallel_tool_use": True}
            single = httpx.post(url + "/v1/messages", json=fields, timeout=60).json()
            assert [block["type"] for block in single["content"]] == ["tool_use"]
        schema = {
            "type": "object",
            "properties": {"sunny": {"type": "boolean"}},
            "required": ["sunny"],
            "additionalProperties": False,
        }
        kept = client.messages.create(
            model=smollm2_path.stem,
            max_tokens=60,
            messages=asked,
            output_config={"format": {"type": "json_schema", "schema": schema}},
        )
        assert isinstance(json.loads(kept.content[0].text)["sunny"], bool)
