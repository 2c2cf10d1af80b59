"""The part of docs/benchmarks.md about serving, from the results that bench/serve.py writes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path("bench") / "results" / "serve.json"

# (scenario, figure, its name in the table, digits)
ROWS = (
    ("burst", "output_tokens_per_s", "64 requests, 32 at a time, 64 in, 64 out: output tokens/s", 0),
    ("burst", "ttft_ms_p50", "- time to first token, median ms", 0),
    ("burst", "itl_ms_p50", "- inter-token latency, median ms", 1),
    ("burst", "itl_ms_p99", "- inter-token latency, 99th percentile ms", 1),
    ("shared-prefix", "output_tokens_per_s", "behind a shared prefix of 1 024: output tokens/s", 0),
    ("shared-prefix", "ttft_ms_p50", "- time to first token, median ms", 0),
    ("shared-prefix", "itl_ms_p50", "- inter-token latency, median ms", 1),
    ("cached-ttft", "ttft_ms_p50", "1 024 cached + 16 new, alone: time to first token, median ms", 1),
    ("intruder", "itl_ms_p50", "2 000 tokens arrive at 32 streams: their inter-token median ms", 1),
    ("intruder", "itl_ms_p99", "- 99th percentile ms", 1),
    ("intruder", "itl_ratio_p99_p50", "- 99th percentile over median", 2),
    ("intruder", "intruder_ttft_ms", "- the newcomer's time to first token, ms", 0),
)


def serving_section(root: Path) -> list[str]:
    """Lines of the section; none where nothing was measured yet."""
    path = root / RESULTS
    return list(_section(json.loads(path.read_text(encoding="utf-8")))) if path.exists() else []


def serving_table(results: dict[str, Any]) -> list[str]:
    """A row for each figure, a column for each server, the engine without HTTP among them."""
    engines = results["engines"]
    lines = ["| " + " | ".join([results["model"], *engines]) + " |", "|---" + "|---:" * len(engines) + "|"]
    for scenario, figure, label, digits in ROWS:
        found = [engine["scenarios"].get(scenario, {}).get(figure) for engine in engines.values()]
        if any(value is not None for value in found):
            cells = ["-" if value is None else f"{value['median']:,.{digits}f}" for value in found]
            lines.append("| " + " | ".join([label, *cells]) + " |")
    starts = [engine.get("healthy_s") for engine in engines.values()]
    cells = ["-" if value is None else f"{value:.2f}" for value in starts]
    lines.append("| " + " | ".join(["from start to healthy, seconds", *cells]) + " |")
    return lines


def _section(results: dict[str, Any]) -> Iterator[str]:
    yield from ("## Serving", "")
    yield (
        f"{results['machine']['cpu']}, {results['threads']} threads, {results['date']}; the load generator on"
        f" the same machine; medians of {results['runs']} runs."
    )
    versions = ", ".join(f"{name} {engine['version']}" for name, engine in results["engines"].items())
    yield f"Versions: {versions}."
    yield ""
    yield from serving_table(results)
    yield ""
    yield from (
        "`python -m bench.serve` writes this part: each server in a process of its own, in turns, scenario",
        "by scenario, with the same prompts of random token ids, and greedy answers of an exact length,",
        "streamed. `engine` is the same model in a process without HTTP, given all requests at once, 32 of",
        "them running at a time.",
    )
    if results["http_share"]:
        yield f"At 32 at a time the server has {results['http_share']:.0%} of the engine's throughput."
    yield "[The guide](guides/measure.md) explains the figures; `bench/results/serve.json` has every run."
    yield ""
