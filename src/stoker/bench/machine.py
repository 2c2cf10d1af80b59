"""The machine under the numbers: what it is, and what its memory and integer units can do at most."""

from __future__ import annotations

import os
import platform
import re
from pathlib import Path
from typing import Any


def describe_machine(threads: int | None) -> dict[str, Any]:
    """Processor, cores, system, and the target and thread count in use; `threads` none: left out."""
    described = {
        "cpu": _cpu_name(),
        "physical_cores": physical_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
    }
    return described if threads is None else {**described, "threads": threads}


def measure_limits(threads: int) -> dict[str, float]:
    """Measured now, with `threads` threads: DRAM read bandwidth (`dram_gb_s`, 10^9 bytes per second) and the
    rate of int8 dot products (`int8_tops`, 10^12 multiplications and additions per second)."""
    from stoker import _native

    limits = _native.measure_limits(threads)
    return {name: float(limits[name]) for name in ("dram_gb_s", "int8_tops")}


def physical_cores() -> int:
    """Cores this process may run on, counting two threads of one core once; at least 1."""
    allowed = os.sched_getaffinity(0) if hasattr(os, "sched_getaffinity") else set(range(os.cpu_count() or 1))
    siblings = set()
    for cpu in allowed:
        path = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        siblings.add(path.read_text(encoding="ascii").strip() if path.exists() else str(cpu))
    return max(1, len(siblings))


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(
            r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.M
        )
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()
