"""`stoker inspect`: what a model file holds."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli.options import JsonOption
from stoker.cli.output import format_bytes, print_json, print_table, printable

if TYPE_CHECKING:
    from stoker.weights.inspect import FileDescription

WIDEST_VALUE = 96  # characters of a metadata value; a chat template alone has thousands


def inspect(
    file: Annotated[
        str,
        typer.Argument(
            help="The path of a .gguf file, or a model's name.", metavar="FILE", show_default=False
        ),
    ],
    as_json: JsonOption = False,
    metadata: Annotated[bool, typer.Option("--metadata/--no-metadata", help="Show the metadata.")] = True,
    tensors: Annotated[bool, typer.Option("--tensors/--no-tensors", help="Show the tensors.")] = True,
) -> None:
    """Show what a model file holds.

    Metadata and tensors, also of files with tensor types that cannot be run. Long values and arrays are
    abbreviated; --json has the values of short arrays and whole texts.
    """
    from stoker.weights.gguf import GGUFFile
    from stoker.weights.inspect import describe
    from stoker.weights.store import resolve

    with GGUFFile.open(resolve(file), allow_unsupported=True) as opened:
        described = describe(opened)
    if as_json:
        shown: dict[str, Any] = dict(described)
        if not metadata:
            del shown["metadata"]
        if not tensors:
            del shown["tensors"]
        print_json(shown)
        return
    _print_summary(described)
    if metadata:
        print()
        rows = [(key["key"], key["type"], _short(key["value"])) for key in described["metadata"]]
        print_table(("KEY", "TYPE", "VALUE"), rows)
    if tensors:
        print()
        print_table(
            ("TENSOR", "TYPE", "SHAPE", "SIZE"),
            [
                (t["name"], t["type"], " x ".join(map(str, t["shape"])), format_bytes(t["n_bytes"]))
                for t in described["tensors"]
            ],
        )


def _print_summary(described: FileDescription) -> None:
    print(
        printable(f"{described['name'] or 'unnamed'}: architecture {described['architecture'] or 'unknown'}")
    )
    print(
        f"GGUF version {described['version']}, {format_bytes(described['size_bytes'])},"
        f" {described['n_parameters']:,} parameters, {described['bits_per_weight']:.2f} bits each"
    )
    for path in described["files"]:
        print(path)
    print()
    print_table(
        ("TYPE", "TENSORS", "PARAMETERS", "SIZE", "BITS/WEIGHT", ""),
        [
            (
                kind["type"],
                str(kind["n_tensors"]),
                f"{kind['n_parameters']:,}",
                format_bytes(kind["n_bytes"]),
                f"{kind['bits_per_weight']:.2f}",
                "" if kind["supported"] else "not supported",
            )
            for kind in described["types"]
        ],
    )


def _short(value: Any) -> str:
    """At most about WIDEST_VALUE characters."""
    if isinstance(value, dict):
        first = ", ".join(json.dumps(item, ensure_ascii=False) for item in value["first"])
        return f"[{first[: WIDEST_VALUE - 24]}, ...] ({value['count']:,} elements)"
    text = json.dumps(value, ensure_ascii=False)
    return text if len(text) <= WIDEST_VALUE else f"{text[: WIDEST_VALUE - 24]}... ({len(text):,} characters)"
