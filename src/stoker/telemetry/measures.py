"""What is counted of one model's requests, as they are seen from above the waist.

Written by `ObservedEndpoint` and `ObservedHost` in the server's event loop, read there at a scrape: one
thread, so no locks. Only counters and histograms that grow; everything else is derived by who reads them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence

# In steps of about 1.6, so that a quantile read from a histogram is at most that factor off. They start where
# a small model on a CPU answers and end where a client has long given up.
LATENCY_BOUNDS_S: Sequence[float] = (
    0.001, 0.0016, 0.0025, 0.004, 0.006, 0.01, 0.016, 0.025, 0.04, 0.06, 0.1, 0.16, 0.25, 0.4, 0.6,
    1.0, 1.6, 2.5, 4.0, 6.0, 10.0, 16.0, 25.0, 40.0, 60.0, 120.0, 300.0,
)  # fmt: skip
TOKEN_BOUNDS: Sequence[float] = tuple(float(1 << power) for power in range(18))  # 1 to 131 072 tokens


class Histogram:
    """Counts of values by upper bound, and their sum. A value equal to a bound belongs below it."""

    __slots__ = ("bounds", "counts", "sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = tuple(bounds)
        self.counts = [0] * (len(self.bounds) + 1)  # the last one: above all bounds
        self.sum = 0.0

    def observe(self, value: float, times: int = 1) -> None:
        """Count `value`, `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)


class ModelMeasures:
    """The counters of one model's requests. They outlive the model's engine and its unloading."""

    __slots__ = (
        "choices_by_finish_reason",
        "decode_s",
        "errors_by_class",
        "generated_tokens",
        "inter_token_s",
        "model_wait_s",
        "open_requests",
        "prompt_tokens",
        "queue_s",
        "request_s",
        "time_to_first_token_s",
    )

    def __init__(self) -> None:
        self.open_requests = 0  # between being asked and the last event
        self.choices_by_finish_reason: Counter[str] = Counter()
        self.errors_by_class: Counter[str] = Counter()  # requests that ended in an error, by its class
        self.model_wait_s = Histogram(LATENCY_BOUNDS_S)  # until the model was there; loading it included
        self.queue_s = Histogram(LATENCY_BOUNDS_S)  # from being taken by the engine to the first step
        self.time_to_first_token_s = Histogram(LATENCY_BOUNDS_S)
        self.inter_token_s = Histogram(LATENCY_BOUNDS_S)
        self.decode_s = Histogram(LATENCY_BOUNDS_S)  # from the first token to the end
        self.request_s = Histogram(LATENCY_BOUNDS_S)  # from being asked to the end
        self.prompt_tokens = Histogram(TOKEN_BOUNDS)  # of each request that was answered
        self.generated_tokens = Histogram(TOKEN_BOUNDS)  # of each choice that was answered
