"""The load generator against a small endpoint over real sockets, and its command line."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from tests.unit.bench.serve_fakes import Answer, FakeEndpoint, listening
from typer.testing import CliRunner

from stoker.api.errors import RequestError, StokerError, UnavailableError
from stoker.bench.serve import Serving, measure_serving
from stoker.bench.serve_scenarios import SCENARIOS, Load
from stoker.cli.app import build_app

SMALL = Load(requests=6, concurrency=3, prompt_tokens=5, output_tokens=4, shared_prefix_tokens=7, warmup=1)
PROBES = 1  # streamed requests before the warm-up, if nothing is refused


@contextmanager
def _served(answer: Answer) -> Iterator[str]:
    """An endpoint in a thread of its own, as the load generator runs a loop of its own."""
    ready, stop, urls = threading.Event(), asyncio.Event(), []
    loops: list[asyncio.AbstractEventLoop] = []

    async def run() -> None:
        loops.append(asyncio.get_running_loop())
        async with listening(answer) as url:
            urls.append(url)
            ready.set()
            await stop.wait()

    thread = threading.Thread(target=lambda: asyncio.run(run()))
    thread.start()
    ready.wait(10)
    try:
        yield urls[0]
    finally:
        loops[0].call_soon_threadsafe(stop.set)
        thread.join(10)
        assert not thread.is_alive()


def _measure(
    fake: FakeEndpoint, load: Load = SMALL, *, seed: int = 1, **serving: Any
) -> tuple[dict[str, Any], list[str]]:
    warned: list[str] = []
    with _served(fake.answer) as url:
        result, _ = measure_serving(
            Serving(url, **serving), load, seed=seed, scenario="test", warn=warned.append
        )
    assert result["warnings"] == warned
    json.dumps(result, allow_nan=False)
    return result, warned


def test_prompts_are_token_ids_of_the_asked_number_with_one_prefix_and_different_ends() -> None:
    fake = FakeEndpoint()
    result, warned = _measure(fake)
    assert warned == []
    assert (result["completed"], result["errors"], result["unlike_length"]) == (6, {}, 0)
    assert (result["model"], result["prompts"], result["tokens_counted_by"]) == ("fake", "token ids", "usage")
    assert result["output_tokens_total"] == 24
    assert result["output_tokens_per_s"] > 0
    assert result["ttft_ms_p50"] <= result["e2e_ms_p50"]
    assert result["client_cpu_us_per_token"] > 0
    warm, *counted = [body["prompt"] for body in fake.asked[PROBES:]]
    assert len(counted) == 6
    assert {len(prompt) for prompt in counted} == {12}
    assert len({tuple(prompt[:7]) for prompt in counted}) == 1
    assert len({tuple(prompt[7:]) for prompt in counted}) == 6
    assert tuple(warm[:7]) != tuple(counted[0][:7])
    assert 1 not in {token for prompt in counted for token in prompt}  # the begin token is not drawn
    body = fake.asked[-1]
    assert (body["max_tokens"], body["ignore_eos"], body["temperature"]) == (4, True, 0.0)


def test_the_seed_decides_the_prompts() -> None:
    bodies = []
    for seed in (1, 1, 2):
        fake = FakeEndpoint()
        _measure(fake, seed=seed)
        bodies.append(sorted(json.dumps(body) for body in fake.asked[PROBES:]))
    assert bodies[0] == bodies[1]
    assert not set(bodies[0]) & set(bodies[2])


def test_a_warm_up_with_the_prefix_sends_the_same_prefix() -> None:
    fake = FakeEndpoint()
    _measure(fake, Load(requests=2, concurrency=1, shared_prefix_tokens=30, prefix_is_cached=True, warmup=2))
    assert len({tuple(body["prompt"][:30]) for body in fake.asked[PROBES:]}) == 1


@pytest.mark.parametrize("overhead", [0, 3])
@pytest.mark.parametrize("api", ["completions", "chat"])
def test_text_prompts_have_the_asked_number_of_tokens_too(api: str, overhead: int) -> None:
    fake = FakeEndpoint(takes_ids=False, overhead_tokens=overhead)
    result, warned = _measure(fake, api=api)
    assert result["prompts"] == "text"
    assert result["prompt_tokens_mean"] == 12.0
    assert [text for text in warned if "asked" in text] == []
    if api == "completions":
        assert any("does not take token ids" in text for text in warned)
    texts = [
        body["messages"][0]["content"] if api == "chat" else body["prompt"] for body in fake.asked[PROBES:]
    ]
    assert len(set(texts)) == len(texts)


def test_without_tokenize_prompts_are_text() -> None:
    result, _ = _measure(FakeEndpoint(has_tokenize=False))
    assert (result["prompts"], result["prompt_tokens_mean"]) == ("text", 12.0)


def test_a_prompt_shorter_than_what_the_server_adds_is_refused() -> None:
    with pytest.raises(RequestError, match="adds"):
        _measure(FakeEndpoint(overhead_tokens=50), api="chat")


def test_refused_fields_are_left_out_with_a_warning() -> None:
    fake = FakeEndpoint(refuses=frozenset({"ignore_eos", "return_token_ids"}))
    result, warned = _measure(fake, count_ids=True)
    assert result["completed"] == 6
    assert sum("ignore_eos" in text for text in warned) == 1
    assert sum("return_token_ids" in text for text in warned) == 1
    assert "ignore_eos" not in fake.asked[-1]
    assert fake.asked[-1]["stream_options"] == {"include_usage": True}


def test_without_usage_events_are_counted_with_a_warning() -> None:
    result, warned = _measure(FakeEndpoint(refuses=frozenset({"stream_options"})))
    assert result["tokens_counted_by"] == "events"
    assert result["output_tokens_total"] == 24
    assert any("no usage" in text for text in warned)


def test_several_tokens_in_one_event_are_counted() -> None:
    for count_ids, counted_by in ((True, "token_ids"), (False, "usage")):
        result, _ = _measure(FakeEndpoint(tokens_an_event=2), count_ids=count_ids)
        assert (result["output_tokens_total"], result["tokens_counted_by"]) == (24, counted_by)


@pytest.mark.parametrize(
    ("failure", "kind"),
    [
        ("busy", "http_429"),
        ("cut", "closed"),
        ("error", "stream_error"),
        ("hang", "timeout"),
    ],
)
def test_errors_are_counted_not_raised(failure: str, kind: str) -> None:
    fake = FakeEndpoint(fail=lambda number: failure if number in (4, 6) else None)
    result, _ = _measure(fake, timeout_s=0.5)
    assert result["errors"] == {kind: 2}
    assert result["completed"] == 4
    assert result["output_tokens_total"] == 16
    assert result["error_examples"][kind]


def test_a_dropped_connection_is_tried_once_more_on_a_new_one() -> None:
    one_by_one = Load(requests=6, concurrency=1, output_tokens=4, warmup=1)
    result, _ = _measure(FakeEndpoint(fail=lambda n: "drop" if n > PROBES + 2 else None), one_by_one)
    assert (result["errors"], result["completed"], result["retries"]) == ({"closed": 5}, 1, 1)
    result, _ = _measure(FakeEndpoint(fail=lambda n: "drop" if n == PROBES + 5 else None), one_by_one)
    assert (result["errors"], result["completed"], result["retries"]) == ({}, 6, 1)


def test_a_missing_done_is_no_error() -> None:
    result, _ = _measure(FakeEndpoint(fail=lambda number: "no done"))
    assert (result["completed"], result["errors"]) == (6, {})


def test_poisson_arrivals_do_not_wait_for_answers() -> None:
    load = Load(requests=10, rate=200.0, output_tokens=4, warmup=0)
    result, _ = _measure(FakeEndpoint(token_s=0.1), load)
    assert (result["completed"], result["concurrency"], result["rate"]) == (10, None, 200.0)
    assert result["duration_s"] < 10 * 0.4 / 3  # one after the other: 4 s


def test_the_intruder_comes_to_running_streams() -> None:
    fake = FakeEndpoint(token_s=0.002)
    load = Load(requests=3, concurrency=3, output_tokens=60, intruder_tokens=50, warmup=0)
    result, _ = _measure(fake, load)
    assert [len(body["prompt"]) for body in fake.asked[PROBES:]] == [64, 64, 64, 50]
    assert result["completed"] == 3
    assert result["intruder_error"] is None
    assert result["intruder_ttft_ms"] > 0
    assert result["itl_during_intruder_ms_p50"] > 0
    assert result["itl_ratio_p99_p50"] == pytest.approx(result["itl_ms_p99"] / result["itl_ms_p50"], abs=2e-3)


def test_streams_that_end_at_once_leave_nobody_to_disturb() -> None:
    load = Load(requests=2, concurrency=2, output_tokens=2, intruder_tokens=50, warmup=0)
    result, _ = _measure(FakeEndpoint(), load)
    assert (result["completed"], result["intruder_ttft_ms"]) == (2, None)
    assert "no stream" in result["intruder_error"]


def test_who_does_not_answer_or_refuses_is_an_error_in_words() -> None:
    with pytest.raises(UnavailableError, match="nobody answers"):
        measure_serving(Serving("http://127.0.0.1:1"), SMALL, seed=1, scenario="test", warn=print)
    with pytest.raises(UnavailableError, match="warm-up"):
        _measure(FakeEndpoint(fail=lambda number: "busy" if number > PROBES else None))
    with pytest.raises(RequestError, match="temperature is not known"):
        _measure(FakeEndpoint(refuses=frozenset({"temperature"})))
    with pytest.raises(RequestError, match="no such path"):
        _measure(_NoGenerations())


class _NoGenerations(FakeEndpoint):
    async def _route(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        await super()._route(path if path == "/v1/models" else "/nothing", body, writer)


def test_the_command_prints_json_and_draws_a_plot(tmp_path: Path) -> None:
    plot = tmp_path / "run.svg"
    with _served(FakeEndpoint().answer) as url:
        command = ["bench", "serve", "--url", url, "--requests", "4", "--output-tokens", "3", "--seed", "5"]
        found = CliRunner().invoke(build_app(), [*command, "--json", "--plot", str(plot)])
        assert found.exit_code == 0, found.output
        result = json.loads(found.stdout)
        assert (result["completed"], result["output_tokens_total"], result["seed"]) == (4, 12, 5)
        assert (result["scenario"], result["concurrency"]) == ("burst", 32)
        assert plot.read_text(encoding="utf-8").startswith("<svg")
        found = CliRunner().invoke(build_app(), [*command, "--scenario", "cached-ttft"])
        assert found.exit_code == 0, found.output
        assert "time to first token" in found.stdout


def test_a_plot_that_cannot_be_written_does_not_cost_the_figures(tmp_path: Path) -> None:
    with _served(FakeEndpoint().answer) as url:
        command = ["bench", "serve", "--url", url, "--requests", "2", "--output-tokens", "3", "--json"]
        found = CliRunner().invoke(build_app(), [*command, "--plot", str(tmp_path / "no" / "such.svg")])
    assert isinstance(found.exception, RequestError)
    assert json.loads(found.stdout)["completed"] == 2


def test_the_command_fails_where_nothing_was_answered() -> None:
    fake = FakeEndpoint(fail=lambda number: "busy" if number > PROBES else None)
    with _served(fake.answer) as url:
        found = CliRunner().invoke(build_app(), ["bench", "serve", "--url", url, "--warmup", "0", "--json"])
    assert found.exit_code == 1
    assert json.loads(found.stdout)["errors"] == {"http_429": 64}


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--scenario", "x"], ", ".join(SCENARIOS)),
        (["--api", "x"], "completions, chat"),
        (["--url", "x"], "http://HOST"),
        (["--rate", "1", "--concurrency", "2"], "one of them"),
        (["--rate", "nan"], "rate is nan"),
        (["--timeout", "nan"], "--timeout is nan"),
        (["--temperature", "inf"], "--temperature inf"),
        (["--warmup", "1000000000"], "the prompts have"),
        (["--scenario", "intruder", "--requests", "5"], "one request for each stream"),
    ],
)
def test_wrong_options_are_refused_in_words(options: list[str], text: str) -> None:
    found = CliRunner().invoke(build_app(), ["bench", "serve", *options])
    assert isinstance(found.exception, StokerError)
    assert text in str(found.exception)


def test_bench_still_takes_a_model_wherever_its_options_stand(monkeypatch: pytest.MonkeyPatch) -> None:
    measured: list[tuple[str, int | None]] = []

    def bench_model(model: str, *, threads: int | None, runs: int, progress: Any) -> dict[str, Any]:
        measured.append((model, threads))
        return {"model": model}

    compose = sys.modules.get("stoker.cli.compose") or __import__("stoker.cli.compose", fromlist=["x"])
    monkeypatch.setattr(compose, "bench_model", bench_model)
    for words in (
        ["./serve", "--threads", "2"],
        ["--threads", "2", "./serve"],
        ["-t", "2", "--json", "serve"],
    ):
        found = CliRunner().invoke(build_app(), ["bench", *words])
        assert found.exit_code == 0, found.output
    assert measured == [("./serve", 2), ("./serve", 2), ("serve", 2)]
    shown = CliRunner().invoke(build_app(), ["bench", "--help"]).stdout
    assert "stoker bench [OPTIONS]" in shown
    assert "stoker bench serve" in shown
    assert "stoker bench serve [OPTIONS]" in CliRunner().invoke(build_app(), ["bench", "serve", "-h"]).stdout
