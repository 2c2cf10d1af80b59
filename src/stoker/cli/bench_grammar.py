"""`stoker bench grammar`: how many schemas are enforced, how well, and what a mask costs."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from stoker.cli.options import JsonOption
from stoker.cli.output import print_json, print_table, step_progress

FileArgument = Annotated[
    Path,
    typer.Argument(
        metavar="FILE.jsonl",
        help='One {"schema": ..., "tests": [{"valid": true, "data": ...}]} on each line.',
        show_default=False,
    ),
]
TokenizerOption = Annotated[
    str, typer.Option("--model", metavar="MODEL", help="Whose tokens: a name, a .gguf file, or hf:user/repo.")
]


def bench_grammar(
    file: FileArgument, model: TokenizerOption = "smollm2", as_json: JsonOption = False
) -> None:
    """Compile JSON Schemas and lead their instances through the masks, token by token.

    Shares of schemas that compile, of invalid instances that are accepted and of valid ones that are rejected
    (once their properties are in the schema's order), and the time of a mask. The model computes nothing:
    only its tokenizer is used.
    """
    from stoker.bench.grammar import measure_grammars
    from stoker.cli.pull import fetch_if_missing
    from stoker.weights.store import resolve

    fetch_if_missing(model)
    with step_progress(f"bench {file.name}") as update:
        result = measure_grammars(file, resolve(model), progress=update)
    if as_json:
        print_json(result)
        return
    errors = result.pop("compile_errors")
    print_table(("WHAT", "MEASURED"), [(name, _shown(name, value)) for name, value in result.items()])
    if errors:
        print()
        print_table(("NOT COMPILED", "SCHEMAS"), [(said, str(count)) for said, count in errors.items()])


def _shown(name: str, value: Any) -> str:
    if value is None:
        return "nothing to measure"
    if name.endswith("_share"):
        return f"{value:.2%}"
    if isinstance(value, list):
        return ", ".join(value) if value else "none"
    return f"{value:,}" if isinstance(value, (int, float)) else str(value)
