"""The official OpenAI SDK against the server: whole and streamed answers, errors, timeouts, leaving."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import openai
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, events_of, serve

from stoker.api.errors import QueueFullError, UnavailableError

GOLDEN = Path(__file__).parents[1] / "golden" / "server_streams.json"
USER: Any = [{"role": "user", "content": "hi"}]
ANSWER = "Grüße, 世界! 🚂 Answer 5."


@pytest.fixture(scope="module")
def served() -> Iterator[Served]:
    with serve(FakeHost(FakeModel(cached_tokens=2))) as running:
        yield running


@pytest.fixture
def client(served: Served) -> Iterator[openai.OpenAI]:
    with openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0) as made:
        yield made


def _async_client(served: Served, **options: Any) -> openai.AsyncOpenAI:
    return openai.AsyncOpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, **options)


GOLDEN_CALLS: dict[str, dict[str, Any]] = {
    "chat": {"messages": USER, "seed": 5, "max_tokens": 6},
    "chat_usage": {
        "messages": USER,
        "seed": 5,
        "max_tokens": 2,
        "stream_options": {"include_usage": True},
    },
    "chat_choices_logprobs": {
        "messages": USER,
        "seed": 5,
        "n": 2,
        "max_tokens": 2,
        "logprobs": True,
        "top_logprobs": 1,
    },
    "text": {"prompt": "ab", "seed": 5, "max_tokens": 3},
    "text_echo": {"prompt": "ab", "seed": 5, "max_tokens": 2, "echo": True},
    "text_logprobs": {"prompt": [97], "seed": 5, "max_tokens": 2, "logprobs": 2},
}


@pytest.mark.parametrize("name", GOLDEN_CALLS)
def test_the_trace_of_a_stream(client: openai.OpenAI, name: str) -> None:
    fields = GOLDEN_CALLS[name]
    create: Any = client.chat.completions.create if "messages" in fields else client.completions.create
    trace = []
    for chunk in create(model="fake", stream=True, **fields):
        seen = chunk.model_dump(mode="json", exclude_unset=True)
        assert seen.pop("id")
        assert abs(seen.pop("created") - time.time()) < 60
        trace.append(seen)
    assert trace == json.loads(GOLDEN.read_text(encoding="utf-8"))[name]


def test_a_whole_chat(client: openai.OpenAI) -> None:
    answer = client.chat.completions.create(model="fake", messages=USER, seed=5)
    assert answer.choices[0].message.content == ANSWER
    assert answer.choices[0].finish_reason == "stop"
    assert answer.usage is not None
    assert answer.usage.prompt_tokens_details is not None
    assert answer.usage.prompt_tokens_details.cached_tokens == 2
    assert answer._request_id


def test_a_whole_text_and_models(client: openai.OpenAI) -> None:
    answer = client.completions.create(model="fake", prompt="a", seed=5, max_tokens=50)
    assert answer.choices[0].text == ANSWER
    assert [model.id for model in client.models.list()] == ["fake"]
    assert client.models.retrieve("fake").owned_by == "stoker"


def test_the_streaming_face_of_the_sdk(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="fake", messages=USER, seed=5) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        final = stream.get_final_completion()
    assert text == final.choices[0].message.content == ANSWER


def test_async_streams_side_by_side(served: Served) -> None:
    async def one(client: openai.AsyncOpenAI, seed: int) -> str:
        stream = await client.chat.completions.create(model="fake", messages=USER, seed=seed, stream=True)
        return "".join([chunk.choices[0].delta.content or "" async for chunk in stream])

    async def main() -> list[str]:
        async with _async_client(served) as client:
            return await asyncio.gather(*(one(client, seed) for seed in range(20)))

    assert asyncio.run(main()) == [f"Grüße, 世界! 🚂 Answer {seed}." for seed in range(20)]


def test_errors_are_the_sdks_own(client: openai.OpenAI, served: Served) -> None:
    with pytest.raises(openai.BadRequestError) as bad:
        client.chat.completions.create(model="fake", messages=USER, temperature=-1)
    assert bad.value.param == "temperature"
    with pytest.raises(openai.NotFoundError) as missing:
        client.chat.completions.create(model="gpt-5", messages=USER)
    assert missing.value.code == "model_not_found"
    with pytest.raises(openai.BadRequestError, match=r"tools\[0\]\.function"):
        client.chat.completions.create(model="fake", messages=USER, tools=[{"type": "function"}])  # type: ignore


@pytest.mark.parametrize(
    ("error", "raised"),
    [(QueueFullError("full"), openai.RateLimitError), (UnavailableError("down"), openai.InternalServerError)],
)
def test_a_retry_of_the_sdk_waits_as_it_is_told(error: Exception, raised: type[Exception]) -> None:
    host = FakeHost(FakeModel(error=error))
    with serve(host) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=1)
        started = time.monotonic()
        with pytest.raises(raised):
            client.chat.completions.create(model="fake", messages=USER)
        assert len(host.model.requests) == 2
        assert time.monotonic() - started >= 0.9  # Retry-After: 1


def test_an_error_in_a_stream_is_raised() -> None:
    with serve(FakeHost(FakeModel(error_after=(3, UnavailableError("the engine is gone"))))) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
        stream = client.completions.create(model="fake", prompt="a", stream=True)
        assert next(stream).choices[0].text == "G"
        assert next(stream).choices[0].text == "r"
        with pytest.raises(openai.APIError, match="the engine is gone"):
            next(stream)


def _wait_until_idle(host: FakeHost) -> None:
    end = time.monotonic() + 3
    while host.model.open:
        assert time.monotonic() < end, "a request was not aborted"
        time.sleep(0.01)


def test_a_timeout_aborts() -> None:
    host = FakeHost(FakeModel(first_delay_s=20))
    with serve(host) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0, timeout=0.4)
        with pytest.raises(openai.APITimeoutError):
            client.chat.completions.create(model="fake", messages=USER)
        _wait_until_idle(host)
        assert len(host.model.aborted) == 1


def test_leaving_a_stream_aborts() -> None:
    host = FakeHost(FakeModel(token_delay_s=0.02, answer=lambda r, s: "x" * 1000))
    with serve(host) as served:
        client = openai.OpenAI(base_url=served.url + "/v1", api_key="none", max_retries=0)
        stream = client.chat.completions.create(model="fake", messages=USER, stream=True)
        for number, _ in enumerate(stream):
            if number == 3:
                break
        stream.close()
        _wait_until_idle(host)
        assert len(host.model.aborted) == 1


@pytest.mark.parametrize("stream", [False, True])
def test_cancelling_a_task_aborts(stream: bool) -> None:
    host = FakeHost(FakeModel(token_delay_s=0.02, answer=lambda r, s: "x" * 1000))

    async def main(served: Served) -> None:
        async with _async_client(served) as client:

            async def ask() -> None:
                answer: Any = await client.chat.completions.create(model="fake", messages=USER, stream=stream)
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


@settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    text=st.text(max_size=40),
    kind=st.sampled_from(["chat", "text"]),
    n=st.integers(1, 3),
    max_tokens=st.none() | st.integers(1, 60),
    include_usage=st.booleans(),
    logprobs=st.booleans(),
    token_ids=st.booleans(),
)
def test_a_stream_is_the_whole_answer_in_pieces(
    served: Served,
    text: str,
    kind: str,
    n: int,
    max_tokens: int | None,
    include_usage: bool,
    logprobs: bool,
    token_ids: bool,
) -> None:
    """Deltas together are the whole; one finish per choice, nothing of it after that; [DONE] is last."""
    model = served.host.model
    usual, model.answer = model.answer, lambda request, seed: f"{text}{seed}"
    fields: dict[str, Any] = {"n": n, "max_tokens": max_tokens, "seed": 3, "return_token_ids": token_ids}
    ask = served.chat if kind == "chat" else served.complete
    if logprobs:
        fields |= {"logprobs": True, "top_logprobs": 2} if kind == "chat" else {"logprobs": 2}
    try:
        whole = ask("q", **fields).json()
        options = {"include_usage": include_usage}
        response = ask("q", stream=True, stream_options=options, **fields)
        *chunks, done = events_of(response.text)
    finally:
        model.answer = usual
    assert done == "[DONE]"
    assert response.text.count("[DONE]") == 1
    if include_usage:
        assert chunks.pop()["usage"] == whole["usage"]
    texts, finished, ids, scores = [""] * n, [None] * n, [[] for _ in range(n)], [0] * n
    for chunk in chunks:
        (piece,) = chunk["choices"]
        index = piece["index"]
        assert finished[index] is None
        texts[index] += piece["text"] if kind == "text" else piece["delta"].get("content", "")
        finished[index] = piece["finish_reason"]
        ids[index] += piece.get("token_ids", [])
        if piece["logprobs"]:
            scores[index] += len(piece["logprobs"]["content" if kind == "chat" else "tokens"])
    for choice in whole["choices"]:
        index = choice["index"]
        assert texts[index] == (choice["text"] if kind == "text" else choice["message"]["content"])
        assert finished[index] == choice["finish_reason"]
        assert ids[index] == choice.get("token_ids", [])
        if logprobs:
            assert scores[index] == len(choice["logprobs"]["content" if kind == "chat" else "tokens"])
