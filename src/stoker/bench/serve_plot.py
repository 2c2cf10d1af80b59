"""Distributions and throughput of one run as an SVG: four panels of lines, no plotting library."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from html import escape
from typing import Any

from stoker.bench.serve_summary import Samples, percentile

PANEL_WIDTH, PANEL_HEIGHT = 440, 240
MARGIN_LEFT, MARGIN_TOP, MARGIN_BOTTOM, MARGIN_RIGHT = 60, 44, 40, 20
HEAD_HEIGHT = 40
MOST_POINTS = 200  # of a line: more than a panel has pixels for
BINS = 60  # of the throughput's time axis
LINE_COLOUR, GRID_COLOUR, TEXT_COLOUR = "#c2410c", "#e5e7eb", "#374151"


def plot_run(result: dict[str, Any], samples: Samples) -> str:
    """The SVG's text: distributions of time to first token, between tokens and to the end; tokens/s."""
    width = 2 * (MARGIN_LEFT + PANEL_WIDTH + MARGIN_RIGHT)
    row = MARGIN_TOP + PANEL_HEIGHT + MARGIN_BOTTOM
    height = HEAD_HEIGHT + 2 * row
    column = MARGIN_LEFT + PANEL_WIDTH + MARGIN_RIGHT
    rate = result["output_tokens_per_s"]
    title = f"{result['model']}, {result['scenario']}: {result['completed']} of {result['requests']} requests"
    if rate is not None:
        title += f", {rate:,.0f} output tokens/s"
    panels = [
        _distribution(0, HEAD_HEIGHT, "time to first token, ms", samples.ttft_ms),
        _distribution(column, HEAD_HEIGHT, "inter-token latency, ms", samples.itl_ms),
        _distribution(0, HEAD_HEIGHT + row, "end to end, ms", samples.e2e_ms),
        _throughput(column, HEAD_HEIGHT + row, samples.token_times_s),
    ]
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}"'
            f' viewBox="0 0 {width} {height}">',
            f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
            _text(MARGIN_LEFT, 26, title, bold=True),
            *(line for panel in panels for line in panel),
            "</svg>",
            "",
        ]
    )


def _distribution(x: int, y: int, title: str, values: Sequence[float]) -> Iterator[str]:
    """Which share of the values is at most so large; a line at the median and at the 99th percentile."""
    ordered = sorted(values)
    most = _round_up(ordered[-1] if ordered else 1.0)
    yield from _frame(x, y, title, most, 100.0, "%")
    if not ordered:
        yield _text(x + MARGIN_LEFT + 10, y + MARGIN_TOP + 20, "nothing to show")
        return
    points = min(MOST_POINTS, max(2, len(ordered)))
    percents = [100 * i / (points - 1) for i in range(points)]
    line = [(percentile(ordered, percent) or 0.0, percent) for percent in percents]
    yield _line(x, y, [(value / most, percent / 100) for value, percent in line])
    for percent in (50, 99):
        value = percentile(ordered, percent) or 0.0
        px, py = _place(x, y, value / most, percent / 100)
        on_left = value > most / 2
        yield f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="{LINE_COLOUR}"/>'
        label = f"p{percent} {value:,.1f}"
        # Below the line, which is flat near its end and steep at its middle.
        yield _text(
            px + (-8 if on_left else 8),
            py + (14 if percent == 50 else 26),
            label,
            anchor="end" if on_left else "start",
        )


def _throughput(x: int, y: int, token_times_s: Sequence[tuple[float, float]]) -> Iterator[str]:
    end_s = token_times_s[-1][0] if token_times_s else 1.0
    bins = [0.0] * BINS
    for when_s, tokens in token_times_s:
        bins[min(BINS - 1, int(when_s / end_s * BINS)) if end_s > 0 else 0] += tokens
    rates = [tokens * BINS / end_s if end_s > 0 else 0.0 for tokens in bins]
    most = _round_up(max(rates) or 1.0)
    most_s = _round_up(end_s or 1.0)
    yield from _frame(x, y, "output tokens/s over seconds", most_s, most, "")
    line: list[tuple[float, float]] = []
    for number, rate in enumerate(rates):
        for edge in (number, number + 1):
            line.append((edge / BINS * end_s / most_s, rate / most))
    yield _line(x, y, line)


def _frame(x: int, y: int, title: str, most_x: float, most_y: float, unit: str) -> Iterator[str]:
    yield _text(x + MARGIN_LEFT, y + MARGIN_TOP - 12, title, bold=True)
    for quarter in range(5):
        share = quarter / 4
        left, line_y = _place(x, y, 0.0, share)
        yield (
            f'<line x1="{left:.1f}" y1="{line_y:.1f}" x2="{left + PANEL_WIDTH:.1f}" y2="{line_y:.1f}"'
            f' stroke="{GRID_COLOUR}"/>'
        )
        yield _text(left - 6, line_y + 4, f"{most_y * share:,.4g}{unit}", anchor="end")
        tick_x, bottom = _place(x, y, share, 0.0)
        yield _text(tick_x, bottom + 18, f"{most_x * share:,.4g}", anchor="middle")


def _place(x: int, y: int, across: float, up: float) -> tuple[float, float]:
    return x + MARGIN_LEFT + across * PANEL_WIDTH, y + MARGIN_TOP + (1 - up) * PANEL_HEIGHT


def _line(x: int, y: int, shares: Sequence[tuple[float, float]]) -> str:
    points = " ".join(f"{px:.1f},{py:.1f}" for px, py in (_place(x, y, *share) for share in shares))
    return f'<polyline points="{points}" fill="none" stroke="{LINE_COLOUR}" stroke-width="2"/>'


def _round_up(value: float) -> float:
    """The next number whose quarters are short enough to be read."""
    if value <= 0:
        return 1.0
    power = 10.0 ** math.floor(math.log10(value))
    return next(
        step * power for step in (1, 1.2, 1.6, 2, 2.4, 3.2, 4, 5, 6, 8, 10, 20) if step * power >= value
    )


def _text(x: float, y: float, text: str, *, bold: bool = False, anchor: str = "start") -> str:
    weight = ' font-weight="bold"' if bold else ""
    style = f'font-family="sans-serif" font-size="12"{weight} fill="{TEXT_COLOUR}"'
    printable = "".join(c if c.isprintable() else "?" for c in text)
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {style}>{escape(printable)}</text>'
