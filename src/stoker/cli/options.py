"""Options that several commands share: names, help and environment variables written once."""

from __future__ import annotations

from typing import Annotated

import typer

MOST_THREADS = 256  # above any machine's worth; a typing error must not start thousands of threads

ModelArgument = Annotated[
    str,
    typer.Argument(
        metavar="MODEL",
        help="A model's name (`stoker list`), the path of a .gguf file, or hf:user/repo[:Q4_K_M].",
        show_default=False,
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        "--threads",
        "-t",
        min=1,
        max=MOST_THREADS,
        envvar="STOKER_THREADS",
        help="CPU threads. [default: one for each physical core]",
    ),
]
ContextOption = Annotated[
    int | None,
    typer.Option(
        "--context",
        "-c",
        min=1,
        envvar="STOKER_CONTEXT",
        help="Most tokens of prompt and answer together. [default: the model's full context]",
    ),
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
