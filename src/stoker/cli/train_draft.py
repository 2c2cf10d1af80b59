"""`stoker train-draft`: a draft head for a model, trained on what the model itself says."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Annotated

import typer

from stoker.api.errors import RequestError
from stoker.cli.options import ModelArgument, ThreadsOption
from stoker.cli.output import say, step_progress

FolderOption = Annotated[
    Path | None,
    typer.Option(
        "--folder",
        file_okay=False,
        help="Where text, states and checkpoints are kept, to go on after an interruption.  "
        "[default: train-draft-MODEL here]",
        show_default=False,
    ),
]
OutOption = Annotated[
    Path | None,
    typer.Option(
        "--out",
        metavar="FILE.gguf",
        dir_okay=False,
        help="Where to write the head.  [default: where serve and run find it]",
        show_default=False,
    ),
]
PromptsOption = Annotated[
    Path | None,
    typer.Option(
        "--prompts",
        metavar="FILE",
        dir_okay=False,
        help='What to ask the model: a line each, or JSON lines with "prompt".  [default: its own questions]',
        show_default=False,
    ),
]
KindOption = Annotated[
    str,
    typer.Option(
        "--kind",
        metavar="eagle|medusa",
        help="eagle: a layer that goes on from its own guesses; medusa: a small block for each guess.",
    ),
]
UnrollOption = Annotated[
    int | None,
    typer.Option(
        "--unroll",
        min=1,
        max=8,
        help="Draft steps to train on; of medusa, its blocks.  [default: 3, of medusa 4]",
        show_default=False,
    ),
]


def train_draft(
    model: ModelArgument,
    out: OutOption = None,
    folder: FolderOption = None,
    prompts: PromptsOption = None,
    tokens: Annotated[
        int, typer.Option("--tokens", min=1, help="Tokens of answers to learn from.")
    ] = 650_000,
    steps: Annotated[int, typer.Option("--steps", min=1, help="Training steps of about 2048 tokens.")] = 1800,
    vocabulary: Annotated[
        int, typer.Option("--vocabulary", min=16, help="Tokens that the head can draft, the most frequent.")
    ] = 4096,
    kind: KindOption = "eagle",
    unroll: UnrollOption = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Of text and training.")] = 0,
    threads: ThreadsOption = None,
) -> None:
    """Train a draft head: the model answers its own questions, and a small layer learns to guess them.

    With the defaults hours on two cores, minutes on a GPU where torch finds one. Interrupt it and start it
    again: it goes on. Answers never depend on a head; it only makes them come sooner.
    """
    from stoker.cli.pull import fetch_if_missing
    from stoker.engine.heads import head_name
    from stoker.training.train import DraftOptions, read_questions
    from stoker.training.train import train_draft as train
    from stoker.weights.digest import model_digest
    from stoker.weights.places import home_folder, own_folder
    from stoker.weights.store import resolve

    options = DraftOptions(
        answer_tokens=tokens,
        steps=steps,
        kind=kind,
        vocabulary=vocabulary,
        unroll=unroll,
        seed=seed,
        threads=threads,
    )
    questions = () if prompts is None else read_questions(prompts)
    fetch_if_missing(model)
    path = resolve(model)
    if out is None:
        own = own_folder(os.environ, home_folder())
        if own is None:
            raise RequestError("no folder for the head is known", hint="give --out, or set STOKER_HOME")
        out = own / "heads" / head_name(path.stem, model_digest(path), kind)
    with step_progress(f"train-draft {model}") as update:
        trained = train(
            path,
            folder or Path(f"train-draft-{path.stem}"),
            out,
            options,
            questions=questions,
            told=lambda part, done, total, what: update(done, total, f"{part}: {what}"),
        )
    say(f"{trained.path}: {trained.tokens_per_step:.2f} tokens a step on answers it was not trained on")
    say("held out, by depth: " + ", ".join(f"{share:.0%}" for share in trained.accepted))
