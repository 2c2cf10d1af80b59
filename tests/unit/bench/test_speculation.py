"""`stoker bench speculation`: prompts, rows, plot."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from xml.etree import ElementTree

import pytest

from stoker.bench import speculation
from stoker.bench.speculation import _Measured, _rows, measure_speculation
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


class _Counted:
    """As many tokens in each step, `steps` times."""

    def __init__(self, tokens: int, steps: int, told: list[int]) -> None:
        self.each, self.left, self.told = tokens, steps, told
        self.tokens, self.concurrency = 0, 1

    @property
    def done(self) -> bool:
        return not self.left

    def step(self) -> None:
        self.left -= 1
        self.tokens += self.each
        self.told.append(self.each)


def test_turns_keep_all_at_the_same_place() -> None:
    told: list[int] = []
    two: Sequence[_Counted] = (_Counted(64, 8, told), _Counted(32, 10, told))
    speculation._take_turns(two)  # type: ignore[arg-type]
    first, second = [64, 64], [32, 32, 32, 32]
    assert told == [*first, *second, *first, *second, *first, 32, 32, 64, 64]
    assert all(one.done for one in two)


@pytest.mark.model
def test_a_measurement_of_a_model(smollm2_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("stoker._native", reason="the native core is not built")
    monkeypatch.setattr(speculation, "WORKLOADS", ("copy",))
    monkeypatch.setattr(speculation, "LEAST_PROMPTS", 2)
    monkeypatch.setattr(speculation, "ANSWER_TOKENS", 24)
    told: list[tuple[int, int, str]] = []
    result = measure_speculation(
        smollm2_path,
        threads=1,
        runs=2,
        concurrencies=(1,),
        temperature=0.7,
        draft_model=str(smollm2_path),
        progress=lambda *step: told.append(step),
    )
    assert told == [(0, 1, "copy x 1")]
    names = ["plain", "ngram", "suffix", "lookahead", "eagle", "model", "auto"]
    assert [(row["concurrency"], row["drafter"]) for row in result["rows"]] == [(1, name) for name in names]
    for row in result["rows"]:
        assert row["tokens_per_s"] > 0
        assert row["speedup"] > 0
        assert row["tokens_per_step"] >= 1
    by_name = {row["drafter"]: row for row in result["rows"]}
    assert by_name["plain"]["speedup"] == 1.0
    assert by_name["plain"]["acceptance"] is None
    assert by_name["model"]["acceptance"] == 1.0
    assert by_name["auto"]["tokens_per_step"] > 1
