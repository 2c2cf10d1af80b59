"""From the start of a process to the first byte of its answer, and the most memory it held."""

from __future__ import annotations

import re
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
    peak_memory_bytes: int  # until then; 0 where the system does not tell


def measure_cold_start(model_path: Path, *, threads: int | None, runs: int = 3) -> ColdStart:
    """Start `python -m stoker run` on a short question `runs` times; the file is in the page cache.

    Raises EngineError with the last line of stderr if a process fails.
    """
    _read_through(model_path)
    command = [sys.executable, "-m", "stoker", "run", str(model_path), "Why is the sky blue?"]
    command += ["--max-tokens", "32", "--temperature", "0", "--quiet"]
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
    first = process.stdout.read(1)
    first_token_s = time.perf_counter() - started
    peak_bytes = _peak_memory_bytes(process.pid)
    _, complaint = process.communicate()
    if process.returncode != 0 or not first:
        lines = complaint.decode(errors="replace").strip().splitlines() or ["it printed nothing"]
        raise EngineError(f"stoker run ended with status {process.returncode}: {lines[-1]}")
    return ColdStart(first_token_s, peak_bytes)


def _peak_memory_bytes(pid: int) -> int:
    """Most resident memory of a living process so far; 0 where the system does not tell.

    Not the ru_maxrss that waiting for it gives: on Linux that counts what its parent held when it was forked.
    The peak is while weights are packed, so before the first token.
    """
    status = Path(f"/proc/{pid}/status")
    if not status.exists():
        return 0
    found = re.search(r"^VmHWM:\s*(\d+) kB$", status.read_text(encoding="ascii"), re.M)
    return int(found.group(1)) * 1024 if found else 0


def _read_through(path: Path) -> None:
    with open(path, "rb", buffering=0) as file:
        while file.read(READ_BYTES):
            continue
