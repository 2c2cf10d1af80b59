"""What a scrape says, read back with prometheus-client's own parser."""

from __future__ import annotations

import asyncio
import time
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families
from tests.unit.telemetry.fake_host import FakeHost, FakeModel, ManualClock, done, tokens

from stoker.api import EngineStats, Request
from stoker.api.errors import CapacityError, QueueFullError, UnavailableError
from stoker.telemetry import METRICS_CONTENT_TYPE, Metrics, ObservedHost

STATS = EngineStats(
    running=3, waiting=2, blocks=100, blocks_free=30, blocks_cached=50, blocks_held=20, steps=9,
    preemptions=1, prompt_tokens=1000, generated_tokens=500, prefix_queries_tokens=800,
    prefix_hits_tokens=600, disk_hits_tokens=64, disk_blocks=7, disk_rejected=2, evictions=4,
    drafted_tokens=21, accepted_tokens=9, drafts=5, drafts_by_tokens=(0, 1, 0, 0, 0, 4),
    drafts_by_accepted=(1, 2, 1, 0, 0, 1), draft_saved_ms=1500.0,
)  # fmt: skip


def scrape(metrics: Metrics, host) -> dict[tuple[str, ...], float]:
    """Samples by (name, label values in the labels' order)."""
    text = asyncio.run(metrics.exposition(host)).decode()
    return {
        (sample.name, *(sample.labels[label] for label in sorted(sample.labels))): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


async def _answer(request: Request, clock: ManualClock):
    clock.now_s += 0.5
    yield tokens(request, "a")
    for _ in range(3):
        clock.now_s += 0.03
        yield tokens(request, "a")
    yield done(request, 4)


def _host(metrics: Metrics) -> ObservedHost:
    clock = ManualClock()
    model = FakeModel("m", lambda request: _answer(request, clock), stats=STATS)
    return ObservedHost(FakeHost(model, offered=("later",)), metrics.measures, clock=clock)


async def _ask(host: ObservedHost) -> None:
    async with host.use("m") as model:
        async for _ in model.generate(Request("r", "x")):
            pass


def test_the_engine_s_numbers_under_both_names() -> None:
    metrics = Metrics()
    samples = scrape(metrics, _host(metrics))
    for ours, vllms, value in [
        ("stoker_sequences_running", "vllm:num_requests_running", 3),
        ("stoker_sequences_waiting", "vllm:num_requests_waiting", 2),
        ("stoker_preemptions_total", "vllm:num_preemptions_total", 1),
        ("stoker_prompt_tokens_total", "vllm:prompt_tokens_total", 1000),
        ("stoker_generated_tokens_total", "vllm:generation_tokens_total", 500),
        ("stoker_prefix_queried_tokens_total", "vllm:prefix_cache_queries_total", 800),
        ("stoker_prefix_hit_tokens_total", "vllm:prefix_cache_hits_total", 600),
    ]:
        assert samples[ours, "m"] == samples[vllms, "m"] == value
    assert samples["vllm:kv_cache_usage_perc", "m"] == pytest.approx(0.2)
    assert samples["stoker_kv_blocks", "m", "free"] == 30
    assert samples["stoker_kv_blocks", "m", "cached"] == 50
    assert samples["stoker_kv_blocks", "m", "held"] == 20
    assert samples["stoker_engine_steps_total", "m"] == 9
    assert samples["stoker_disk_hit_tokens_total", "m"] == 64
    assert samples["stoker_disk_blocks", "m"] == 7
    assert samples["stoker_disk_rejected_blocks_total", "m"] == 2
    assert samples["stoker_prefix_evicted_blocks_total", "m"] == 4
    assert (samples["stoker_model_loaded", "m"], samples["stoker_model_loaded", "later"]) == (1, 0)
    assert (samples["stoker_model_ready", "m"], samples["stoker_model_ready", "later"]) == (1, 0)


def test_drafts_their_depths_and_the_time_they_saved() -> None:
    metrics = Metrics()
    samples = scrape(metrics, _host(metrics))
    for ours, vllms, value in [
        ("stoker_drafts_total", "vllm:spec_decode_num_drafts_total", 5),
        ("stoker_drafted_tokens_total", "vllm:spec_decode_num_draft_tokens_total", 21),
        ("stoker_accepted_tokens_total", "vllm:spec_decode_num_accepted_tokens_total", 9),
    ]:
        assert samples[ours, "m"] == samples[vllms, "m"] == value
    assert samples["stoker_draft_saved_seconds", "m"] == 1.5
    for name, total, at_most in [
        ("stoker_draft_depth_tokens", 21, {"0": 0, "1": 1, "4": 1, "5": 5, "63": 5}),
        ("stoker_draft_accepted_depth_tokens", 9, {"0": 1, "1": 3, "2": 4, "4": 4, "5": 5}),
    ]:
        assert samples[f"{name}_count", "m"] == samples[f"{name}_bucket", "+Inf", "m"] == 5
        assert samples[f"{name}_sum", "m"] == total
        for bound, count in at_most.items():
            assert samples[f"{name}_bucket", bound, "m"] == count
    by_place = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    assert [samples[by_place, "m", str(place)] for place in range(5)] == [4, 2, 1, 1, 1]
    assert (by_place, "m", "5") not in samples


def test_histograms_of_requests_under_both_names() -> None:
    metrics = Metrics()
    host = _host(metrics)
    for _ in range(2):
        asyncio.run(_ask(host))
    samples = scrape(metrics, host)
    for ours, vllms, count, total in [
        ("stoker_time_to_first_token_seconds", "vllm:time_to_first_token_seconds", 2, 1.0),
        ("stoker_inter_token_latency_seconds", "vllm:inter_token_latency_seconds", 6, 0.18),
        ("stoker_request_seconds", "vllm:e2e_request_latency_seconds", 2, 1.18),
        ("stoker_request_decode_seconds", "vllm:request_decode_time_seconds", 2, 0.18),
        ("stoker_request_prompt_tokens", "vllm:request_prompt_tokens", 2, 80),
        ("stoker_request_generated_tokens", "vllm:request_generation_tokens", 2, 8),
    ]:
        for name in (ours, vllms):
            assert samples[f"{name}_count", "m"] == count
            assert samples[f"{name}_sum", "m"] == pytest.approx(total)
            assert samples[f"{name}_bucket", "+Inf", "m"] == count
    assert samples["stoker_inter_token_latency_seconds_bucket", "0.025", "m"] == 0
    assert samples["stoker_inter_token_latency_seconds_bucket", "0.04", "m"] == 6
    assert samples["vllm:request_success_total", "stop", "m"] == 2
    assert samples["vllm:request_success_total", "length", "m"] == 0
    assert samples["stoker_choices_total", "stop", "m"] == 2
    assert samples["stoker_requests_open", "m"] == 0


def test_errors_are_counted_by_class() -> None:
    async def full(request: Request):
        raise QueueFullError("full")
        yield

    metrics = Metrics()
    host = ObservedHost(FakeHost(FakeModel("m", full)), metrics.measures)
    for _ in range(3):
        with pytest.raises(QueueFullError):
            asyncio.run(_ask(host))
    assert scrape(metrics, host)["stoker_request_errors_total", "QueueFullError", "m"] == 3


def test_a_model_that_cannot_be_loaded_is_counted() -> None:
    class Full(FakeHost):
        @asynccontextmanager
        async def use(self, name: str, *, keep_alive_s: float | None = None):
            raise CapacityError("no room")
            yield

    metrics = Metrics()
    host = ObservedHost(Full(offered=("m",)), metrics.measures)
    for name in ("m", "m", "unknown"):
        with pytest.raises(CapacityError):
            asyncio.run(_use(host, name))
    samples = scrape(metrics, host)
    assert samples["stoker_request_errors_total", "CapacityError", "m"] == 2
    assert not [key for key in samples if "unknown" in key]


async def _use(host: ObservedHost, name: str) -> None:
    async with host.use(name):
        pass


def test_answers_are_counted_by_status_whoever_gave_them() -> None:
    async def app(scope, receive, send) -> None:
        await send({"type": "http.response.start", "status": scope["status"]})
        for _ in range(3):
            await send({"type": "http.response.body", "body": b"x", "more_body": True})

    sent: list[str] = []

    async def send(message) -> None:
        sent.append(message["type"])

    metrics = Metrics()
    counted = metrics.middleware(app)
    for status in (200, 429, 429):
        asyncio.run(counted({"type": "http", "status": status}, None, send))
    samples = scrape(metrics, FakeHost())
    assert samples["stoker_http_responses_total", "200"] == 1
    assert samples["stoker_http_responses_total", "429"] == 2
    assert len(sent) == 12


def test_an_engine_that_does_not_answer_spoils_no_scrape() -> None:
    metrics = Metrics()
    good = FakeModel("good", lambda r: _answer(r, ManualClock()), stats=STATS)
    down = FakeModel("down", lambda r: _answer(r, ManualClock()), stats=UnavailableError("restarting"))
    slow = FakeModel("slow", lambda r: _answer(r, ManualClock()))
    slow.stats_delay_s = 30
    started = time.monotonic()
    samples = scrape(metrics, ObservedHost(FakeHost(good, down, slow), metrics.measures))
    assert time.monotonic() - started < 5
    assert samples["stoker_sequences_running", "good"] == 3
    assert ("stoker_sequences_running", "down") not in samples
    assert ("stoker_sequences_running", "slow") not in samples
    assert [samples["stoker_model_ready", name] for name in ("good", "down", "slow")] == [1, 0, 0]
    assert samples["stoker_model_loaded", "down"] == 1


def test_two_servers_in_one_process_do_not_mix() -> None:
    first, second = Metrics(), Metrics()
    asyncio.run(_ask(_host(first)))
    assert scrape(first, _host(first))["stoker_request_seconds_count", "m"] == 1
    assert scrape(second, _host(second))["stoker_request_seconds_count", "m"] == 0


def test_a_name_with_quotes_and_line_ends_stays_one_label() -> None:
    metrics = Metrics()
    name = 'a"b\\c\nd'
    model = FakeModel(name, lambda r: _answer(r, ManualClock()), stats=STATS)
    assert scrape(metrics, ObservedHost(FakeHost(model), metrics.measures))["stoker_model_loaded", name] == 1


def test_the_guide_has_every_metric() -> None:
    metrics = Metrics()
    host = _host(metrics)
    asyncio.run(_ask(host))
    text = asyncio.run(metrics.exposition(host)).decode()
    guide = (Path(__file__).parents[3] / "docs" / "guides" / "observe.md").read_text(encoding="utf-8")
    families = [family for family in text_string_to_metric_families(text) if family.type != "unknown"]
    assert len(families) > 35
    written = {
        f.name + ("_total" if f.type == "counter" else "_info" if f.type == "info" else "") for f in families
    }
    missing = {name for name in written if not name.startswith("process_")} - set(guide.split("`"))
    assert missing == set()
    assert METRICS_CONTENT_TYPE.startswith("text/plain")
