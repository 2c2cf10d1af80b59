"""The part of docs/benchmarks.md about speculation, from what `stoker bench speculation --json` printed.

stoker bench speculation smollm2 --json > bench/results/speculation.json
python -m bench.report
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path("bench") / "results" / "speculation.json"
PLAIN = "plain"


def speculation_section(root: Path) -> list[str]:
    """Lines of the section; none where nothing was measured yet."""
    path = root / RESULTS
    return list(_section(json.loads(path.read_text(encoding="utf-8")))) if path.exists() else []


def _section(results: dict[str, Any]) -> Iterator[str]:
    rows = results["rows"]
    drafters = [name for name in dict.fromkeys(row["drafter"] for row in rows) if name != PLAIN]
    yield from ("## Speculation", "")
    yield (
        f"{results['model']}, temperature {results['temperature']:g}, answers of at most "
        f"{results['answer_tokens']} tokens; `stoker bench speculation`, medians of {results['runs']} runs. "
        "Tokens/s without drafts, and with each drafter as a multiple of that; in brackets tokens per step "
        "of a stream."
    )
    yield ""
    yield "| work, streams at once | plain | " + " | ".join(drafters) + " |"
    yield "|---|---:" + "|---:" * len(drafters) + "|"
    for workload, concurrency in dict.fromkeys((row["workload"], row["concurrency"]) for row in rows):
        found = {
            row["drafter"]: row
            for row in rows
            if (row["workload"], row["concurrency"]) == (workload, concurrency)
        }
        cells = [f"{found[PLAIN]['tokens_per_s']:,.0f}"]
        cells += [f"{found[n]['speedup']:.2f} x ({found[n]['tokens_per_step']:.2f})" for n in drafters]
        yield f"| {workload}, {concurrency} | " + " | ".join(cells) + " |"
    yield ""
