"""From the start of a process to the first byte of its answer, and the most memory it held."""

from __future__ import annotations

import os
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from stoker.api.errors import EngineError

READ_BYTES = 1 << 22


@dataclass(frozen=True, slots=True)
class ColdStart:
    """Medians of several fresh processes."""

    first_token_s: float
    peak_memory_bytes: int


def measure_cold_start(model_path: Path, *, threads: int | None, runs: int = 3) -> ColdStart:
    """Start `python -m stoker run` on a short question `runs` times; the file is in the page cache.

    Raises EngineError with the last line of stderr if a process fails.
    """
    _read_through(model_path)
    command = [sys.executable, "-m", "stoker", "run", str(model_path), "Why is the sky blue?"]
    command += ["--max-tokens", "8", "--temperature", "0", "--quiet"]
    if threads is not None:
        command += ["--threads", str(threads)]
    measured = [_one_start(command) for _ in range(runs)]
    return ColdStart(
        first_token_s=statistics.median(start.first_token_s for start in measured),
        peak_memory_bytes=int(statistics.median(start.peak_memory_bytes for start in measured)),
    )


def _one_start(command: Sequence[str]) -> ColdStart:
    started = time.perf_counter()
    process = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    assert process.stderr is not None
    first = process.stdout.read(1)
    first_token_s = time.perf_counter() - started
    process.stdout.read()
    complaint = process.stderr.read().decode(errors="replace").strip()
    # wait4 rather than wait: it is the one call that tells this child's own peak memory.
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    process.stdout.close()
    process.stderr.close()
    if process.returncode != 0 or not first:
        last = complaint.splitlines()[-1] if complaint else "it printed nothing"
        raise EngineError(f"stoker run ended with status {process.returncode}: {last}")
    unit_bytes = 1 if sys.platform == "darwin" else 1024  # ru_maxrss is in kilobytes except on macOS
    return ColdStart(first_token_s, usage.ru_maxrss * unit_bytes)


def _read_through(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(READ_BYTES):
            continue
