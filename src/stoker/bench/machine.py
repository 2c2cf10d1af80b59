"""The machine under the numbers: what it is, and what its memory and integer units can do at most."""

from __future__ import annotations

import platform
import re
from pathlib import Path
from typing import Any

from stoker.kernels.cores import physical_cores


def describe_machine() -> dict[str, Any]:
    """Processor, cores, system."""
    return {
        "cpu": _cpu_name(),
        "physical_cores": physical_cores(),
        "system": f"{platform.system()} {platform.machine()}",
    }


def measure_limits(threads: int) -> dict[str, float]:
    """Measured now, with `threads` threads: DRAM read bandwidth (`dram_gb_s`, 10^9 bytes per second) and the
    rate of int8 dot products (`int8_tops`, 10^12 multiplications and additions per second)."""
    from stoker import _native

    limits = _native.measure_limits(threads)
    return {name: float(limits[name]) for name in ("dram_gb_s", "int8_tops")}


def kernel_target() -> str:
    """The instruction set that the kernels use here, as `STOKER_TARGET` names it."""
    from stoker import _native

    return str(_native.target)


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        found = re.search(
            r"^model name\s*:\s*(.+)$", cpuinfo.read_text(encoding="utf-8", errors="replace"), re.M
        )
        if found:
            return found.group(1).strip()
    return platform.processor() or platform.machine()
