"""Percentiles, latencies of streams whose times are known, arrivals, loads and the plot."""

from __future__ import annotations

import itertools
import math
import random
import statistics
import xml.etree.ElementTree as ElementTree
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.api.errors import RequestError
from stoker.bench.serve_events import StreamRecord
from stoker.bench.serve_load import poisson_arrivals
from stoker.bench.serve_plot import plot_run
from stoker.bench.serve_scenarios import SCENARIOS, Load
from stoker.bench.serve_summary import Samples, collect_samples, percentile, summarize

SVG = "{http://www.w3.org/2000/svg}"


@given(
    st.lists(st.floats(-1e6, 1e6), min_size=1, max_size=50),
    st.sampled_from([0.0, 25.0, 50.0, 90.0, 95.0, 99.0, 100.0]),
)
def test_percentiles_are_numpys(values: list[float], percent: float) -> None:
    assert percentile(sorted(values), percent) == pytest.approx(np.percentile(values, percent), abs=1e-6)


def test_a_percentile_of_nothing_is_none() -> None:
    assert percentile([], 50) is None


def _record(*arrivals: tuple[float, int], tokens: int | None = None, **fields: Any) -> StreamRecord:
    counted = sum(count for _, count in arrivals)
    defaults: dict[str, Any] = {"started_s": 1.0, "ended_s": 4.0, "counted_by": "token_ids"}
    return StreamRecord(
        arrivals=arrivals, output_tokens=counted if tokens is None else tokens, **{**defaults, **fields}
    )


def test_latencies_of_known_times() -> None:
    record = _record((1.5, 1), (2.0, 1), (3.0, 4))
    samples = collect_samples([record])
    assert samples.ttft_ms == (500.0,)
    assert samples.gap_ms == (500.0, 1000.0)
    assert samples.itl_ms == (500.0, 250.0, 250.0, 250.0, 250.0)  # four tokens after a second
    assert samples.tpot_ms == (300.0,)
    assert samples.e2e_ms == (3000.0,)
    assert samples.token_times_s == ((0.5, 1), (1.0, 1), (2.0, 4))


def test_where_usage_says_more_tokens_than_events_each_event_is_worth_more() -> None:
    record = _record((1.5, 1), (2.0, 1), tokens=4, counted_by="usage")
    samples = collect_samples([record])
    assert samples.itl_ms == (250.0,)
    assert samples.gap_ms == (500.0,)
    assert sum(tokens for _, tokens in samples.token_times_s) == 4


def test_a_window_takes_the_gaps_that_touch_it() -> None:
    record = _record((1.0, 1), (2.0, 1), (3.0, 1), (4.0, 1))
    assert len(collect_samples([record], since_s=1.5, until_s=2.5).gap_ms) == 2
    assert len(collect_samples([record], since_s=2.0, until_s=3.0).gap_ms) == 1
    # One step over the whole window is the very stall that is looked for.
    assert len(collect_samples([record], since_s=2.1, until_s=2.9).gap_ms) == 1


def test_a_summary_counts_errors_by_kind_and_measures_the_rest() -> None:
    bad = _record(error="http_429", detail="full")
    good = [_record((1.5, 1), (2.0, 1)), _record((2.5, 1), (3.0, 1), started_s=2.0, ended_s=5.0)]
    result = summarize([bad, *good, bad], collect_samples([bad, *good, bad]), output_tokens=3)
    assert (result["completed"], result["errors"]) == (2, {"http_429": 2})
    assert result["error_examples"] == {"http_429": "full"}
    assert result["unlike_length"] == 2
    assert (result["duration_s"], result["output_tokens_per_s"], result["requests_per_s"]) == (4.0, 1.0, 0.5)
    assert (result["ttft_ms_p50"], result["ttft_ms_mean"], result["itl_ms_p99"]) == (500.0, 500.0, 500.0)
    assert result["prompt_tokens_mean"] is None


def test_nothing_answered_is_a_summary_of_nones() -> None:
    result = summarize(
        [_record(error="connect")], collect_samples([_record(error="connect")]), output_tokens=1
    )
    assert result["completed"] == 0
    assert result["output_tokens_per_s"] is None
    assert result["ttft_ms_p50"] is None


def test_arrivals_come_from_the_seed_and_have_their_rate() -> None:
    due_s = poisson_arrivals(4.0, 4000, random.Random("7/arrivals"))
    assert due_s == poisson_arrivals(4.0, 4000, random.Random("7/arrivals"))
    assert due_s != poisson_arrivals(4.0, 4000, random.Random("8/arrivals"))
    assert due_s[0] == 0.0
    assert due_s == sorted(due_s)
    gaps = [b - a for a, b in itertools.pairwise(due_s)]
    # Of an exponential distribution both are the same; three standard errors of 4000 draws.
    assert statistics.mean(gaps) == pytest.approx(0.25, rel=3 / math.sqrt(4000))
    assert statistics.stdev(gaps) == pytest.approx(0.25, rel=0.1)
    assert poisson_arrivals(1.0, 1, random.Random(0)) == [0.0]


@pytest.mark.parametrize(
    "changes",
    [
        {"requests": 0},
        {"output_tokens": 0},
        {"prompt_tokens": -1},
        {"concurrency": 5000},
        {"rate": 0.0},
        {"rate": math.nan},
        {"rate": math.inf},
        {"requests": 100_000, "prompt_tokens": 10_000},
        {"intruder_tokens": 10},
        {"intruder_tokens": 10, "requests": 32, "rate": 1.0},
    ],
)
def test_loads_that_cannot_be_sent_are_refused(changes: dict[str, Any]) -> None:
    with pytest.raises(RequestError):
        Load(**changes)


def test_the_named_loads_are_those_of_the_guide() -> None:
    assert list(SCENARIOS) == ["burst", "shared-prefix", "cached-ttft", "intruder"]
    burst = SCENARIOS["burst"]
    assert (burst.requests, burst.concurrency, burst.prompt_tokens, burst.output_tokens) == (64, 32, 64, 64)


@pytest.mark.parametrize("values", [(), (5.0,), (0.0, 0.0), tuple(float(i) for i in range(1000))])
def test_the_plot_is_svg_with_four_panels_whose_lines_stay_inside(values: tuple[float, ...]) -> None:
    samples = Samples(values, values, values, values, values, tuple((v, 1.0) for v in values))
    result = {
        "model": "<m>\x07",
        "scenario": "burst",
        "completed": 1,
        "requests": 2,
        "output_tokens_per_s": 3.0,
    }
    picture = ElementTree.fromstring(plot_run(result, samples))
    width, height = float(picture.attrib["width"]), float(picture.attrib["height"])
    lines = list(picture.iter(f"{SVG}polyline"))
    assert len(lines) == (4 if values else 1)
    for line in lines:
        for point in line.attrib["points"].split():
            x, y = map(float, point.split(","))
            assert 0 <= x <= width
            assert 0 <= y <= height
    titles = [text.text for text in picture.iter(f"{SVG}text") if text.attrib.get("font-weight") == "bold"]
    assert len(titles) == 5
    assert titles[0] is not None
    assert titles[0].startswith("<m>?, burst: 1 of 2 requests, 3 output tokens/s")
