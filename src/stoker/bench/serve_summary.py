"""From what each client saw to figures. Names are stable: results are compared by them."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from stoker.bench.serve_events import StreamRecord

PERCENTILES = (50, 90, 95, 99)


@dataclass(frozen=True)
class Samples:
    """Milliseconds, over all whole answers."""

    ttft_ms: tuple[float, ...]  # from sending a request to its first token
    itl_ms: tuple[float, ...]  # time per token between reads: k tokens after a gap d are k times d / k
    gap_ms: tuple[float, ...]  # between two reads that brought tokens, whatever their number
    tpot_ms: tuple[float, ...]  # a request's time per token after its first
    e2e_ms: tuple[float, ...]  # from sending a request to its end
    token_times_s: tuple[tuple[float, float], ...]  # (since the first request, tokens), in order


def collect_samples(
    records: Sequence[StreamRecord], *, since_s: float = -math.inf, until_s: float = math.inf
) -> Samples:
    """Samples of the records without an error; gaps only those that touch the time between."""
    good = [record for record in records if record.error is None]
    start_s = min((record.started_s for record in good), default=0.0)
    itl_ms: list[float] = []
    gap_ms: list[float] = []
    for record in good:
        share = _tokens_per_count(record)
        for (before_s, _), (after_s, count) in pairwise(record.arrivals):
            if after_s > since_s and before_s < until_s:
                gap = (after_s - before_s) * 1e3
                gap_ms.append(gap)
                itl_ms += [gap / (count * share)] * count
    return Samples(
        ttft_ms=tuple((record.arrivals[0][0] - record.started_s) * 1e3 for record in good),
        itl_ms=tuple(itl_ms),
        gap_ms=tuple(gap_ms),
        tpot_ms=tuple(
            (record.arrivals[-1][0] - record.arrivals[0][0]) * 1e3 / (record.output_tokens - 1)
            for record in good
            if record.output_tokens > 1
        ),
        e2e_ms=tuple((record.ended_s - record.started_s) * 1e3 for record in good),
        token_times_s=tuple(
            sorted(
                (when - start_s, count * _tokens_per_count(record))
                for record in good
                for when, count in record.arrivals
            )
        ),
    )


def summarize(records: Sequence[StreamRecord], samples: Samples, *, output_tokens: int) -> dict[str, Any]:
    """Counts, rates, percentiles. `output_tokens`: asked for by each. A figure of nothing is none."""
    good = [record for record in records if record.error is None]
    tokens = sum(record.output_tokens for record in good)
    duration_s = _duration_s(good)
    result: dict[str, Any] = {
        "completed": len(good),
        "errors": dict(Counter(record.error for record in records if record.error is not None)),
        "error_examples": {r.error: r.detail for r in reversed(records) if r.error is not None},
        "unlike_length": sum(record.output_tokens != output_tokens for record in good),
        "duration_s": _rounded(duration_s),
        "output_tokens_total": tokens,
        "output_tokens_per_s": _rounded(tokens / duration_s if duration_s else None, 1),
        "requests_per_s": _rounded(len(good) / duration_s if duration_s else None),
        "prompt_tokens_mean": _rounded(_mean([r.prompt_tokens for r in good if r.prompt_tokens is not None])),
        "cached_tokens_mean": _rounded(_mean([r.cached_tokens for r in good if r.cached_tokens is not None])),
        "tokens_counted_by": "+".join(sorted({record.counted_by for record in good})) or None,
    }
    for name in ("ttft_ms", "itl_ms", "gap_ms", "tpot_ms", "e2e_ms"):
        result |= spread(name, getattr(samples, name))
    return result


def spread(name: str, values: Sequence[float]) -> dict[str, float | None]:
    """`name`_mean and `name`_p50 to _p99."""
    ordered = sorted(values)
    found = {f"{name}_mean": _rounded(_mean(ordered))}
    return found | {f"{name}_p{p}": _rounded(percentile(ordered, p)) for p in PERCENTILES}


def percentile(ordered: Sequence[float], percent: float) -> float | None:
    """Of values in ascending order, linear between neighbours (as numpy's default); none of no values."""
    if not ordered:
        return None
    place = (len(ordered) - 1) * percent / 100
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def _tokens_per_count(record: StreamRecord) -> float:
    """1 where each count of an arrival is a token; more where the server says there were more."""
    counted = sum(count for _, count in record.arrivals)
    return record.output_tokens / counted if record.output_tokens and counted else 1.0


def _duration_s(good: Sequence[StreamRecord]) -> float | None:
    if not good:
        return None
    return max(record.ended_s for record in good) - min(record.started_s for record in good)


def _mean(values: Iterable[float]) -> float | None:
    listed = list(values)
    return math.fsum(listed) / len(listed) if listed else None


def _rounded(value: float | None, digits: int = 3) -> float | None:
    return None if value is None else round(value, digits)
