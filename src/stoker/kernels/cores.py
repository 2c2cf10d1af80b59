"""How many threads are worth starting here."""

from __future__ import annotations

import math
import os
from pathlib import Path

_TOPOLOGY = Path("/sys/devices/system/cpu")
_QUOTA = Path("/sys/fs/cgroup/cpu.max")  # a container's share of CPU time, as "quota period" or "max period"


def physical_cores(*, topology: Path = _TOPOLOGY, quota: Path = _QUOTA) -> int:
    """Cores this process may keep busy; at least 1.

    Two hardware threads of one core count once (they share its vector units), cores outside the process's
    affinity not at all, and a container's CPU quota is a cap: threads beyond it would wait for each other.
    """
    if hasattr(os, "sched_getaffinity"):
        allowed = sorted(os.sched_getaffinity(0))
    else:
        allowed = list(range(os.cpu_count() or 1))
    cores = {_siblings(topology / f"cpu{cpu}" / "topology" / "thread_siblings_list", cpu) for cpu in allowed}
    return max(1, min(len(cores), _quota_cores(quota)))


def _siblings(path: Path, cpu: int) -> str:
    return path.read_text(encoding="ascii").strip() if path.is_file() else str(cpu)


def _quota_cores(path: Path) -> int:
    if not path.is_file():
        return 1 << 30
    share, period = [*path.read_text(encoding="ascii").split(), "max", "1"][:2]
    return 1 << 30 if share == "max" else max(1, math.ceil(int(share) / int(period)))
