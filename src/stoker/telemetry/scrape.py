"""One scrape: what the engines count and what was measured, as prometheus-client writes it, under our names
and vLLM's. The only module that imports prometheus-client, at the first scrape and not when a server starts.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    InfoMetricFamily,
    Metric,
)

from stoker import __version__
from stoker.api.protocols import ServedModel
from stoker.api.stats import EngineStats
from stoker.telemetry.measures import Histogram, ModelMeasures

_MODEL = "model_name"  # the label that vLLM's dashboards and autoscalers select by


@dataclass(frozen=True, slots=True)
class _EngineMetric:
    """A number of `EngineStats` and the names it has. Counters get `_total` when they are written."""

    kind: Literal["counter", "gauge"]
    names: tuple[str, ...]
    says: str
    value: Callable[[EngineStats], float]


def _held_share(stats: EngineStats) -> float:
    return stats.blocks_held / stats.blocks if stats.blocks else 0.0


_ENGINE_METRICS: Sequence[_EngineMetric] = (
    _EngineMetric(
        "gauge",
        ("stoker_sequences_running", "vllm:num_requests_running"),
        "Sequences that take part in steps.",
        lambda stats: stats.running,
    ),
    _EngineMetric(
        "gauge",
        ("stoker_sequences_waiting", "vllm:num_requests_waiting"),
        "Sequences that are queued or preempted.",
        lambda stats: stats.waiting,
    ),
    _EngineMetric(
        "gauge",
        ("vllm:kv_cache_usage_perc",),
        "Share of the KV blocks that sequences hold, 0 to 1.",
        _held_share,
    ),
    _EngineMetric(
        "counter", ("stoker_engine_steps",), "Steps the engine has made.", lambda stats: stats.steps
    ),
    _EngineMetric(
        "counter",
        ("stoker_preemptions", "vllm:num_preemptions"),
        "Sequences that gave their blocks back before their end.",
        lambda stats: stats.preemptions,
    ),
    _EngineMetric(
        "counter",
        ("stoker_prompt_tokens", "vllm:prompt_tokens"),
        "Prompt tokens of requests that were taken.",
        lambda stats: stats.prompt_tokens,
    ),
    _EngineMetric(
        "counter",
        ("stoker_generated_tokens", "vllm:generation_tokens"),
        "Tokens that were generated.",
        lambda stats: stats.generated_tokens,
    ),
    _EngineMetric(
        "counter",
        ("stoker_drafted_tokens", "vllm:spec_decode_num_draft_tokens"),
        "Tokens that were guessed and verified beside a stream's next one.",
        lambda stats: stats.drafted_tokens,
    ),
    _EngineMetric(
        "counter",
        ("stoker_accepted_tokens", "vllm:spec_decode_num_accepted_tokens"),
        "Guessed tokens that the model said as well; each saved a step of its stream.",
        lambda stats: stats.accepted_tokens,
    ),
    _EngineMetric(
        "counter",
        ("stoker_drafts", "vllm:spec_decode_num_drafts"),
        "Drafts that were verified: one for each stream and step that had any.",
        lambda stats: stats.drafts,
    ),
    _EngineMetric(
        "gauge",
        ("stoker_draft_saved_seconds",),
        "Time that drafts have saved against steps without them, estimated; falls while they cost more.",
        lambda stats: stats.draft_saved_ms / 1000,
    ),
    _EngineMetric(
        "counter",
        ("stoker_prefix_queried_tokens", "vllm:prefix_cache_queries"),
        "Prompt tokens that were looked up in the prefix cache.",
        lambda stats: stats.prefix_queries_tokens,
    ),
    _EngineMetric(
        "counter",
        ("stoker_prefix_hit_tokens", "vllm:prefix_cache_hits"),
        "Prompt tokens that the prefix cache had, in memory or on disk.",
        lambda stats: stats.prefix_hits_tokens,
    ),
    _EngineMetric(
        "counter",
        ("stoker_prefix_evicted_blocks",),
        "Blocks that left the prefix cache to make room.",
        lambda stats: stats.evictions,
    ),
    _EngineMetric(
        "counter",
        ("stoker_disk_hit_tokens",),
        "Prompt tokens that were read from the disk tier.",
        lambda stats: stats.disk_hits_tokens,
    ),
    _EngineMetric(
        "counter",
        ("stoker_engine_restarts",),
        "Times the engine's process was started again after it had died.",
        lambda stats: stats.restarts,
    ),
    _EngineMetric("gauge", ("stoker_disk_blocks",), "Blocks kept on disk.", lambda stats: stats.disk_blocks),
    _EngineMetric(
        "counter",
        ("stoker_disk_rejected_blocks",),
        "Blocks on disk that were corrupt or foreign, and were not used.",
        lambda stats: stats.disk_rejected,
    ),
)

_HISTOGRAMS: Mapping[str, tuple[tuple[str, ...], str]] = MappingProxyType(
    {
        "time_to_first_token_s": (
            ("stoker_time_to_first_token_seconds", "vllm:time_to_first_token_seconds"),
            "From being asked to the first token of any choice.",
        ),
        "queue_s": (
            ("stoker_request_queue_seconds", "vllm:request_queue_time_seconds"),
            "From being taken by the engine to the first step that computes a token of it.",
        ),
        "inter_token_s": (
            ("stoker_inter_token_latency_seconds", "vllm:inter_token_latency_seconds"),
            "Between successive tokens of a choice; tokens that come together share the time.",
        ),
        "request_s": (
            ("stoker_request_seconds", "vllm:e2e_request_latency_seconds"),
            "From being asked to the end, of requests that were answered.",
        ),
        "decode_s": (
            ("stoker_request_decode_seconds", "vllm:request_decode_time_seconds"),
            "From the first token to the end.",
        ),
        "model_wait_s": (
            ("stoker_model_wait_seconds",),
            "Until the model was there: next to nothing, unless it had to be loaded.",
        ),
        "prompt_tokens": (
            ("stoker_request_prompt_tokens", "vllm:request_prompt_tokens"),
            "Prompt tokens of a request.",
        ),
        "generated_tokens": (
            ("stoker_request_generated_tokens", "vllm:request_generation_tokens"),
            "Generated tokens of a choice.",
        ),
    }
)


# Drafts by how many tokens they had, and by how many of these were accepted: the field of `EngineStats`.
_DRAFT_HISTOGRAMS: Sequence[tuple[str, str, Callable[[EngineStats], Sequence[int]]]] = (
    (
        "stoker_draft_depth_tokens",
        "Tokens of a draft that were verified.",
        lambda stats: stats.drafts_by_tokens,
    ),
    (
        "stoker_draft_accepted_depth_tokens",
        "Tokens of a draft that were accepted.",
        lambda stats: stats.drafts_by_accepted,
    ),
)
# The kernels' tiles end at 16 rows with the token before the draft; trees go beyond.
_DEPTH_BOUNDS: Sequence[int] = (0, 1, 2, 3, 4, 5, 6, 7, 9, 11, 13, 15, 23, 31, 63)


def write_metrics(
    offered: tuple[str, ...],
    stats: list[tuple[ServedModel, EngineStats | str]],
    measures: Mapping[str, ModelMeasures],
    responses: Mapping[int, int],
) -> bytes:
    """All metrics in Prometheus' text format, of the models on offer, what their engines say, what was
    measured of their requests, and how many answers there were of each HTTP status."""
    registry = CollectorRegistry()  # of this scrape: it holds nothing but where to read
    ProcessCollector(registry=registry)  # memory, CPU time, open files, from /proc
    registry.register(_Scrape(offered, stats, measures, responses))
    return generate_latest(registry)


class _Scrape:
    """One moment's numbers, as prometheus-client collects them."""

    def __init__(
        self,
        offered: tuple[str, ...],
        stats: list[tuple[ServedModel, EngineStats | str]],
        measures: Mapping[str, ModelMeasures],
        responses: Mapping[int, int],
    ) -> None:
        self._offered = offered
        self._answers = {model.card.name: answer for model, answer in stats}
        self._ready = {model.card.name for model, answer in stats if model.ready}
        self._measures = measures
        self._responses = responses

    def collect(self) -> Iterator[Metric]:
        """The metric families, in a fixed order."""
        yield InfoMetricFamily("stoker_build", "The server's version.", {"version": __version__})
        yield from self._of_models()
        yield from self._of_engines()
        yield from self._of_requests()
        answers = CounterMetricFamily("stoker_http_responses", "Answers by HTTP status.", labels=["status"])
        for status, count in sorted(self._responses.items()):
            answers.add_metric([str(status)], count)
        yield answers

    def _of_models(self) -> Iterator[Metric]:
        states = (
            ("stoker_model_loaded", "1 while the model is loaded.", set(self._answers)),
            ("stoker_model_ready", "1 while the model can produce a token and its engine answers.",
             {name for name in self._ready if isinstance(self._answers[name], EngineStats)}),
        )  # fmt: skip
        for name, says, models in states:
            family = GaugeMetricFamily(name, says, labels=[_MODEL])
            for model in self._offered:
                family.add_metric([model], float(model in models))
            yield family

    def _of_engines(self) -> Iterator[Metric]:
        engines = [(name, stats) for name, stats in self._answers.items() if isinstance(stats, EngineStats)]
        blocks = GaugeMetricFamily("stoker_kv_blocks", "KV blocks by state.", labels=[_MODEL, "state"])
        for name, stats in engines:
            blocks.add_metric([name, "free"], stats.blocks_free)
            blocks.add_metric([name, "cached"], stats.blocks_cached)
            blocks.add_metric([name, "held"], stats.blocks_held)
        yield blocks
        for metric in _ENGINE_METRICS:
            kind = CounterMetricFamily if metric.kind == "counter" else GaugeMetricFamily
            for metric_name in metric.names:
                family = kind(metric_name, metric.says, labels=[_MODEL])
                for name, stats in engines:
                    family.add_metric([name], float(metric.value(stats)))
                yield family
        for metric_name, says, counts in _DRAFT_HISTOGRAMS:
            histograms = HistogramMetricFamily(metric_name, says, labels=[_MODEL])
            for name, stats in engines:
                histograms.add_metric([name], *_depths(counts(stats)))
            yield histograms
        positions = CounterMetricFamily(
            "vllm:spec_decode_num_accepted_tokens_per_pos",
            "Accepted tokens by their place in the draft, from 0.",
            labels=[_MODEL, "position"],
        )
        for name, stats in engines:
            for position in range(len(stats.drafts_by_accepted) - 1):
                positions.add_metric([name, str(position)], sum(stats.drafts_by_accepted[position + 1 :]))
        yield positions

    def _of_requests(self) -> Iterator[Metric]:
        measures = self._measures.items()
        requests = GaugeMetricFamily("stoker_requests_open", "Requests being answered.", labels=[_MODEL])
        errors = CounterMetricFamily(
            "stoker_request_errors",
            "Requests that were refused or failed, by class of error.",
            labels=[_MODEL, "error"],
        )
        for name, of in measures:
            requests.add_metric([name], of.open_requests)
            for error, count in sorted(of.errors_by_class.items()):
                errors.add_metric([name, error], count)
        yield requests
        yield errors
        says = "Choices that came to an end, by how."
        for metric_name, label in (
            ("stoker_choices", "finish_reason"),
            ("vllm:request_success", "finished_reason"),
        ):
            family = CounterMetricFamily(metric_name, says, labels=[_MODEL, label])
            for name, of in measures:
                for reason in ("stop", "length", "abort", "error"):  # each from the start, or a rate has gaps
                    family.add_metric([name, reason], of.choices_by_finish_reason[reason])
            yield family
        for field, (names, says) in _HISTOGRAMS.items():
            for metric_name in names:
                histograms = HistogramMetricFamily(metric_name, says, labels=[_MODEL])
                for name, of in measures:
                    histogram: Histogram = getattr(of, field)
                    histograms.add_metric([name], _cumulative(histogram), histogram.sum)
                yield histograms


def _depths(counts: Sequence[int]) -> tuple[list[tuple[str, float]], float]:
    """Buckets and sum of values that were counted one by one: `counts[i]` times i."""
    buckets = [(str(bound), float(sum(counts[: bound + 1]))) for bound in _DEPTH_BOUNDS]
    return [*buckets, ("+Inf", float(sum(counts)))], float(sum(i * count for i, count in enumerate(counts)))


def _cumulative(histogram: Histogram) -> list[tuple[str, float]]:
    """(upper bound as text, how many values were at most that), as the format wants them."""
    total = 0
    buckets = []
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        total += count
        buckets.append(("+Inf" if bound == float("inf") else f"{bound:g}", float(total)))
    return buckets
