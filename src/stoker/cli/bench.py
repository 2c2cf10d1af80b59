"""`stoker bench`: how fast a model is here, and how near that is to what the machine can do."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from stoker.cli.options import JsonOption, ModelArgument, ThreadsOption
from stoker.cli.output import print_json, print_table, step_progress


def bench(
    model: ModelArgument,
    threads: ThreadsOption = None,
    runs: Annotated[int, typer.Option("--runs", min=1, help="Counted runs of each workload.")] = 5,
    as_json: JsonOption = False,
) -> None:
    """Measure a model's speed here.

    Tokens per second of prompts and answers (medians of several runs), cold start, and the machine's limits
    beside them. Takes about a minute for a small model; docs/guides/measure.md explains the names.
    """
    from stoker.cli.compose import bench_model
    from stoker.cli.pull import fetch_if_missing

    fetch_if_missing(model)
    with step_progress(f"bench {model}") as update:
        result = bench_model(model, threads=threads, runs=runs, progress=update)
    if as_json:
        print_json(result)
    else:
        print_table(("WHAT", "MEASURED"), [(name, _shown(name, value)) for name, value in result.items()])


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "does not fit the model's context"
    if name.startswith(("prefill_", "decode_", "engine_")):
        return f"{value:,.1f} tokens/s"
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)
