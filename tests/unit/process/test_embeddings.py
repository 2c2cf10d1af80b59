"""Embeddings through a worker: the engine's vector, also when the worker dies half way."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest
from tests.fakes import ByteTokenizer, text_engine
from tests.unit.process.serving import ask, read, run, start_fake, until, write_model

from stoker.api.errors import RequestError
from stoker.api.events import DoneEvent, EmbeddingEvent, Event
from stoker.api.protocols import Endpoint
from stoker.api.request import Pooling, Request, SamplingParams
from stoker.llm import LLM

TEXTS = [f"text {i}: coal and water, " * (1 + 9 * i) for i in range(4)]
POOLINGS: tuple[Pooling, ...] = ("mean", "last")


async def embed(endpoint: Endpoint, name: str, prompt: str, pooling: Pooling) -> tuple[float, ...]:
    events: list[Event] = [e async for e in endpoint.generate(Request(name, prompt, pooling=pooling))]
    embedding, done = events
    assert isinstance(embedding, EmbeddingEvent)
    assert isinstance(done, DoneEvent)
    assert (done.finish_reason, done.usage.prompt_tokens) == ("stop", len(prompt.encode()))
    assert embedding.request_id == done.request_id == name
    return embedding.vector


def of_the_engine(pooling: Pooling) -> list[tuple[float, ...]]:
    with LLM(text_engine()) as llm:
        return [tuple(vector.tolist()) for vector in llm.embed(TEXTS, pooling=pooling)]


@pytest.mark.parametrize("pooling", POOLINGS)
def test_through_a_worker_beside_answers(tmp_path: Path, pooling: Pooling) -> None:
    async def work() -> None:
        async with await start_fake(write_model(tmp_path)) as endpoint:
            answer = asyncio.create_task(read(endpoint, ask("answer")))
            found = await asyncio.gather(
                *(embed(endpoint, f"{i}", text, pooling) for i, text in enumerate(TEXTS))
            )
            assert found == of_the_engine(pooling)
            assert (await answer).tokens == 40
            assert endpoint.open_requests == 0

    run(work)


def test_a_death_half_way_begins_again(tmp_path: Path) -> None:
    async def work() -> None:
        # 704 tokens in steps of 512, each of which takes 0.3 s.
        async with await start_fake(write_model(tmp_path, step_ms=300)) as endpoint:
            first = endpoint.worker_pid
            assert first is not None
            task = asyncio.create_task(embed(endpoint, "a", TEXTS[3], "mean"))
            await asyncio.sleep(0.45)
            os.kill(first, signal.SIGKILL)
            assert await task == of_the_engine("mean")[3]
            assert endpoint.restarts == 1

    run(work)


def test_what_an_embedding_cannot_have(tmp_path: Path) -> None:
    async def work() -> None:
        async with await start_fake(write_model(tmp_path)) as endpoint:
            request = Request("a", "coal", SamplingParams(n=2), pooling="mean")
            with pytest.raises(RequestError, match="n is 2; allowed: 1"):
                _ = [event async for event in endpoint.generate(request)]
            with pytest.raises(RequestError, match="prompt is empty"):
                await embed(endpoint, "a", "", "mean")
            assert len(await embed(endpoint, "a", "coal", "mean")) == 8

    run(work)


def test_leaving_aborts_it(tmp_path: Path) -> None:
    async def work() -> None:
        async with await start_fake(write_model(tmp_path, step_ms=200)) as endpoint:
            task = asyncio.create_task(embed(endpoint, "a", TEXTS[3], "mean"))
            await asyncio.sleep(0.1)
            task.cancel()
            await until(lambda: endpoint.open_requests == 0)
            assert (await endpoint.stats()).blocks_held == 0

    run(work)


def test_llm() -> None:
    with LLM(text_engine()) as llm:
        one, other = llm.embed(["coal", "water"])
        assert one.dtype == "float32"
        assert abs(float((one**2).sum()) - 1) < 1e-6
        assert llm.embed("coal").tolist() == [one.tolist()]
        assert llm.embed([list(b"water"), list(b"coal")]).tolist() == [other.tolist(), one.tolist()]
        assert llm.embed("coal", pooling="last").tolist() != [one.tolist()]
        for wrong, words in (
            ([], "prompts is empty"),
            (["a", ""], "prompt is empty"),
            ("a" * 9999, "tokens"),
        ):
            with pytest.raises(RequestError, match=words):
                llm.embed(wrong)
        with pytest.raises(RequestError, match="pooling is 'max'; allowed: mean, last"):
            llm.embed("a", pooling="max")  # type: ignore[arg-type]
        last = llm.embed("coal", pooling="last").tolist()
        llm.text_engine.pooling = "last"
        assert llm.embed("coal").tolist() == last
        llm.text_engine.pooling = None
        with pytest.raises(RequestError, match="does not say how"):
            llm.embed("coal")
        assert not llm.text_engine.busy
        assert ByteTokenizer.vocab_size == llm.text_engine.engine.vocabulary
