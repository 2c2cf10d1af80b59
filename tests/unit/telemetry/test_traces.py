"""Spans, with the SDK's in-memory exporter and with a receiver of OTLP over HTTP on this machine."""

from __future__ import annotations

import asyncio
import sys
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from tests.unit.telemetry.fake_host import FakeHost, FakeModel, ManualClock, done, tokens

from stoker.api import Message, Request, SamplingParams
from stoker.api.errors import EngineError, RequestError
from stoker.telemetry import ObservedHost, Tracing, open_tracing
from stoker.telemetry.measures import ModelMeasures

pytest.importorskip("opentelemetry.sdk", reason="needs the extra: pip install 'stoker[telemetry]'")

TRACE_ID = "0af7651916cd43dd8448eb211c80319c"
CALLER_ID = "b7ad6b7169203331"


async def _answer(request: Request, clock: ManualClock):
    clock.now_s += 0.25
    yield tokens(request, "a secret")
    clock.now_s += 0.5
    yield done(request, 1, cached=16, reason="length")


def _host(tracing: Tracing, script=_answer) -> ObservedHost:
    clock = ManualClock()
    return ObservedHost(
        FakeHost(FakeModel("m", lambda r: script(r, clock))),
        lambda name: ModelMeasures(),
        observers=[tracing.observe],
        clock=clock,
    )


async def _ask(host: ObservedHost, request: Request) -> None:
    async with host.use("m") as model:
        async for _ in model.generate(request):
            pass


@pytest.fixture
def memory():
    from opentelemetry.sdk.trace.export import SimpleSpanProcessor
    from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

    exporter = InMemorySpanExporter()
    tracing = Tracing(SimpleSpanProcessor(exporter))
    yield tracing, exporter
    tracing.close()


def test_a_span_has_the_names_of_the_conventions(memory) -> None:
    tracing, exporter = memory
    sampling = SamplingParams(temperature=0.5, top_p=0.9, max_tokens=1)
    asyncio.run(_ask(_host(tracing), Request("id", (Message("user", "secret"),), sampling, model="alias")))
    (span,) = exporter.get_finished_spans()
    assert span.name == "chat m"
    assert span.kind.name == "SERVER"
    assert dict(span.attributes) == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "stoker",
        "gen_ai.request.model": "alias",
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.max_tokens": 1,
        "gen_ai.request.seed": 7,
        "gen_ai.response.id": "id",
        "gen_ai.response.model": "m",
        "gen_ai.response.finish_reasons": ("length",),
        "gen_ai.usage.input_tokens": 40,
        "gen_ai.usage.output_tokens": 1,
        "gen_ai.usage.cache_read.input_tokens": 16,
        "gen_ai.latency.time_to_first_token": 0.25,
        "gen_ai.latency.e2e": 0.75,
    }
    assert span.parent is None
    assert span.resource.attributes["service.name"] == "stoker"


def test_a_failure_is_an_error_of_the_span(memory) -> None:
    async def script(request: Request, clock: ManualClock):
        yield tokens(request, "a")
        raise EngineError("it is gone")

    tracing, exporter = memory
    with pytest.raises(EngineError):
        asyncio.run(_ask(_host(tracing, script), Request("id", "x", SamplingParams(seed=(1 << 64) - 1))))
    (span,) = exporter.get_finished_spans()
    assert span.name == "text_completion m"
    assert (span.status.status_code.name, span.status.description) == ("ERROR", "it is gone")
    assert span.attributes["error.type"] == "EngineError"
    assert span.attributes["gen_ai.request.seed"] == str(
        (1 << 64) - 1
    )  # more than the protocol's integers hold


@pytest.mark.parametrize(
    ("header", "parent"),
    [
        (f"00-{TRACE_ID}-{CALLER_ID}-01", (TRACE_ID, CALLER_ID)),
        (None, None),
        ("00-0-0-01", None),
        ("00-" + "g" * 32 + f"-{CALLER_ID}-01", None),
        ("\xff" * 10_000, None),
    ],
)
def test_the_caller_s_span_is_the_parent(memory, header: str | None, parent: tuple[str, str] | None) -> None:
    tracing, exporter = memory

    async def app(scope, receive, send) -> None:
        # As a streaming response does it: in a task of its own.
        await asyncio.create_task(_ask(_host(tracing), Request("id", "x")))

    async def call() -> None:
        headers = [(b"host", b"here")]
        if header is not None:
            headers.append((b"traceparent", header.encode("latin-1")))
        await tracing.middleware(app)({"type": "http", "headers": headers}, None, None)
        await _ask(_host(tracing), Request("another", "x"))  # the caller's span ends with its request

    asyncio.run(call())
    span, other = exporter.get_finished_spans()
    assert other.parent is None
    if parent is None:
        assert span.parent is None
    else:
        assert (format(span.parent.trace_id, "032x"), format(span.parent.span_id, "016x")) == parent


def test_a_caller_who_does_not_sample_is_not_sampled(memory) -> None:
    tracing, exporter = memory

    async def app(scope, receive, send) -> None:
        await _ask(_host(tracing), Request("id", "x"))

    headers = [(b"traceparent", f"00-{TRACE_ID}-{CALLER_ID}-00".encode())]
    asyncio.run(tracing.middleware(app)({"type": "http", "headers": headers}, None, None))
    assert exporter.get_finished_spans() == ()


def test_what_is_no_http_request_passes(memory) -> None:
    tracing, _ = memory
    seen = []

    async def app(scope, receive, send) -> None:
        seen.append(scope)

    asyncio.run(tracing.middleware(app)({"type": "lifespan"}, None, None))
    assert seen == [{"type": "lifespan"}]


def test_spans_arrive_at_a_receiver_of_otlp() -> None:
    pytest.importorskip("opentelemetry.exporter.otlp.proto.http", reason="needs the extra telemetry")
    from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

    bodies: list[tuple[str, bytes]] = []

    class Receiver(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            bodies.append((self.path, self.rfile.read(int(self.headers["Content-Length"]))))
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Not on the test's stderr."""

    with HTTPServer(("127.0.0.1", 0), Receiver) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        tracing = open_tracing(f"http://127.0.0.1:{server.server_port}/v1/traces")
        asyncio.run(_ask(_host(tracing), Request("id", "x")))
        tracing.close()
        tracing.close()
        server.shutdown()
        thread.join()
    ((path, body),) = bodies
    assert path == "/v1/traces"
    (resource,) = ExportTraceServiceRequest.FromString(body).resource_spans
    (span,) = resource.scope_spans[0].spans
    assert span.name == "text_completion m"
    assert {a.key: a.value.int_value for a in span.attributes}["gen_ai.usage.input_tokens"] == 40


def test_without_the_extra_it_is_said_how_to_get_it(monkeypatch) -> None:
    for name in [name for name in sys.modules if name.startswith("opentelemetry")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    with pytest.raises(RequestError, match=r"pip install 'stoker\[telemetry\]'"):
        open_tracing("http://127.0.0.1:4318/v1/traces")


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    with pytest.raises(RequestError, match="allowed: an http:// or https:// URL"):
        open_tracing("127.0.0.1:4318")
