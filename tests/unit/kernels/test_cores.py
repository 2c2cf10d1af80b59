"""Counting the cores that are worth a thread."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from stoker.kernels.cores import physical_cores


def cpus() -> list[int]:
    if not hasattr(os, "sched_getaffinity"):
        pytest.skip("this system has no affinity to ask for")
    return sorted(os.sched_getaffinity(0))


def write_siblings(folder: Path, siblings: dict[int, str]) -> Path:
    for cpu, text in siblings.items():
        path = folder / f"cpu{cpu}" / "topology" / "thread_siblings_list"
        path.parent.mkdir(parents=True)
        path.write_text(f"{text}\n")
    return folder


def test_two_threads_of_one_core_count_once(tmp_path: Path) -> None:
    pairs = {cpu: f"{cpu // 2}-pair" for cpu in cpus()}
    topology = write_siblings(tmp_path, pairs)
    assert physical_cores(topology=topology, quota=tmp_path / "none") == len(set(pairs.values()))


def test_without_a_topology_each_cpu_is_a_core(tmp_path: Path) -> None:
    assert physical_cores(topology=tmp_path, quota=tmp_path / "none") == len(cpus())


@pytest.mark.parametrize(
    ("quota", "most"),
    [("max 100000", 1 << 30), ("100000 100000", 1), ("150000 100000", 2), ("5000 100000", 1)],
)
def test_a_quota_is_a_cap(tmp_path: Path, quota: str, most: int) -> None:
    (tmp_path / "cpu.max").write_text(quota + "\n")
    assert physical_cores(topology=tmp_path, quota=tmp_path / "cpu.max") == min(len(cpus()), most)
