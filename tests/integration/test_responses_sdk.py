"""The official OpenAI SDK on /v1/responses: created, streamed, parsed, stored; a real model behind it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import openai
import pydantic
import pytest
from openai.types.responses import Response, ResponseItem, ResponseStreamEvent
from tests.fake_host import THINKING_TEMPLATE, TOOL_TEMPLATE, FakeHost, FakeModel
from tests.integration.test_server_command import _serving
from tests.postgresql import cluster
from tests.response_traces import check_trace
from tests.served import Served, serve

from stoker.api.errors import QueueFullError
from stoker.state import StateSource, locate_state

ANSWER = "Grüße, 世界! 🚂 Answer 5."
CALL = '<tool_call>\n{"name": "Weather", "arguments": {"city": "Köln"}}\n</tool_call>'
EVENT: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseStreamEvent)
ITEM: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(ResponseItem)


class Weather(pydantic.BaseModel):
    """Look up the weather."""

    city: str


class Person(pydantic.BaseModel):
    """Somebody."""

    name: str
    kind: Literal["cat", "dog"]


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    models = (
        FakeModel(cached_tokens=2),
        FakeModel("caller", chat_template=TOOL_TEMPLATE, answer=lambda request, seed: CALL),
        FakeModel(
            "thinker", chat_template=THINKING_TEMPLATE, answer=lambda r, s: "<think>\nhm\n</think>\n\nSo."
        ),
        FakeModel("json", answer=lambda request, seed: '{"name": "Tom", "kind": "cat"}'),
        FakeModel("slow", token_delay_s=0.03),
    )
    location = locate_state(str(tmp_path_factory.mktemp("state") / "state.db"))
    assert location is not None
    with serve(FakeHost(*models), state=StateSource(location)) as running:
        yield running


def _client(url: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=url + "/v1", api_key="none", max_retries=0, timeout=60)


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with _client(served.url) as made:
        yield made


def _typed(response: Any) -> Any:
    """A response that has every field its official type needs, of the right type."""
    Response.model_validate(response.model_dump(mode="json", warnings=False))
    return response


def _until(true: Callable[[], Any], seconds: float = 60.0) -> Any:
    end = time.monotonic() + seconds
    while not (found := true()):
        assert time.monotonic() < end, "it did not come true"
        time.sleep(0.02)
    return found


def test_created(client: openai.OpenAI) -> None:
    response = _typed(client.responses.create(model="fake", input="hi", extra_body={"seed": 5}))
    assert response.output_text == ANSWER
    assert response.usage.input_tokens_details.cached_tokens == 2
    assert response._request_id
    again = client.responses.create(model="fake", input=response.output, instructions="Rules.")
    assert again.status == "completed", "what was answered is an input as it is"


@pytest.mark.parametrize("model", ["fake", "caller", "thinker"])
def test_every_event_is_of_its_official_type(client: openai.OpenAI, model: str) -> None:
    options: dict[str, Any] = {"model": model, "input": "hi", "top_logprobs": 1}
    if model == "caller":
        options["tools"] = [openai.pydantic_function_tool(Weather)["function"] | {"type": "function"}]
    seen = []
    with client.responses.with_streaming_response.create(**options, stream=True) as raw:
        for line in raw.iter_lines():
            if line.startswith("data: "):
                seen.append(json.loads(line.removeprefix("data: ")))
    for event in seen:
        EVENT.validate_python(event)
    check_trace(seen)


def test_streamed(client: openai.OpenAI) -> None:
    with client.responses.stream(model="fake", input="hi", extra_body={"seed": 5}) as stream:
        pieces = [event.delta for event in stream if event.type == "response.output_text.delta"]
        final = stream.get_final_response()
    assert "".join(pieces) == final.output_text == ANSWER
    plain = client.responses.create(model="fake", input="hi", stream=True)
    kinds = [event.type for event in plain]
    assert (kinds[0], kinds[-1]) == ("response.created", "response.completed")


def test_parsed(client: openai.OpenAI) -> None:
    response = client.responses.parse(model="json", input="hi", text_format=Person)
    assert response.output_parsed == Person(name="Tom", kind="cat")
    with client.responses.stream(model="json", input="hi", text_format=Person) as stream:
        stream.until_done()
        assert stream.get_final_response().output_parsed == Person(name="Tom", kind="cat")


def test_tools(served: Served, client: openai.OpenAI) -> None:
    tool: Any = {**openai.pydantic_function_tool(Weather)["function"], "type": "function"}
    response = client.responses.parse(model="caller", input="hi", tools=[tool])
    [call] = response.output
    assert call.type == "function_call"
    assert call.parsed_arguments == {"city": "Köln"} or call.parsed_arguments == Weather(city="Köln")
    result: Any = {"type": "function_call_output", "call_id": call.call_id, "output": "dry"}
    client.responses.create(model="caller", input=[result], previous_response_id=response.id, tools=[tool])
    assert [m.role for m in served.host.models["caller"].requests[-1].prompt.messages] == [
        "user",
        "assistant",
        "tool",
    ]


def test_stored(client: openai.OpenAI) -> None:
    first = client.responses.create(model="fake", input="one", metadata={"k": "v"})
    assert client.responses.retrieve(first.id).to_dict() == first.to_dict()
    items = [{"role": "user", "content": str(i)} for i in range(5)]
    second = client.responses.create(model="fake", input=items, previous_response_id=first.id)  # type: ignore[arg-type]
    listed = list(client.responses.input_items.list(second.id, limit=2, order="asc"))
    assert [item.content[0].text for item in listed] == ["0", "1", "2", "3", "4"]  # type: ignore[union-attr]
    for item in listed:
        ITEM.validate_python(item.model_dump(mode="json", warnings=False))
    counted = client.responses.input_tokens.count(model="fake", input="x")
    assert counted.input_tokens == len("<user>x<assistant>")
    client.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        client.responses.retrieve(first.id)
    with pytest.raises(openai.BadRequestError, match="was deleted"):
        client.responses.create(model="fake", input="x", previous_response_id=second.id)


def test_in_the_background(client: openai.OpenAI) -> None:
    begun = _typed(client.responses.create(model="slow", input="hi", background=True))
    assert begun.status == "queued"
    with client.responses.stream(response_id=begun.id) as stream:
        text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert stream.get_final_response().output_text == text
    done = _typed(client.responses.retrieve(begun.id))
    assert (done.status, done.output_text) == ("completed", text)
    with client.responses.stream(response_id=begun.id, starting_after=6) as rest:
        assert next(iter(rest)).sequence_number == 7
    other = client.responses.create(model="slow", input="hi", background=True)
    assert _typed(client.responses.cancel(other.id)).status == "cancelled"
    assert client.responses.retrieve(other.id).status == "cancelled"


def test_errors_are_the_sdks(served: Served, client: openai.OpenAI) -> None:
    with pytest.raises(openai.BadRequestError, match="web_search") as refused:
        client.responses.create(model="fake", input="hi", tools=[{"type": "web_search"}])
    assert refused.value.param == "tools[0].type"
    with pytest.raises(openai.NotFoundError, match="known: fake"):
        client.responses.create(model="nobody", input="hi")
    model = served.host.model
    model.error = QueueFullError("full")
    try:
        with pytest.raises(openai.RateLimitError):
            client.responses.create(model="fake", input="hi")
    finally:
        model.error = None


def test_many_at_once(served: Served) -> None:
    async def ask(client: openai.AsyncOpenAI, number: int) -> str:
        async with client.responses.stream(model="fake", input="hi", extra_body={"seed": number}) as stream:
            return (await stream.get_final_response()).output_text

    async def run() -> list[str]:
        async with openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none") as client:
            return await asyncio.gather(*(ask(client, number) for number in range(20)))

    assert asyncio.run(run()) == [f"Grüße, 世界! 🚂 Answer {number}." for number in range(20)]


def test_stored_chats(client: openai.OpenAI) -> None:
    chats = client.chat.completions
    messages: Any = [{"role": "user", "content": "hi"}]
    made = [
        chats.create(model="fake", messages=messages, store=True, metadata={"n": str(n)}).id for n in range(3)
    ]
    assert [answer.id for answer in chats.list(limit=2)] == made
    assert [answer.id for answer in chats.list(metadata={"n": "1"})] == [made[1]]
    assert chats.update(made[0], metadata={"x": "y"}).metadata == {"x": "y"}
    assert [message.content for message in chats.messages.list(made[0])] == ["hi"]
    assert chats.delete(made[0]).deleted
    with pytest.raises(openai.NotFoundError):
        chats.retrieve(made[0])


def test_a_postgresql_that_goes_away_and_comes_back(tmp_path: Path) -> None:
    with cluster() as database:
        location = locate_state(database.url, folder=tmp_path)
        assert location is not None
        model = FakeModel()
        with serve(FakeHost(model), state=StateSource(location)) as served, _client(served.url) as client:
            first = client.responses.create(model="fake", input="one")
            model.token_delay_s = 0.02
            stream = client.responses.create(model="fake", input="two", stream=True)
            begun = next(iter(stream))
            assert begun.type == "response.created"
            database.stop()
            events = list(stream)
            assert events[-1].type == "response.completed", "an answer that is there is given"
            model.token_delay_s = 0.0
            with pytest.raises(openai.InternalServerError) as refused:
                client.responses.create(model="fake", input="three")
            assert refused.value.status_code == 503
            assert client.responses.create(model="fake", input="three", store=False).status == "completed"
            assert client.responses.retrieve(begun.response.id).status == "completed"
            database.start()
            _until(lambda: not len(served.service.unwritten))
            last = client.responses.create(model="fake", input="four", previous_response_id=begun.response.id)
            assert client.responses.retrieve(first.id).output_text == first.output_text
        assert database.sql("SELECT count(*) FROM responses").strip() == "3"
        with serve(FakeHost(), state=StateSource(location)) as served, _client(served.url) as client:
            assert client.responses.retrieve(last.id).output_text == last.output_text


# --- a real model ----------------------------------------------------------------------------------


@pytest.mark.model
def test_a_real_model(smollm2_path: Path, tmp_path: Path) -> None:
    state = ("--state", str(tmp_path / "state.db"))
    with _serving(smollm2_path, *state) as (url, process), _client(url) as client:
        name = smollm2_path.stem
        asked: dict[str, Any] = {"model": name, "temperature": 0, "max_output_tokens": 24}
        whole = _typed(client.responses.create(input="Name three uses of coal.", **asked))
        with client.responses.stream(input="Name three uses of coal.", **asked) as stream:
            seen = list(stream)
        assert "".join(e.delta for e in seen if e.type == "response.output_text.delta") == whole.output_text
        # Going on is what sending everything is.
        going_on = client.responses.create(input="And one more?", previous_response_id=whole.id, **asked)
        items: Any = [
            {"role": "user", "content": "Name three uses of coal."},
            {"role": "assistant", "content": whole.output_text},
            {"role": "user", "content": "And one more?"},
        ]
        assert client.responses.create(input=items, **asked).output_text == going_on.output_text
        person = client.responses.parse(
            model=name,
            input="Invent a pet.",
            text_format=Person,
            max_output_tokens=60,
            extra_body={"seed": 1},
        )
        if person.status == "completed":
            assert isinstance(person.output_parsed, Person)
        tool: Any = {**openai.pydantic_function_tool(Weather)["function"], "type": "function"}
        called = client.responses.create(
            model=name,
            input="How is the weather in Paris?",
            tools=[tool],
            tool_choice="required",
            parallel_tool_calls=False,
            max_output_tokens=80,
            temperature=0,
        )
        [call] = [item for item in called.output if item.type == "function_call"]
        assert call.name == "Weather"
        if called.status == "completed":
            Weather.model_validate_json(call.arguments)
        long: dict[str, Any] = {
            "model": name,
            "input": "Tell me a long story about a lighthouse.",
            "max_output_tokens": 200,
            "extra_body": {"seed": 7},
        }
        expected = client.responses.create(**long).output_text
        begun = client.responses.create(**long, background=True)
        _until(lambda: client.responses.retrieve(begun.id).output)
        process.kill()  # in the middle of its answer
    with _serving(smollm2_path, *state) as (url, _), _client(url) as client:
        done = _until(
            lambda: (r := client.responses.retrieve(begun.id)).status not in ("queued", "in_progress") and r
        )
        assert done.output_text == expected
        with client.responses.stream(response_id=begun.id) as stream:
            text = "".join(event.delta for event in stream if event.type == "response.output_text.delta")
        assert text == expected
        assert client.responses.retrieve(whole.id).output_text == whole.output_text
