"""From one result file to a table, a plot, and the README's table. The plot is a few SVG rectangles.

`python -m bench.report` writes them again from the newest file in bench/results.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from html import escape
from pathlib import Path
from typing import Any

from bench.serve_report import serving_section
from bench.speculation_report import speculation_section

BEGIN, END = "<!-- begin: written by bench/report.py -->", "<!-- end -->"
PEER = "llama.cpp"

BAR_HEIGHT, ROW_HEIGHT, LABEL_WIDTH, PLOT_WIDTH, VALUE_WIDTH = 16, 24, 150, 520, 190
OURS_COLOUR, PEER_COLOUR, TEXT_COLOUR = "#c2410c", "#9ca3af", "#374151"


def write_report(results: dict[str, Any], root: Path) -> str:
    """Write docs/benchmarks.md, docs/benchmarks.svg and the README's table; the table's text."""
    table = "\n".join(_table(results)).strip()
    (root / "docs" / "benchmarks.svg").write_text(plot(results), encoding="utf-8")
    page = ["# Benchmarks", "", *_introduction(results), "", table, "", "![The same as bars](benchmarks.svg)"]
    page += ["", *_method(), "", *serving_section(root), *speculation_section(root)]
    (root / "docs" / "benchmarks.md").write_text("\n".join(page), encoding="utf-8")
    readme = root / "README.md"
    if readme.exists():
        text = readme.read_text(encoding="utf-8")
        readme.write_text(replace_block(text, f"{_machine(results)}\n\n{table}"), encoding="utf-8")
    return table


def replace_block(text: str, block: str) -> str:
    """`text` with what stands between the two marks replaced. Raises ValueError if a mark is missing."""
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not mark or not end:
        raise ValueError(f"the text lacks the lines {BEGIN} and {END}")
    return f"{before}{BEGIN}\n{block}\n{END}{after}"


def _machine(results: dict[str, Any]) -> str:
    return (
        f"{results['machine']['cpu']}, {results['threads']} threads, {results['date']};"
        f" medians of {results['runs']} runs, tokens/s."
    )


def _introduction(results: dict[str, Any]) -> list[str]:
    limits = results["limits"]
    versions = {name: v for model in results["models"].values() for name, v in model["versions"].items()}
    return [
        _machine(results),
        "",
        f"The machine's limits, measured in the same run: {limits['dram_gb_s']:.1f} GB/s DRAM read,"
        f" {limits['int8_tops']:.2f} int8 TOPS.",
        "Versions: " + ", ".join(f"{name} {version}" for name, version in versions.items()) + ".",
    ]


def _table(results: dict[str, Any]) -> Iterator[str]:
    for name, model in results["models"].items():
        rates = model["rates"]
        yield f"| {name} ({model['file']}) | Stoker | {PEER} | ratio |"
        yield "|---|---:|---:|---:|"
        for workload, ours in rates["stoker"].items():
            theirs = rates.get(PEER, {}).get(workload)
            peer_cells = ["-", "-"]
            if theirs:
                peer_cells = [f"{theirs['median']:.0f}", f"{ours['median'] / theirs['median']:.1f} x"]
            yield f"| {workload} | {ours['median']:.0f} | {' | '.join(peer_cells)} |"
        yield f"| cold start to first token | {model['cold_start_s']:.2f} s | - | - |"
        yield f"| peak memory | {model['peak_memory_bytes'] / 1e6:.0f} MB | - | - |"
        yield ""
        if bound := _bound(results, model):
            yield bound
            yield ""


def _bound(results: dict[str, Any], model: dict[str, Any]) -> str | None:
    """How near decoding alone comes to reading every weight once for each token at the measured bandwidth."""
    if "decode_1" not in model["rates"]["stoker"]:
        return None
    most = results["limits"]["dram_gb_s"] * 1e9 / model["tensor_bytes"]
    share = model["rates"]["stoker"]["decode_1"]["median"] / most
    return f"decode_1 is at {share:.0%} of what the DRAM bandwidth allows ({most:.0f} tokens/s)."


def _method() -> list[str]:
    return [
        "## How it is measured",
        "",
        "- `make bench`: each engine in its own process, in turns, workload by workload, on the same file.",
        "  One round is not counted; of the others the median stands here, the extremes in `bench/results`.",
        "- `prefill_N`: a prompt of N random token ids, in chunks of 512, logits of the last token.",
        "- `decode_B`: B sequences of 64 tokens each, then 32 steps of one token for each.",
        "  `decode_1_at_4096`: the same with one sequence of 4 096 tokens. Stoker's numbers include",
        "  its sampler (greedy); llama.cpp's end when the logits are there, as in `llama-batched-bench`.",
        "- Cold start: from the start of `python -m stoker run` to the first byte of the answer to a short",
        "  question, the file in the page cache.",
        "- Machines are noisy: compare the ratios of one run.",
    ]


def plot(results: dict[str, Any]) -> str:
    """An SVG of bars in groups: each workload's rates over llama.cpp's; without it, bars of one length."""
    rows: list[str] = []
    y = 10
    for name, model in results["models"].items():
        rows.append(_text(10, y + 16, f"{name}: tokens/s, {results['threads']} threads", bold=True))
        y += 28
        ratios = [_ratio(model, workload) for workload in model["rates"]["stoker"]]
        longest = max([1.0, *ratios])
        for workload, ratio in zip(model["rates"]["stoker"], ratios, strict=True):
            rows += _bars(y, workload, model, ratio, longest)
            y += 2 * ROW_HEIGHT
        y += 12
    width = LABEL_WIDTH + PLOT_WIDTH + VALUE_WIDTH
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{y}" viewBox="0 0 {width} {y}">'
    background = f'<rect width="{width}" height="{y}" fill="#ffffff"/>'
    return "\n".join([head, background, *rows, "</svg>", ""])


def _ratio(model: dict[str, Any], workload: str) -> float:
    theirs = model["rates"].get(PEER, {}).get(workload)
    return model["rates"]["stoker"][workload]["median"] / theirs["median"] if theirs else 1.0


def _bars(y: int, workload: str, model: dict[str, Any], ratio: float, longest: float) -> Iterator[str]:
    yield _text(10, y + 13, workload)
    ours = model["rates"]["stoker"][workload]["median"]
    yield from _bar(y, ratio / longest, OURS_COLOUR, f"Stoker {ours:.0f} ({ratio:.1f} x)")
    theirs = model["rates"].get(PEER, {}).get(workload)
    if theirs:
        yield from _bar(y + BAR_HEIGHT + 2, 1.0 / longest, PEER_COLOUR, f"{PEER} {theirs['median']:.0f}")


def _bar(y: int, share: float, colour: str, label: str) -> Iterator[str]:
    width = max(1.0, share * PLOT_WIDTH)
    yield f'<rect x="{LABEL_WIDTH}" y="{y}" width="{width:.1f}" height="{BAR_HEIGHT}" fill="{colour}"/>'
    yield _text(LABEL_WIDTH + width + 6, y + 13, label)


def _text(x: float, y: float, text: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    style = f'font-family="sans-serif" font-size="12"{weight} fill="{TEXT_COLOUR}"'
    return f'<text x="{x:.1f}" y="{y:.1f}" {style}>{escape(text)}</text>'


def main() -> None:
    """Write table, plot and README from the newest result file; say so where there is none."""
    root = Path(__file__).resolve().parents[1]
    files = sorted((root / "bench" / "results").glob("*-threads.json"))
    if not files:
        print("no results in bench/results yet: make bench writes them", file=sys.stderr)
        return
    write_report(json.loads(files[-1].read_text(encoding="utf-8")), root)


if __name__ == "__main__":
    main()
