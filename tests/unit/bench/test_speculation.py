"""`stoker bench speculation`: prompts, rows, plot."""

from __future__ import annotations

from xml.etree import ElementTree

import pytest

from stoker.bench.speculation import _Measured, _rows
from stoker.bench.speculation_plot import plot_speedups
from stoker.bench.speculation_prompts import WORKLOADS, prompts_of


@pytest.mark.parametrize("workload", WORKLOADS)
def test_prompts_are_different_and_the_same_every_time(workload: str) -> None:
    prompts = prompts_of(workload, 64)
    assert len(set(prompts)) == 64
    assert prompts[:6] == prompts_of(workload, 6)
    assert not any("{" in prompt for prompt in prompts)


def measured() -> dict[str, _Measured]:
    return {
        "plain": _Measured([100.0, 200.0, 100.0], [110.0, 220.0, 0.0], 0, 0, 300, 300),
        "auto": _Measured([150.0, 320.0, 140.0], [220.0, 396.0, 0.0], 400, 100, 300, 200),
    }


def test_rows_compare_run_by_run() -> None:
    plain, auto = _rows("copy", 4, measured())
    assert (plain["speedup"], plain["acceptance"], plain["tokens_per_step"]) == (1.0, None, 1.0)
    assert auto == {
        "workload": "copy",
        "concurrency": 4,
        "drafter": "auto",
        "tokens_per_s": 150.0,
        "speedup": 1.5,  # the median of 1.5, 1.6 and 1.4
        "decode_speedup": 1.9,  # of 2.0 and 1.8; the last run has no such steps
        "acceptance": 0.25,
        "tokens_per_step": 1.5,
    }


def test_the_plot_is_well_formed() -> None:
    rows = [row for concurrency in (1, 4) for row in _rows("copy", concurrency, measured())]
    root = ElementTree.fromstring(plot_speedups({"model": "a<b", "runs": 3, "rows": rows}))
    assert root.tag.endswith("svg")
    assert "a<b" in "".join(root.itertext())
