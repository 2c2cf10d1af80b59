"""`stoker bench speculation`: what drafts bring, kind of work by kind of work."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stoker.cli.options import DraftModelOption, JsonOption, ModelArgument, ThreadsOption
from stoker.cli.output import print_json, print_table, step_progress

ConcurrencyOption = Annotated[
    list[int] | None,
    typer.Option(
        "--concurrency",
        min=1,
        max=64,
        help="Streams at once; may be given several times. [default: 1, 4, 16, 32]",
        show_default=False,
    ),
]


def bench_speculation(
    model: ModelArgument,
    threads: ThreadsOption = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Counted runs of each measurement.")] = 3,
    concurrency: ConcurrencyOption = None,
    draft_model: DraftModelOption = None,
    temperature: Annotated[float, typer.Option("--temperature", min=0.0, max=1000.0)] = 0.0,
    plot: Annotated[
        Path | None, typer.Option("--plot", metavar="FILE.svg", help="Draw the speed-ups.", dir_okay=False)
    ] = None,
    as_json: JsonOption = False,
) -> None:
    """Answer four kinds of prompts with and without drafts, in one run, and compare.

    Copying, reasoning, code and open chat; plain decoding beside each drafter and beside auto, which asks the
    one that promises most. The answers must be the same, and are compared.
    """
    from stoker.bench.speculation import CONCURRENCIES, measure_speculation
    from stoker.bench.speculation_plot import plot_speedups
    from stoker.cli.pull import fetch_if_missing
    from stoker.weights.store import resolve

    for name in (model, draft_model):
        if name is not None:
            fetch_if_missing(name)
    with step_progress(f"bench speculation {model}") as update:
        result = measure_speculation(
            resolve(model),
            threads=threads,
            runs=runs,
            concurrencies=tuple(concurrency or CONCURRENCIES),
            temperature=temperature,
            draft_model=draft_model,
            progress=update,
        )
    if as_json:
        print_json(result)
    else:
        print_table(
            ("WORKLOAD", "AT ONCE", "DRAFTER", "TOKENS/S", "SPEED-UP", "DECODING", "ACCEPTED", "TOKENS/STEP"),
            [_cells(row) for row in result["rows"]],
        )
    if plot is not None:
        plot.write_text(plot_speedups(result), encoding="utf-8")


def _cells(row: dict[str, Any]) -> tuple[str, ...]:
    accepted = "-" if row["acceptance"] is None else f"{row['acceptance']:.0%}"
    return (
        row["workload"],
        str(row["concurrency"]),
        row["drafter"],
        f"{row['tokens_per_s']:,.0f}",
        f"{row['speedup']:.2f} x",
        "-" if row["decode_speedup"] is None else f"{row['decode_speedup']:.2f} x",
        accepted,
        f"{row['tokens_per_step']:.2f}",
    )
