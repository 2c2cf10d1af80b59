"""The part of docs/benchmarks.md about speculation, from what `stoker bench speculation --json` printed.

stoker bench speculation smollm2 --json > bench/results/speculation.json
python -m bench.speculation_peer smollm2 --out bench/results/speculation_peer.json
python -m bench.report
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

RESULTS = Path("bench") / "results" / "speculation.json"
PEER_RESULTS = Path("bench") / "results" / "speculation_peer.json"
PLAIN = "plain"


def speculation_section(root: Path) -> list[str]:
    """Lines of the section; none where nothing was measured yet, and of a peer only if it was measured."""
    results = _read(root / RESULTS)
    if results is None:
        return []
    peer = _read(root / PEER_RESULTS)
    return [*_section(results), *(_peer(results, peer) if peer is not None else ())]


def _read(path: Path) -> dict[str, Any] | None:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


def _section(results: dict[str, Any]) -> Iterator[str]:
    rows = results["rows"]
    drafters = [name for name in dict.fromkeys(row["drafter"] for row in rows) if name != PLAIN]
    yield from ("## Speculation", "")
    yield (
        f"{results['model']}, temperature {results['temperature']:g}, answers of at most "
        f"{results['answer_tokens']} tokens; `stoker bench speculation`, medians of {results['runs']} runs. "
        "Tokens/s without drafts, and with each drafter as a multiple of that; in brackets the multiple in "
        "steps that compute no prompt, and tokens per step of a stream. The engines take turns of a fraction "
        "of a second; measured like that on the machine of these figures, which others share, two plain ones "
        "differ by up to 4 % where there are few streams, and by less than 1 % where there are 16 or 32."
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
        cells += [_multiple(found[name]) for name in drafters]
        yield f"| {workload}, {concurrency} | " + " | ".join(cells) + " |"
    yield ""


def _multiple(row: dict[str, Any]) -> str:
    beside = [row[name] for name in ("decode_speedup", "tokens_per_step") if row.get(name) is not None]
    return f"{row['speedup']:.2f} x ({', '.join(f'{number:.2f}' for number in beside)})"


def _peer(ours: dict[str, Any], theirs: dict[str, Any]) -> Iterator[str]:
    """One stream at a time: what a mode of ours and each of theirs makes of the same prompts."""
    workloads = list(dict.fromkeys(row["workload"] for row in theirs["rows"]))
    yield from ("### Beside llama.cpp", "")
    yield (
        f"One stream at a time, greedy, {theirs['threads']} threads; of the same prompts llama.cpp's modes "
        f"answered the first {theirs['prompts']} of each kind, {_runs(theirs['runs'])} "
        f"({', '.join(theirs['versions'])}; {theirs['date']}): tokens/s, and the "
        "multiple of the same program's plain decoding. Drafts may change llama.cpp's answers; in brackets "
        "the share that they did not."
    )
    yield ""
    yield "| | " + " | ".join(workloads) + " |"
    yield "|---|" + "---:|" * len(workloads)
    for name, row_of in _modes([row for row in ours["rows"] if row["concurrency"] == 1]):
        yield f"| Stoker {name} | " + " | ".join(_cell(row_of.get(workload)) for workload in workloads) + " |"
    for name, row_of in _modes(theirs["rows"]):
        yield f"| {name} | " + " | ".join(_cell(row_of.get(workload)) for workload in workloads) + " |"
    yield ""


def _runs(count: int) -> str:
    return f"medians of {count} runs" if count > 1 else "in one run"


def _modes(rows: list[dict[str, Any]]) -> Iterator[tuple[str, dict[str, dict[str, Any]]]]:
    """Each drafter with its rows by workload, in the order of the rows."""
    for name in dict.fromkeys(row["drafter"] for row in rows):
        yield name, {row["workload"]: row for row in rows if row["drafter"] == name}


def _cell(row: dict[str, Any] | None) -> str:
    if row is None:
        return "-"
    text = f"{row['tokens_per_s']:,.0f}"
    if row["drafter"].split()[-1] == PLAIN:
        return text
    text += f", {row['speedup']:.2f} x"
    return text if "equal_answers" not in row else f"{text} ({row['equal_answers']:.0%})"
