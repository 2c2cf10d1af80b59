"""OpenTelemetry traces: a span for each request, with the names of the GenAI semantic conventions.

An extra: `pip install 'stoker[telemetry]'`. Nothing here is imported before traces are asked for. Spans hold
counts and settings, never text.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any

from stoker import __version__
from stoker.api.errors import RequestError
from stoker.api.request import Request
from stoker.telemetry.observe import RequestRecord

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
    from opentelemetry.trace import Span

_Scope = MutableMapping[str, Any]
_AsgiApp = Callable[[_Scope, Callable[[], Awaitable[Any]], Callable[[Any], Awaitable[None]]], Awaitable[None]]

PROVIDER = "stoker"


def open_tracing(endpoint: str | None = None, *, service: str = "stoker") -> Tracing:
    """Traces that are sent by OTLP over HTTP to `endpoint`, such as http://127.0.0.1:4318/v1/traces.

    None: to where the variables OTEL_EXPORTER_OTLP_ENDPOINT and OTEL_EXPORTER_OTLP_TRACES_ENDPOINT say, or
    to the port of this machine that the protocol names. Raises `RequestError` without the extra, or for an
    endpoint that is no URL.
    """
    if endpoint is not None and not endpoint.startswith(("http://", "https://")):
        raise RequestError(f"trace endpoint is {endpoint!r}; allowed: an http:// or https:// URL")
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise _without_extra(error) from error
    return Tracing(BatchSpanProcessor(OTLPSpanExporter(endpoint=endpoint)), service=service)


class Tracing:
    """Writes spans to a processor of the OpenTelemetry SDK. Close it to send what is left."""

    def __init__(self, processor: SpanProcessor, *, service: str = "stoker") -> None:
        try:
            from opentelemetry.sdk.resources import Resource
            from opentelemetry.sdk.trace import TracerProvider
        except ImportError as error:
            raise _without_extra(error) from error
        resource = Resource.create({"service.name": service, "service.version": __version__})
        # A provider of our own: the process's global one belongs to whoever embeds this server. Its exit hook
        # is off because `close` is called when the server has drained.
        self._provider: TracerProvider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("stoker", __version__)

    def observe(self, request: Request, model: str) -> Callable[[RequestRecord], None]:
        """The observer for `ObservedHost`: a span from the request's start to its end.

        Its parent is the span of the caller that `middleware` has found, if there is one.
        """
        from opentelemetry.trace import SpanKind

        operation = "chat" if request.kind == "chat" else "text_completion"
        span = self._tracer.start_span(
            f"{operation} {model}", kind=SpanKind.SERVER, attributes=_asked(request, model, operation)
        )
        return lambda record: _end(span, record)

    def middleware(self, app: _AsgiApp) -> _AsgiApp:
        """An ASGI application that honours `traceparent` and `tracestate` of what reaches `app`."""
        from opentelemetry import context
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        propagator = TraceContextTextMapPropagator()

        async def with_caller(scope: _Scope, receive: Any, send: Any) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return
            carrier = {
                name.decode("latin-1"): value.decode("latin-1")
                for name, value in scope["headers"]
                if name in (b"traceparent", b"tracestate")
            }
            # An empty parent: the context of the connection's task is not this request's.
            token = context.attach(propagator.extract(carrier, context=context.Context()))
            try:
                await app(scope, receive, send)
            finally:
                context.detach(token)

        return with_caller

    def close(self) -> None:
        """Send what is left, for as long as the exporter's own time limit, and stop. May be called again."""
        self._provider.shutdown()


def _asked(request: Request, model: str, operation: str) -> dict[str, str | int | float]:
    sampling = request.sampling
    attributes: dict[str, str | int | float | None] = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": PROVIDER,
        "gen_ai.request.model": request.model or model,
        "gen_ai.request.temperature": float(sampling.temperature),
        "gen_ai.request.top_p": float(sampling.top_p),
        "gen_ai.request.top_k": sampling.top_k or None,
        "gen_ai.request.max_tokens": sampling.max_tokens,
        "gen_ai.request.choice.count": sampling.n if sampling.n > 1 else None,
        "gen_ai.request.seed": _seed(sampling.seed),
        "stoker.tenant": request.tenant or None,
    }
    return {name: value for name, value in attributes.items() if value is not None}


def _end(span: Span, record: RequestRecord) -> None:
    from opentelemetry.trace import Status, StatusCode

    attributes: dict[str, str | int | float | list[str] | None] = {
        "gen_ai.response.id": record.request.request_id,
        "gen_ai.response.model": record.model,
        "gen_ai.response.finish_reasons": list(record.finish_reasons),
        "gen_ai.usage.input_tokens": record.prompt_tokens,
        "gen_ai.usage.output_tokens": record.generated_tokens,
        "gen_ai.usage.cache_read.input_tokens": record.cached_tokens,
        "gen_ai.latency.time_to_first_token": record.time_to_first_token_s,
        "gen_ai.latency.e2e": record.seconds,
    }
    if record.done and record.done[0].queue_ms is not None:
        attributes["gen_ai.latency.time_in_queue"] = record.done[0].queue_ms / 1000
    if record.done:  # what replays the answer, whether it was given or drawn
        seed = min(record.done, key=lambda event: event.choice).seed
        attributes["gen_ai.request.seed"] = _seed(seed)
    span.set_attributes({name: value for name, value in attributes.items() if value is not None})
    if record.error is not None:
        span.set_attribute("error.type", type(record.error).__name__)
        span.set_status(Status(StatusCode.ERROR, str(record.error)[:1000]))
    span.end()


def _seed(seed: int | None) -> int | str | None:
    """As a number where it fits the protocol's signed 64 bits, else as its digits."""
    return seed if seed is None or seed < 1 << 63 else str(seed)


def _without_extra(error: ImportError) -> RequestError:
    return RequestError(
        f"traces were asked for, but {error.name or 'OpenTelemetry'} is not installed",
        hint="pip install 'stoker[telemetry]'",
    )
