"""`make bench`: Stoker beside llama.cpp on this machine, in one run, workload by workload in turns.

Writes bench/results/DATE-CPU-THREADS.json, and from it docs/benchmarks.md, docs/benchmarks.svg, README.
"""

from __future__ import annotations

import argparse
import dataclasses
import datetime
import json
import os
import re
import statistics
import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from bench.report import write_report
from bench.worker import Worker

from stoker import __version__
from stoker.bench import WORKLOADS, Decode, Prefill
from stoker.bench.cold_start import measure_cold_start
from stoker.bench.machine import describe_machine, kernel_target, measure_limits
from stoker.kernels.cores import physical_cores
from stoker.weights.gguf import GGUFFile
from stoker.weights.pull import pull

ROOT = Path(__file__).resolve().parents[1]
MODELS = ("smollm2", "gemma3-270m")


def main() -> None:
    """Measure, write the results, print the table."""
    options = _options()
    machine = describe_machine()
    print(
        f"{machine['cpu']}, {options.threads} threads; {options.runs} runs of each, medians", file=sys.stderr
    )
    results: dict[str, Any] = {
        "date": datetime.date.today().isoformat(),
        "stoker": __version__,
        "machine": machine,
        "limits": measure_limits(options.threads),
        "threads": options.threads,
        "target": kernel_target(),
        "runs": options.runs,
        "models": {},
    }
    for name in options.models:
        results["models"][name] = measure_model(name, options.threads, options.runs, options.workloads)
    if options.scratch:
        print(json.dumps(results, indent=2))
        return
    cpu = re.sub(r"[^a-z0-9]+", "-", machine["cpu"].lower()).strip("-")
    path = ROOT / "bench" / "results" / f"{results['date']}-{cpu}-{options.threads}-threads.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=2) + "\n", encoding="utf-8")
    print(write_report(results, ROOT))
    limits = results["limits"]
    print(f"\nthis machine: {limits['dram_gb_s']:.1f} GB/s DRAM read, {limits['int8_tops']:.2f} int8 TOPS")
    print(f"wrote {path.relative_to(ROOT)}, docs/benchmarks.md, docs/benchmarks.svg", file=sys.stderr)


def measure_model(name: str, threads: int, runs: int, workloads: list[str]) -> dict[str, Any]:
    """Rates of every engine for every workload: {"stoker": {"decode_1": {"median", "low", "high"}}, ...}."""
    path = pull(name)
    rates: dict[str, dict[str, list[float]]] = {}
    with ExitStack() as stack:
        workers = [stack.enter_context(worker) for worker in _open_workers(path, threads)]
        versions = {worker.name: worker.facts["version"] for worker in workers}
        for number in range(runs + 1):
            for workload in workloads:
                for worker in workers:
                    rate = worker.rate(_request(WORKLOADS[workload]))
                    if number > 0:  # the first round warms caches and page tables
                        rates.setdefault(worker.name, {}).setdefault(workload, []).append(rate)
                        print(f"{name} {workload} {worker.name}: {rate:.0f} tokens/s", file=sys.stderr)
    cold = measure_cold_start(path, threads=threads, runs=max(3, runs))
    with GGUFFile.open(path) as file:
        tensor_bytes = sum(tensor.n_bytes for tensor in file.tensors.values())
    return {
        "file": path.name,
        "file_bytes": path.stat().st_size,
        "tensor_bytes": tensor_bytes,
        "versions": versions,
        "cold_start_s": round(cold.first_token_s, 3),
        "peak_memory_bytes": cold.peak_memory_bytes,
        "rates": {engine: {w: _summary(values) for w, values in by.items()} for engine, by in rates.items()},
    }


def _open_workers(path: Path, threads: int) -> list[Worker]:
    llama = os.environ.get("STOKER_BENCH_LLAMA_PYTHON") or str(
        ROOT / "bench" / ".venv-llama" / "bin" / "python"
    )
    workers = [Worker("stoker", [sys.executable, "-m", "bench.stoker_worker", str(path), str(threads)])]
    if Path(llama).exists():
        script = str(ROOT / "bench" / "peers" / "llama_cpp_worker.py")
        workers.append(Worker("llama.cpp", [llama, script, str(path), str(threads)]))
    else:
        print("llama.cpp is left out: bench/peers/llama_cpp.sh has not built it", file=sys.stderr)
    return workers


def _request(workload: Prefill | Decode) -> dict[str, Any]:
    return {"kind": type(workload).__name__.lower(), **dataclasses.asdict(workload)}


def _summary(values: list[float]) -> dict[str, float]:
    return {
        "median": round(statistics.median(values), 1),
        "low": round(min(values), 1),
        "high": round(max(values), 1),
    }


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", nargs="+", default=list(MODELS), help="known names")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each workload, 3 or more")
    parser.add_argument("--workloads", nargs="+", default=list(WORKLOADS), choices=list(WORKLOADS))
    parser.add_argument("--scratch", action="store_true", help="print the results instead of writing files")
    options = parser.parse_args()
    if options.runs < 3 and not options.scratch:
        parser.error("--runs is less than 3: a median of two is a mean; --scratch allows it")
    return options


if __name__ == "__main__":
    main()
