"""The endpoint: many consumers of one engine thread, cancellation, failure, closing."""

from __future__ import annotations

import asyncio

import pytest
from tests.fakes import ByteTokenizer, ScriptedInterpreter, text_engine

from stoker.api import DoneEvent, Endpoint, Event, Request, SamplingParams, TokensEvent
from stoker.api.errors import EngineError, RequestError
from stoker.engine.endpoint import LocalEndpoint


async def collect(endpoint: Endpoint, request: Request) -> list[Event]:
    return [event async for event in endpoint.generate(request)]


def request(name: str, prompt: str = "hello", **params: object) -> Request:
    given = {"max_tokens": 12, "ignore_eos": True, "seed": 7, **params}
    return Request(name, prompt, SamplingParams(**given))  # type: ignore[arg-type]


def tokens(events: list[Event], choice: int = 0) -> list[int]:
    return [t for e in events if isinstance(e, TokensEvent) and e.choice == choice for t in e.token_ids]


def test_many_at_once_are_as_one_alone() -> None:
    async def main() -> None:
        async with LocalEndpoint(text_engine()) as endpoint:
            alone = await collect(endpoint, request("alone", seed=9))
            many = await asyncio.gather(
                *(collect(endpoint, request(f"r{i}", prompt=f"number {i}", n=1 + i % 3)) for i in range(20)),
                collect(endpoint, request("again", seed=9)),
            )
            assert tokens(many[-1]) == tokens(alone)
            for i, events in enumerate(many[:-1]):
                assert sum(isinstance(event, DoneEvent) for event in events) == 1 + i % 3
                assert all(len(tokens(events, choice)) == 12 for choice in range(1 + i % 3))
        endpoint._engine.engine.check()

    asyncio.run(main())


def test_leaving_early_aborts() -> None:
    async def main() -> None:
        engine = text_engine(context_tokens=100_000)
        async with LocalEndpoint(engine) as endpoint:
            stream = endpoint.generate(request("r", max_tokens=90_000))
            async for event in stream:
                assert isinstance(event, TokensEvent)
                break
            await stream.aclose()  # type: ignore[attr-defined]
            for _ in range(500):
                if not engine.busy:
                    break
                await asyncio.sleep(0.01)
            assert not engine.busy
            assert engine.engine.pool.held == 0
            # The name is free again, and the engine goes on.
            assert len(tokens(await collect(endpoint, request("r")))) == 12

    asyncio.run(main())


def test_cancelling_the_reader_aborts() -> None:
    async def main() -> None:
        engine = text_engine(context_tokens=100_000)
        async with LocalEndpoint(engine) as endpoint:
            task = asyncio.create_task(collect(endpoint, request("r", max_tokens=90_000)))
            await asyncio.sleep(0.05)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            assert len(tokens(await collect(endpoint, request("r")))) == 12

    asyncio.run(main())


def test_refusals_reach_the_one_who_asked() -> None:
    async def main() -> None:
        async with LocalEndpoint(text_engine(context_tokens=50)) as endpoint:
            with pytest.raises(RequestError, match="at most 50"):
                await collect(endpoint, request("long", prompt="x" * 200))
            running = asyncio.create_task(collect(endpoint, request("twice", max_tokens=40)))
            await asyncio.sleep(0)
            results = await asyncio.gather(
                running, collect(endpoint, request("twice")), return_exceptions=True
            )
            # Whichever came second was refused, and did not take the other with it.
            refused = [result for result in results if isinstance(result, RequestError)]
            assert len(refused) <= 1
            assert any(isinstance(result, list) for result in results)

    asyncio.run(main())


def test_a_failing_model_fails_its_requests_and_not_the_endpoint() -> None:
    async def main() -> None:
        interpreter = ScriptedInterpreter(vocabulary=ByteTokenizer.vocab_size)
        interpreter.fail_at_run = 4
        async with LocalEndpoint(text_engine(interpreter)) as endpoint:
            with pytest.raises(EngineError, match="scripted failure"):
                await collect(endpoint, request("r"))
            assert len(tokens(await collect(endpoint, request("r")))) == 12
        endpoint._engine.engine.check()

    asyncio.run(main())


def test_closing_ends_open_streams() -> None:
    async def main() -> None:
        endpoint = LocalEndpoint(text_engine(context_tokens=100_000))
        task = asyncio.create_task(collect(endpoint, request("r", max_tokens=90_000)))
        await asyncio.sleep(0.05)
        await asyncio.to_thread(endpoint.close)
        endpoint.close()
        with pytest.raises(EngineError, match="closed"):
            await task
        with pytest.raises(EngineError, match="closed"):
            await collect(endpoint, request("s"))

    asyncio.run(main())


def test_each_reader_may_have_its_own_loop() -> None:
    endpoint = LocalEndpoint(text_engine())
    try:
        first = asyncio.run(collect(endpoint, request("a")))
        second = asyncio.run(collect(endpoint, request("b")))
        assert tokens(first) == tokens(second)
    finally:
        endpoint.close()
