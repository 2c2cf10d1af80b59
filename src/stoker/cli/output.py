"""Data goes to stdout, everything said about it to stderr. Progress bars show only on a terminal."""

from __future__ import annotations

import io
import json
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TextIO

from stoker.api.errors import RequestError

_LINE_EVERY_S = 30  # of progress in a log: what takes less says nothing on its way


def prepare_streams() -> None:
    """Make the standard streams usable as they were given to us. Raises RequestError for a closed stdout.

    A closed stdin is empty, a closed stderr takes what it is told. Each closed one is opened on nothing, so
    that the next file we open does not become a standard stream. What stdout's encoding lacks is escaped.
    """
    stdout_is_closed = sys.stdout is None
    # In this order, since each takes the lowest free descriptor: its own.
    if sys.stdin is None:
        sys.stdin = open(os.devnull)  # noqa: SIM115  # lives as long as the process
    if sys.stdout is None:
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115
    if sys.stderr is None:
        sys.stderr = open(os.devnull, "w")  # noqa: SIM115
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="backslashreplace")
    if stdout_is_closed:
        raise RequestError("stdout is closed; allowed: a terminal, a file or a pipe")


def point_at_nothing(stream: TextIO) -> None:
    """After a write has failed: throw away what is still buffered, or Python complains again at exit."""
    nothing = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, stream.fileno())
    os.close(nothing)


def say(text: str) -> None:
    """One line on stderr, under the program's name. If stderr takes nothing, there is nobody to tell."""
    try:
        print(f"stoker: {text}", file=sys.stderr, flush=True)
    except OSError:
        point_at_nothing(sys.stderr)


def print_json(value: Any) -> None:
    """One JSON object on stdout, keys in the order they were put in."""
    # What another encoding lacks is escaped as JSON does it, not as `prepare_streams` has it for text.
    takes_all = sys.stdout.encoding.lower().replace("_", "-") == "utf-8"
    print(json.dumps(value, ensure_ascii=not takes_all, indent=2), flush=True)


def format_bytes(size_bytes: int | float) -> str:
    """A size with three figures and a decimal unit, as disks and networks are sold: 98.0 MB."""
    size = float(size_bytes)
    for unit in ("B", "kB", "MB", "GB"):
        if size < 999.5 or unit == "GB":
            return f"{size:.0f} B" if unit == "B" else f"{size:.1f} {unit}"
        size /= 1000
    raise AssertionError("unreachable: GB always returns")


@contextmanager
def byte_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr for bytes; yields `update(done_bytes, total_bytes, phase)`, one bar for each phase.

    Without a terminal it prints nothing: a log does not want thousands of bars.
    """
    if not sys.stderr.isatty():
        yield lambda done, total, phase: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn())
    with Progress(*columns, console=Console(stderr=True)) as bar:
        tasks: dict[str, Any] = {}

        def update(done: int, total: int, phase: str) -> None:
            if phase not in tasks:
                tasks[phase] = bar.add_task(f"{title}: {phase}", total=total)
            bar.update(tasks[phase], completed=done, total=total)

        yield update


@contextmanager
def step_progress(title: str) -> Iterator[Callable[[int, int, str], None]]:
    """A bar on stderr for steps of unlike length; yields `update(done, total, what is under way)`.

    Without a terminal a line now and then, so that the log of a training of hours says how far it is.
    """
    if not sys.stderr.isatty():
        yield _lines_now_and_then(title)
        return
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(title, total=None)

        def update(done: int, total: int, under_way: str) -> None:
            bar.update(task, completed=done, total=total, description=f"{title}: {under_way}")

        yield update


def _lines_now_and_then(title: str) -> Callable[[int, int, str], None]:
    """`update` of step_progress for a log."""
    due = time.monotonic() + _LINE_EVERY_S

    def update(done: int, total: int, under_way: str) -> None:
        nonlocal due
        if time.monotonic() >= due:
            due = time.monotonic() + _LINE_EVERY_S
            say(f"{title}: {under_way}, {done} of {total}")

    return update


def printable(text: str) -> str:
    """`text` without anything that a terminal would act on: names in a file are not ours."""
    return "".join(character if character.isprintable() else "?" for character in text)


def print_table(columns: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    """A plain table on stdout: columns padded to their widest cell, one line for each row."""
    lines = [tuple(map(printable, row)) for row in [columns, *rows]]
    widths = [max(len(line[i]) for line in lines) for i in range(len(columns))]
    for line in lines:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
