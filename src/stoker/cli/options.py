"""Options that several commands share: names, help and environment variables written once.

Also the words in which sizes and durations are given.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

import typer

MOST_THREADS = 256  # above any machine's worth; a typing error must not start thousands of threads

_BYTES_PER_UNIT: Mapping[str, int] = MappingProxyType(
    {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "t": 10**12}
    | {"ki": 1 << 10, "mi": 1 << 20, "gi": 1 << 30, "ti": 1 << 40}
)
_SECONDS_PER_UNIT: Mapping[str, float] = MappingProxyType({"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0})


def parse_bytes(text: str) -> int:
    """A size: 1000000, 512MB, 2GiB, 1.5g. Raises typer.BadParameter."""
    found = re.fullmatch(r"([0-9]{1,15}(?:\.[0-9]{1,6})?)\s*([kmgt]?i?)b?", text.strip().lower())
    if not found or found.group(2) not in _BYTES_PER_UNIT:  # "5i" has the form, and no such unit
        raise typer.BadParameter(f"{text!r:.80} is no size; allowed: a number of bytes, or like 512MB, 2GiB")
    return int(float(found.group(1)) * _BYTES_PER_UNIT[found.group(2)])


def parse_seconds(text: str) -> float:
    """A duration: 90, 90s, 5m, 1h; -1 means for ever. Raises typer.BadParameter."""
    found = re.fullmatch(r"(-?[0-9]{1,9}(?:\.[0-9]{1,6})?)\s*([smh]?)", text.strip().lower())
    if not found:
        raise typer.BadParameter(f"{text!r:.80} is no duration; allowed: seconds, or like 5m, 1h, -1")
    return float(found.group(1)) * _SECONDS_PER_UNIT[found.group(2)]


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
DraftModelOption = Annotated[
    str | None,
    typer.Option(
        "--draft-model",
        metavar="MODEL",
        envvar="STOKER_DRAFT_MODEL",
        help="A smaller model with the same vocabulary, which drafts: what it says is verified many tokens "
        "at once. No token of an answer depends on it.",
        show_default=False,
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
