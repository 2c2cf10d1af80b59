"""`stoker pull`: fetch a known model, with a bar on a terminal."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from stoker.cli.options import JsonOption
from stoker.cli.output import byte_progress, format_bytes, print_json, say


def pull(
    name: Annotated[
        str,
        typer.Argument(metavar="NAME", help="A known name; `stoker list` shows them.", show_default=False),
    ],
    as_json: JsonOption = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress bar.")] = False,
) -> None:
    """Fetch a known model.

    Checks it and prints the path of its file.
    An interrupted pull goes on where it stopped. What is there already and right is not fetched again.
    """
    path = fetch(name, quiet=quiet)
    if as_json:
        print_json({"name": name, "path": str(path), "size_bytes": path.stat().st_size})
    else:
        print(path)


def fetch(name: str, *, quiet: bool = False) -> Path:
    """Pull the known model `name` with a bar on stderr; its path. Raises PullError, ModelNotFoundError."""
    from stoker.weights.pull import pull as pull_model

    if quiet:
        return pull_model(name, show_terms=say)
    with byte_progress(name) as update:
        return pull_model(name, progress=update, show_terms=say)


def fetch_if_missing(name_or_path: str) -> None:
    """Pull a model that has a known name and is not on this machine yet; otherwise do nothing."""
    from stoker.api.errors import ModelNotFoundError
    from stoker.weights.sources import KNOWN_MODELS
    from stoker.weights.store import resolve

    if name_or_path not in KNOWN_MODELS:
        return
    try:
        resolve(name_or_path)
    except ModelNotFoundError:
        model = KNOWN_MODELS[name_or_path]
        say(f"{name_or_path} ({model.description}) is not here yet: {format_bytes(model.download_bytes)}")
        fetch(name_or_path)
