"""Speed-ups of drafters as an SVG: a panel for each kind of work, bars by concurrency."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from html import escape
from types import MappingProxyType
from typing import Any, Final

PANEL_WIDTH, PANEL_HEIGHT, MARGIN, HEAD = 420, 220, 50, 70
_COLOURS: Final[Mapping[str, str]] = MappingProxyType(
    {
        "prediction": "#94a3b8",
        "ngram": "#0e7490",
        "suffix": "#7c3aed",
        "lookahead": "#15803d",
        "model": "#b45309",
        "auto": "#c2410c",
    }
)
_OTHER_COLOUR: Final = "#374151"


def plot_speedups(result: Mapping[str, Any]) -> str:
    """The SVG's text, of what `measure_speculation` gives."""
    rows = [row for row in result["rows"] if row["drafter"] != "plain"]
    workloads = list(dict.fromkeys(row["workload"] for row in rows))
    most = max([row["speedup"] for row in rows] + [1.2]) * 1.05
    width = 2 * (PANEL_WIDTH + 2 * MARGIN)
    height = HEAD + -(-len(workloads) // 2) * (PANEL_HEIGHT + 2 * MARGIN)
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
        f' viewBox="0 0 {width} {height}" font-family="sans-serif" font-size="13" fill="#374151">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        f'<text x="{MARGIN}" y="28" font-weight="bold">{escape(result["model"])}: tokens/s with drafts '
        f"over tokens/s without, medians of {result['runs']} runs</text>",
    ]
    for number, drafter in enumerate(dict.fromkeys(row["drafter"] for row in rows)):
        x = MARGIN + 110 * number
        lines += [
            f'<rect x="{x}" y="42" width="12" height="12" fill="{_COLOURS.get(drafter, _OTHER_COLOUR)}"/>',
            f'<text x="{x + 18}" y="53">{escape(drafter)}</text>',
        ]
    for number, workload in enumerate(workloads):
        x = MARGIN + number % 2 * (PANEL_WIDTH + 2 * MARGIN)
        y = HEAD + MARGIN // 2 + number // 2 * (PANEL_HEIGHT + 2 * MARGIN)
        lines += _panel(x, y, workload, [row for row in rows if row["workload"] == workload], most)
    return "\n".join([*lines, "</svg>", ""])


def _panel(x: int, y: int, workload: str, rows: list[Mapping[str, Any]], most: float) -> Iterator[str]:
    def at(speedup: float) -> float:
        return y + PANEL_HEIGHT * (1 - speedup / most)

    yield f'<text x="{x}" y="{y - 6}" font-weight="bold">{escape(workload)}</text>'
    for tick in range(1, int(most) + 1):
        yield (
            f'<line x1="{x}" x2="{x + PANEL_WIDTH}" y1="{at(tick):.1f}" y2="{at(tick):.1f}" '
            'stroke="#d1d5db"/>'
        )
        yield f'<text x="{x - 30}" y="{at(tick) + 4:.1f}">{tick} x</text>'
    groups = list(dict.fromkeys(row["concurrency"] for row in rows))
    for place, concurrency in enumerate(groups):
        bars = [row for row in rows if row["concurrency"] == concurrency]
        group = PANEL_WIDTH / len(groups)
        width = group * 0.8 / len(bars)
        for number, row in enumerate(bars):
            left, top = x + place * group + number * width, at(row["speedup"])
            colour = _COLOURS.get(row["drafter"], _OTHER_COLOUR)
            yield (
                f'<rect x="{left:.1f}" y="{top:.1f}" width="{width * 0.9:.1f}" '
                f'height="{y + PANEL_HEIGHT - top:.1f}" fill="{colour}"/>'
            )
        yield f'<text x="{x + place * group:.1f}" y="{y + PANEL_HEIGHT + 18}">{concurrency} at once</text>'
