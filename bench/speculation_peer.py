"""llama.cpp's speculative modes on the prompts of `stoker bench speculation`, one stream at a time.

Usage: python -m bench.speculation_peer MODEL [--threads N] [--runs N] [--workloads copy,chat] [--out FILE]

Plain decoding and prompt lookup through llama-cpp-python, in the environment that bench/peers/llama_cpp.sh
makes (or of STOKER_BENCH_LLAMA_PYTHON); where there is a llama-server (STOKER_BENCH_LLAMA_SERVER, or on the
PATH), also its own modes that need no second model. The same GGUF file, the same token ids of the prompts,
greedy. The modes take turns, run by run; the first run is not counted. `speedup` is over plain decoding by
the same program, run by run, and its median. Drafts may change llama.cpp's answers: `equal_answers` is the
share that they did not.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import shutil
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bench.worker import ROOT, Worker

from stoker.api.chat import Message
from stoker.api.request import Request
from stoker.bench.machine import describe_machine
from stoker.bench.speculation import ANSWER_TOKENS, LEAST_PROMPTS
from stoker.bench.speculation_prompts import WORKLOADS, prompts_of
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.kernels.cores import physical_cores
from stoker.speculation import OFF
from stoker.weights.store import resolve

RESULTS = ROOT / "bench" / "results" / "speculation_peer.json"
# Drafts of ten tokens are llama-cpp-python's default, of two its advice for machines without a GPU.
LOOKUPS: Mapping[str, int] = {
    "llama.cpp plain": 0,
    "llama.cpp prompt-lookup": 10,
    "llama.cpp prompt-lookup, 2 tokens": 2,
}
# Modes at their defaults; and the simplest with n-grams and drafts as short as they are here.
SERVER_MODES: Mapping[str, Sequence[str]] = {
    "llama-server plain": (),
    "llama-server ngram-simple": ("--spec-type", "ngram-simple"),
    "llama-server ngram-simple, 3 for 8": (
        "--spec-type", "ngram-simple", "--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "8",
    ),
    "llama-server ngram-map-k": ("--spec-type", "ngram-map-k"),
    "llama-server ngram-mod": ("--spec-type", "ngram-mod"),
    "llama-server ngram-cache": ("--spec-type", "ngram-cache"),
}  # fmt: skip


@dataclass(slots=True)
class Measured:
    """One mode at one workload: a number for each counted run, and the answers of the last."""

    tokens_per_s: list[float] = field(default_factory=list)
    answers: list[list[int]] = field(default_factory=list)
    drafted: int = 0
    accepted: int = 0


def measure(
    workers: Mapping[str, Worker],
    prompts: Mapping[str, Sequence[Sequence[int]]],
    runs: int,
    answer_tokens: int,
) -> Iterator[dict[str, Any]]:
    """Rows of each workload, as soon as they are known. `prompts`: token ids by workload."""
    for workload, asked in prompts.items():
        measured = {name: Measured() for name in workers}
        for run in range(runs + 1):
            for name, worker in workers.items():
                _run(worker, asked, answer_tokens, measured[name], counted=run > 0)
        yield from rows_of(workload, measured)


def _run(
    worker: Worker, prompts: Sequence[Sequence[int]], answer_tokens: int, measured: Measured, *, counted: bool
) -> None:
    found = [worker.ask({"token_ids": list(ids), "answer_tokens": answer_tokens}) for ids in prompts]
    measured.answers = [one["tokens"] for one in found]
    if counted:
        tokens = sum(map(len, measured.answers))
        measured.tokens_per_s.append(tokens / sum(one["seconds"] for one in found))
        measured.drafted += sum(one.get("drafted", 0) for one in found)
        measured.accepted += sum(one.get("accepted", 0) for one in found)


def rows_of(workload: str, measured: Mapping[str, Measured]) -> list[dict[str, Any]]:
    """A row for each mode; speed-up and equality against the plain mode of the same program."""
    rows = []
    for name, one in measured.items():
        plain = measured[f"{name.split()[0]} plain"]
        ratios = [a / b for a, b in zip(one.tokens_per_s, plain.tokens_per_s, strict=True)]
        equal = sum(a == b for a, b in zip(one.answers, plain.answers, strict=True))
        rows.append(
            {
                "workload": workload,
                "concurrency": 1,
                "drafter": name,
                "tokens_per_s": round(statistics.median(one.tokens_per_s), 1),
                "speedup": round(statistics.median(ratios), 3),
                "acceptance": round(one.accepted / one.drafted, 3) if one.drafted else None,
                "equal_answers": round(equal / len(one.answers), 3),
            }
        )
    return rows


def open_workers(path: Path, threads: int, stack: ExitStack) -> dict[str, Worker]:
    """All modes that run here, by name. Exits with the reason where llama.cpp is not here at all."""
    folder = ROOT / "bench" / "peers"
    commands: dict[str, list[str]] = {}
    default = ROOT / "bench" / ".venv-llama" / "bin" / "python"
    python = os.environ.get("STOKER_BENCH_LLAMA_PYTHON") or str(default)
    if Path(python).exists():
        script = str(folder / "llama_cpp_speculation_worker.py")
        commands |= {name: [python, script, str(path), str(threads), str(n)] for name, n in LOOKUPS.items()}
    server = os.environ.get("STOKER_BENCH_LLAMA_SERVER") or shutil.which("llama-server")
    if server:
        script = str(folder / "llama_server_worker.py")
        start = [sys.executable, script, server, str(path), str(threads)]
        commands |= {name: [*start, *options] for name, options in SERVER_MODES.items()}
    if not commands:
        raise SystemExit("llama.cpp is not here: bench/peers/llama_cpp.sh builds it")
    return {name: stack.enter_context(Worker(name, command)) for name, command in commands.items()}


def prompts_for(path: Path, workloads: Sequence[str], count: int) -> dict[str, list[list[int]]]:
    """The prompts' token ids by workload, as Stoker's own measurement has them."""
    engine = load_text_engine(path, LoadOptions(threads=1, speculation=OFF), seeds=_OneSeed())
    return {
        workload: [
            engine.encode(Request(str(i), (Message("user", prompt),)))
            for i, prompt in enumerate(prompts_of(workload, count))
        ]
        for workload in workloads
    }


def main() -> None:
    """Measure, print, and write the results where `python -m bench.report` finds them."""
    options = _options()
    path = resolve(options.model)
    prompts = prompts_for(path, options.workloads.split(","), options.prompts)
    rows = []
    with ExitStack() as stack:
        workers = open_workers(path, options.threads, stack)
        versions = sorted({str(worker.facts["version"]) for worker in workers.values()})
        for row in measure(workers, prompts, options.runs, options.answer_tokens):
            rows.append(row)
            print(
                f"{row['workload']}, {row['drafter']}: {row['tokens_per_s']:.0f} tokens/s,"
                f" {row['speedup']:.2f} x",
                file=sys.stderr,
            )
    results = {
        "date": datetime.date.today().isoformat(),
        "model": path.name,
        "machine": describe_machine(),
        "threads": options.threads,
        "runs": options.runs,
        "prompts": options.prompts,
        "answer_tokens": options.answer_tokens,
        "versions": versions,
        "rows": rows,
    }
    text = json.dumps(results, indent=2) + "\n"
    print(text, end="")
    if options.out is not None:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(text, encoding="utf-8")
        print(f"wrote {options.out}", file=sys.stderr)


class _OneSeed:
    def draw(self) -> int:
        return 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="llama.cpp's speculative modes, one stream at a time")
    parser.add_argument("model", help="a name or a path")
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--runs", type=int, default=3, help="counted runs of each workload")
    parser.add_argument("--workloads", default=",".join(WORKLOADS), help="names, joined by commas")
    parser.add_argument("--prompts", type=int, default=LEAST_PROMPTS, help="of each workload")
    parser.add_argument("--answer-tokens", type=int, default=ANSWER_TOKENS)
    parser.add_argument(
        "--out",
        type=Path,
        help="write the JSON there too; the report reads " + str(RESULTS.relative_to(ROOT)),
    )
    return parser.parse_args()


if __name__ == "__main__":
    main()
