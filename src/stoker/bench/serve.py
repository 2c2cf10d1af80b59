"""`stoker bench serve`: a load on an OpenAI endpoint, and what its clients see of it."""

from __future__ import annotations

import asyncio
import gc
import random
import time
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass
from typing import Any, TypeVar

from stoker.api.errors import UnavailableError
from stoker.bench.serve_events import StreamRecord, read_stream
from stoker.bench.serve_http import Address, Client, Exchange
from stoker.bench.serve_load import poisson_arrivals, send_closed, send_open, send_with_intruder
from stoker.bench.serve_scenarios import Bodies, Load, make_bodies
from stoker.bench.serve_summary import Samples, collect_samples, spread, summarize
from stoker.bench.serve_target import Api, Target, open_target

REQUEST_TIMEOUT_S = 600.0
PROGRESS_S = 0.5  # seldom enough to cost nothing
# Reads of each stream before an intruder may come: by then all prompts are computed and steps are even.
SETTLED_READS = 16

Progress = Callable[[int, int, str], None]  # (requests ended, of how many, what is under way)
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Serving:
    """Where the load goes and how it is asked for."""

    url: str = "http://127.0.0.1:8000"
    model: str | None = None  # none: the first that the server names
    api: Api = "completions"
    api_key: str | None = None
    temperature: float = 0.0
    count_ids: bool = False  # ask for token ids to count by; costs the server some bytes
    timeout_s: float = REQUEST_TIMEOUT_S


def measure_serving(
    serving: Serving,
    load: Load,
    *,
    seed: int,
    scenario: str,
    warn: Callable[[str], None],
    progress: Progress = lambda done, total, under_way: None,
) -> tuple[dict[str, Any], Samples]:
    """Run the load; the figures that `--json` prints, and what a plot is drawn from.

    A request that fails is counted by its kind. Raises UnavailableError if nobody answers, RequestError if
    the endpoint refuses such requests altogether.
    """
    warnings: list[str] = []

    def note(text: str) -> None:
        warnings.append(text)
        warn(text)

    ran = run_in_loop(_run(serving, load, seed, note, progress))
    result: dict[str, Any] = {
        "scenario": scenario,
        "url": serving.url,
        "model": ran.target.model,
        "api": serving.api,
        "prompts": ran.target.prompts.kind,
        "seed": seed,
        "requests": load.requests,
        "concurrency": None if load.rate is not None else load.concurrency,
        "rate": load.rate,
        "prompt_tokens": load.prompt_tokens,
        "shared_prefix_tokens": load.shared_prefix_tokens,
        "output_tokens": load.output_tokens,
        "warmup": load.warmup,
    }
    since_s, until_s = ran.window
    samples = collect_samples(ran.records, since_s=since_s, until_s=until_s)
    result |= summarize(ran.records, samples, output_tokens=load.output_tokens)
    result["retries"] = ran.retries
    tokens = sum(record.output_tokens for record in ran.records)
    result["client_cpu_us_per_token"] = round(ran.cpu_s * 1e6 / tokens, 1) if tokens else None
    if load.intruder_tokens:
        result |= _intruder_figures(ran, result, load)
    _check_prompts(result, load, note)
    result["warnings"] = warnings
    return result, samples


def run_in_loop(work: Coroutine[Any, Any, T]) -> T:
    """Run to the end on uvloop, which halves the cost of a read; on asyncio's loop where it is not."""
    try:
        import uvloop
    except ImportError:  # not on Windows
        return asyncio.run(work)
    return uvloop.run(work)


@dataclass(frozen=True)
class _Ran:
    target: Target
    records: list[StreamRecord]
    intruder: StreamRecord | None
    window: tuple[float, float]  # only gaps inside count
    cpu_s: float  # of this process, while requests were open
    retries: int


async def _run(
    serving: Serving, load: Load, seed: int, warn: Callable[[str], None], progress: Progress
) -> _Ran:
    client = Client(Address.parse(serving.url), api_key=serving.api_key, clock=time.perf_counter)
    try:
        progress(0, load.requests, "asking the server")
        target = await open_target(
            client,
            model=serving.model,
            api=serving.api,
            temperature=serving.temperature,
            count_ids=serving.count_ids,
            warn=warn,
        )
        bodies = make_bodies(target, load, seed)
        progress(0, load.requests, "warming up")
        await _warm_up(client, target, bodies, load, serving.timeout_s)
        return await _measure(client, target, bodies, load, seed, serving.timeout_s, progress)
    finally:
        client.close()


async def _warm_up(client: Client, target: Target, bodies: Bodies, load: Load, timeout_s: float) -> None:
    # A prefix that is to be cached is computed once before anybody waits for it.
    concurrency = 1 if load.prefix_is_cached or load.rate is not None else load.concurrency
    found = await send_closed(
        client, target.path, bodies.warmup, concurrency=concurrency, timeout_s=timeout_s
    )
    records = [read_stream(exchange) for exchange in found]
    if records and all(record.error is not None for record in records):
        raise UnavailableError(f"every warm-up request failed ({records[0].error}): {records[0].detail}")


async def _measure(
    client: Client,
    target: Target,
    bodies: Bodies,
    load: Load,
    seed: int,
    timeout_s: float,
    progress: Progress,
) -> _Ran:
    gc.collect()
    gc.disable()  # a collection would come between a read and its time; what is kept has no cycles
    cpu_s, retries = time.process_time(), client.retries
    try:
        work = _send(client, target, bodies, load, seed, timeout_s)
        exchanges, late = await _reporting(client, work, load.requests, progress)
    finally:
        cpu_s = time.process_time() - cpu_s
        gc.enable()
    window = (float("-inf"), float("inf"))
    if late is not None:
        window = (
            max(exchange.arrivals[SETTLED_READS - 1][0] for exchange in exchanges),
            min(exchange.ended_s for exchange in exchanges),
        )
    records = [read_stream(exchange) for exchange in exchanges]
    intruder = read_stream(late) if late is not None else None
    return _Ran(target, records, intruder, window, cpu_s, client.retries - retries)


async def _send(
    client: Client, target: Target, bodies: Bodies, load: Load, seed: int, timeout_s: float
) -> tuple[list[Exchange], Exchange | None]:
    path, requests = target.path, bodies.requests
    if bodies.intruder is not None:
        return await send_with_intruder(
            client, path, requests, bodies.intruder, settled_reads=SETTLED_READS, timeout_s=timeout_s
        )
    if load.rate is not None:
        due_s = poisson_arrivals(load.rate, load.requests, random.Random(f"{seed}/arrivals"))
        return await send_open(client, path, requests, due_s=due_s, timeout_s=timeout_s), None
    return (
        await send_closed(client, path, requests, concurrency=load.concurrency, timeout_s=timeout_s),
        None,
    )


async def _reporting(client: Client, work: Awaitable[T], total: int, progress: Progress) -> T:
    """Wait for `work`, and tell now and then how many requests have ended."""
    before = client.ended

    async def report() -> None:
        while True:
            progress(client.ended - before, total, "requests")
            await asyncio.sleep(PROGRESS_S)

    reporter = asyncio.create_task(report())
    try:
        return await work
    finally:
        reporter.cancel()


def _intruder_figures(ran: _Ran, result: dict[str, Any], load: Load) -> dict[str, Any]:
    """Of the running streams: latencies while the newcomer waited, and how far the slowest step stood out."""
    late = ran.intruder
    found: dict[str, Any] = {"intruder_tokens": load.intruder_tokens, "intruder_ttft_ms": None}
    found["intruder_error"] = "no stream was left to disturb" if late is None else late.error
    during = Samples((), (), (), (), (), ())
    if late is not None and late.error is None:
        first_s = late.arrivals[0][0]
        found["intruder_ttft_ms"] = round((first_s - late.started_s) * 1e3, 3)
        during = collect_samples(ran.records, since_s=late.started_s, until_s=first_s)
    found |= spread("itl_during_intruder_ms", during.itl_ms)
    median, slow = result["itl_ms_p50"], result["itl_ms_p99"]
    found["itl_ratio_p99_p50"] = round(slow / median, 3) if median else None
    return found


def _check_prompts(result: dict[str, Any], load: Load, note: Callable[[str], None]) -> None:
    asked = load.prompt_tokens + load.shared_prefix_tokens
    found, cached = result["prompt_tokens_mean"], result["cached_tokens_mean"]
    if found is not None and found != asked:
        note(f"prompts had {found} tokens on average by the server's count; asked: {asked}")
    # Half the own part: more was not in the shared prefix, so an earlier run has sent these very prompts.
    if cached is not None and cached > load.shared_prefix_tokens + load.prompt_tokens / 2:
        note(f"{cached} tokens of each prompt were cached: they were sent before (hint: another --seed)")
