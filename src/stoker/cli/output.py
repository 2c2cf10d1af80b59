"""Data goes to stdout, everything said about it to stderr. Progress bars show only on a terminal."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any


def say(text: str) -> None:
    """One line on stderr, under the program's name."""
    print(f"stoker: {text}", file=sys.stderr, flush=True)


def print_json(value: Any) -> None:
    """One JSON object on stdout, keys in the order they were put in."""
    print(json.dumps(value, ensure_ascii=False, indent=2), flush=True)


def format_bytes(size_bytes: int | float) -> str:
    """A size with three figures and a decimal unit, as disks and networks are sold: 98.0 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable: GB always returns")


@contextmanager
def byte_progress(title: str) -> Iterator[Callable[[int, int | None], None]]:
    """A bar on stderr for bytes; yields `update(done_bytes, total_bytes or None)`.

    Without a terminal it prints nothing: a log does not want thousands of bars.
    """
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        task = bar.add_task(title, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def print_table(columns: tuple[str, ...], rows: list[tuple[str, ...]]) -> None:
    """A plain table on stdout: columns padded to their widest cell, numbers as they were formatted."""
    widths = [max(len(row[i]) for row in [columns, *rows]) for i in range(len(columns))]
    for row in [columns, *rows]:
        print("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
