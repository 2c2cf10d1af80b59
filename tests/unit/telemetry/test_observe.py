"""Observed endpoints hand every event on as it is and measure exactly what passed."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.telemetry.fake_host import FakeHost, FakeModel, ManualClock, done, tokens

from stoker.api import DoneEvent, Request, SamplingParams
from stoker.api.errors import EngineError, QueueFullError
from stoker.api.events import EmbeddingEvent, Event, PromptEvent
from stoker.telemetry.measures import Histogram, ModelMeasures
from stoker.telemetry.observe import ObservedEndpoint, ObservedHost, RequestRecord


class Watched:
    """An observed scripted endpoint, with the records that its observer got."""

    def __init__(self, script, *, keep_texts: bool = False) -> None:
        self.clock = ManualClock()
        self.measures = ModelMeasures()
        self.started: list[tuple[str, str]] = []
        self.records: list[RequestRecord] = []

        def observer(request: Request, model: str):
            self.started.append((request.request_id, model))
            return self.records.append

        self.endpoint = ObservedEndpoint(
            FakeModel("m", lambda request: script(request, self.clock)),
            self.measures,
            model="m",
            observers=[observer],
            keep_texts=keep_texts,
            clock=self.clock,
        )

    async def drain(self, request: Request) -> list[Event]:
        return [event async for event in self.endpoint.generate(request)]


async def _three_tokens(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
    clock.now_s += 0.5
    yield tokens(request, "a")
    clock.now_s += 0.02
    yield tokens(request, "b")
    clock.now_s += 0.06
    yield tokens(request, "cd", count=2)
    clock.now_s += 0.01
    yield tokens(request, "", count=0)
    clock.now_s += 0.01
    yield done(request, 4, cached=32)


def test_the_times_of_a_request() -> None:
    watched = Watched(_three_tokens)
    request = Request("r", "hello")
    events = asyncio.run(watched.drain(request))
    assert [type(event).__name__ for event in events] == ["TokensEvent"] * 4 + ["DoneEvent"]
    (record,) = watched.records
    assert watched.started == [("r", "m")]
    assert record.time_to_first_token_s == pytest.approx(0.5)
    assert record.seconds == pytest.approx(0.6)
    assert (record.prompt_tokens, record.cached_tokens, record.generated_tokens) == (40, 32, 4)
    assert record.finish_reasons == ("stop",)
    measures = watched.measures
    assert (measures.time_to_first_token_s.count, measures.request_s.count) == (1, 1)
    assert measures.inter_token_s.count == 3  # four tokens have three gaps
    assert measures.inter_token_s.sum == pytest.approx(0.08)
    assert measures.decode_s.sum == pytest.approx(0.1)
    assert (measures.prompt_tokens.sum, measures.generated_tokens.sum) == (40, 4)
    assert measures.choices_by_finish_reason == {"stop": 1}
    assert measures.open_requests == 0


def test_events_are_the_very_objects_of_the_endpoint() -> None:
    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        for event in given_events:
            yield event

    request = Request("r", "hello")
    given_events = [tokens(request, "a"), tokens(request, "b"), done(request, 2)]
    got = asyncio.run(Watched(script).drain(request))
    assert all(a is b for a, b in zip(got, given_events, strict=True))


def test_choices_have_gaps_of_their_own() -> None:
    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        for choice in (0, 1):
            clock.now_s += 1.0
            yield tokens(request, "a", choice=choice)
        for choice in (1, 0):
            clock.now_s += 0.25
            yield tokens(request, "b", choice=choice)
            yield done(request, 2, choice=choice, cached=16 * choice)

    watched = Watched(script, keep_texts=True)
    asyncio.run(watched.drain(Request("r", "hello", SamplingParams(n=2))))
    assert watched.measures.time_to_first_token_s.sum == pytest.approx(1.0)  # the first of any choice
    assert watched.measures.inter_token_s.sum == pytest.approx(0.25 + 1.5)
    (record,) = watched.records
    assert record.cached_tokens == 0  # the first choice computed the prompt
    assert record.texts == ("ab", "ab")
    assert watched.measures.prompt_tokens.count == 1
    assert watched.measures.generated_tokens.count == 2


@pytest.mark.parametrize("after", [0, 1, 2])
def test_a_client_that_leaves_is_an_abort(after: int) -> None:
    closed = []

    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        try:
            yield tokens(request, "a")
            yield tokens(request, "b")
            await asyncio.Event().wait()
        finally:
            closed.append(request.request_id)

    async def leave(watched: Watched) -> None:
        async def read() -> None:
            seen = 0
            async for _ in watched.endpoint.generate(Request("r", "hello")):
                seen += 1
                if seen == after:
                    await asyncio.Event().wait()

        task = asyncio.create_task(read())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await asyncio.sleep(0)

    watched = Watched(script)
    asyncio.run(leave(watched))
    assert closed == ["r"]
    (record,) = watched.records
    assert record.finish_reasons == ("abort",)
    assert record.error is None
    assert record.prompt_tokens is None
    assert record.generated_tokens == (after or 2)
    assert watched.measures.choices_by_finish_reason == {"abort": 1}
    assert watched.measures.errors_by_class == {}
    assert watched.measures.open_requests == 0


def test_closing_the_iterator_closes_the_endpoint_s() -> None:
    closed = []

    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        try:
            yield tokens(request, "a")
            yield tokens(request, "b")
        finally:
            closed.append(True)

    async def read_one(watched: Watched) -> None:
        events = watched.endpoint.generate(Request("r", "hello"))
        await anext(events)
        await events.aclose()
        assert closed == [True]

    watched = Watched(script)
    asyncio.run(read_one(watched))
    assert [record.finish_reasons for record in watched.records] == [("abort",)]


def test_the_record_is_there_with_the_last_event() -> None:
    """A reader that stops at the last done event, as many do, is no client that left."""

    async def read_to_done(watched: Watched) -> None:
        events = watched.endpoint.generate(Request("r", "hello"))
        async for event in events:
            if isinstance(event, DoneEvent):
                assert len(watched.records) == 1
                break
        await events.aclose()

    watched = Watched(_three_tokens)
    asyncio.run(read_to_done(watched))
    assert [record.finish_reasons for record in watched.records] == [("stop",)]
    assert watched.measures.choices_by_finish_reason == {"stop": 1}


def test_what_a_prompt_brings_of_its_own_is_no_token() -> None:
    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        yield PromptEvent(request.request_id, ())
        yield EmbeddingEvent(request.request_id, (1.0,))
        clock.now_s += 0.5
        yield tokens(request, "a")
        yield done(request, 1)

    watched = Watched(script, keep_texts=True)
    assert len(asyncio.run(watched.drain(Request("r", "hello")))) == 4
    (record,) = watched.records
    assert (record.texts, record.generated_tokens) == (("a",), 1)
    assert record.time_to_first_token_s == pytest.approx(0.5)


def test_a_second_cancellation_leaves_no_request_open() -> None:
    """A client leaves, and while its request is being closed the server is told to stop at once."""

    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        try:
            yield tokens(request, "a")
        finally:
            await asyncio.sleep(30)

    async def leave(watched: Watched) -> None:
        async def read_one() -> None:
            events = watched.endpoint.generate(Request("r", "hello"))
            await anext(events)
            await events.aclose()

        task = asyncio.create_task(read_one())
        await asyncio.sleep(0.01)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    watched = Watched(script)
    asyncio.run(leave(watched))
    assert watched.measures.open_requests == 0
    assert [record.finish_reasons for record in watched.records] == [("abort",)]


def test_a_refusal_counts_as_an_error_and_as_nothing_else() -> None:
    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        raise QueueFullError("4096 requests wait")
        yield

    watched = Watched(script)
    with pytest.raises(QueueFullError):
        asyncio.run(watched.drain(Request("r", "hello")))
    assert watched.measures.errors_by_class == {"QueueFullError": 1}
    assert watched.measures.request_s.count == 0
    assert watched.measures.choices_by_finish_reason == {}
    assert watched.measures.open_requests == 0
    assert isinstance(watched.records[0].error, QueueFullError)


def test_a_failure_under_way_ends_the_open_choices_in_error() -> None:
    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        yield tokens(request, "a", choice=1)
        yield done(request, 1, choice=1)
        raise EngineError("the engine is gone")

    watched = Watched(script)
    with pytest.raises(EngineError):
        asyncio.run(watched.drain(Request("r", "hello", SamplingParams(n=2))))
    assert watched.records[0].finish_reasons == ("error", "stop")
    assert watched.measures.choices_by_finish_reason == {"error": 1, "stop": 1}
    assert watched.measures.errors_by_class == {"EngineError": 1}


def test_a_host_measures_all_its_models_by_their_names() -> None:
    async def use(host: ObservedHost) -> None:
        async with host.use("one", keep_alive_s=3) as model:
            clock.now_s += 5
            assert [type(e).__name__ async for e in model.generate(Request("r", "x"))][-1] == "DoneEvent"
            assert model.card.name == "one"
            assert await model.encode("x") == [1, 2, 3]
            assert model.decode([0, 1]) == "ab"
            assert model.token_bytes(2) == b"c"
            assert model.ready
            assert model.has_chat_template
        assert [model.card.name for model in host.loaded()] == ["one", "two"]
        await host.close(drain_s=2)

    clock = ManualClock()
    inner = FakeHost(*(FakeModel(n, lambda r: _three_tokens(r, clock)) for n in ("one", "two")))
    by_name: dict[str, ModelMeasures] = {}
    host = ObservedHost(inner, lambda name: by_name.setdefault(name, ModelMeasures()), clock=clock)
    asyncio.run(use(host))
    assert (inner.keep_alives, inner.closed_after_s) == ([3], 2)
    assert by_name["one"].request_s.count == 1
    assert by_name["one"].model_wait_s.count == 1
    assert by_name["one"].model_wait_s.sum == 0
    assert by_name["two"].request_s.count == 0
    with pytest.raises(Exception, match="no model three"):
        asyncio.run(_enter(host, "three"))
    assert set(by_name) == {"one", "two"}


async def _enter(host: ObservedHost, name: str) -> None:
    async with host.use(name):
        pass


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.floats(0, 1e4), st.integers(1, 50)), max_size=30))
def test_a_histogram_counts_what_is_at_most_each_bound(values: list[tuple[float, int]]) -> None:
    histogram = Histogram((0.1, 1.0, 10.0))
    for value, times in values:
        histogram.observe(value, times)
    for place, bound in enumerate(histogram.bounds):
        expected = sum(times for value, times in values if value <= bound)
        assert sum(histogram.counts[: place + 1]) == expected
    assert histogram.count == sum(times for _, times in values)
    assert histogram.sum == pytest.approx(sum(value * times for value, times in values))


def test_measuring_an_event_takes_microseconds() -> None:
    """32 streams of 50 tokens a second are 1600 events a second; 20 us each would be 3 % of a core."""
    import time

    async def script(request: Request, clock: ManualClock) -> AsyncIterator[Event]:
        event = tokens(request, "a")
        for _ in range(20_000):
            yield event
        yield done(request, 20_000)

    async def drain(endpoint) -> float:
        started = time.perf_counter()
        async for _ in endpoint.generate(Request("r", "x")):
            pass
        return (time.perf_counter() - started) / 20_000

    observed = min(asyncio.run(drain(Watched(script).endpoint)) for _ in range(3))
    assert observed < 20e-6  # 0.6 us on a quiet machine
