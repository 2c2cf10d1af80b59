"""`stoker bench`: how fast a model is here, and, as `stoker bench serve`, how fast an endpoint answers.

A first word that is a key of MEASUREMENTS is what to measure; anything else is a model. A model file that is
called like one is given as a path: ./serve.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any

import typer
import typer.core
import typer.main

from stoker.cli.bench_grammar import bench_grammar
from stoker.cli.bench_serve import bench_serve
from stoker.cli.bench_speculation import bench_speculation
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

    `stoker bench serve` measures a server instead, `stoker bench grammar` structured output, and `stoker
    bench speculation` drafts; each has its own --help.
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


class BenchCommand(typer.core.TyperCommand):
    """`bench`, with a first word that may say what to measure.

    Not a group of commands: `stoker bench MODEL` with its options in any order is fixed, and a group would
    read the model as a command's name.
    """

    def make_context(self, info_name: str | None, args: list[str], parent: Any = None, **extra: Any) -> Any:
        """The context of the measurement that `args` name, or of this command. Called by typer."""
        if args and args[0] in MEASUREMENTS:
            name = args[0]
            return measurement(name).make_context(f"{info_name} {name}", args[1:], parent=parent, **extra)
        return super().make_context(info_name, args, parent=parent, **extra)

    def measurements(self) -> dict[str, Any]:
        """The commands behind it by their names, for the reference."""
        return {name: measurement(name) for name in MEASUREMENTS}


def measurement(name: str) -> Any:
    """The command behind `stoker bench NAME`."""
    app = typer.Typer(rich_markup_mode=None, add_completion=False)
    app.command(name)(MEASUREMENTS[name])
    return typer.main.get_command(app)


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "does not fit the model's context"
    if name.startswith(("prefill_", "decode_", "engine_")):
        return f"{value:,.1f} tokens/s"
    if isinstance(value, dict):
        return ", ".join(f"{key} {inner}" for key, inner in value.items())
    return f"{value:,}" if isinstance(value, int) else str(value)


# What `stoker bench` measures besides a model, by its name on the command line.
MEASUREMENTS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {"grammar": bench_grammar, "serve": bench_serve, "speculation": bench_speculation}
)
