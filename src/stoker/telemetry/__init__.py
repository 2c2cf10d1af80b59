"""What a server tells of itself. Above the waist: it sees requests, events and counters, never a tensor.

`ObservedHost` wraps the host that the server uses; `Metrics`, `RequestLog` and `Tracing.observe` are told
what passes through it. Traces are imported when they are asked for (`stoker.telemetry.traces`).
"""

from stoker.telemetry.logs import RequestLog, configure_logging, log_event
from stoker.telemetry.metrics import CONTENT_TYPE as METRICS_CONTENT_TYPE
from stoker.telemetry.metrics import Metrics
from stoker.telemetry.observe import ObservedEndpoint, ObservedHost, Observer, RequestRecord
from stoker.telemetry.stats import stats_json
from stoker.telemetry.traces import Tracing, open_tracing

__all__ = [
    "METRICS_CONTENT_TYPE",
    "Metrics",
    "ObservedEndpoint",
    "ObservedHost",
    "Observer",
    "RequestLog",
    "RequestRecord",
    "Tracing",
    "configure_logging",
    "log_event",
    "open_tracing",
    "stats_json",
]
