"""Table, plot and README from one result."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import pytest
from bench.report import BEGIN, END, plot, replace_block, write_report


def _results(*, with_peer: bool = True) -> dict[str, Any]:
    rates = {"stoker": {"prefill_512": _rate(4000), "decode_1": _rate(320)}}
    if with_peer:
        rates["llama.cpp"] = {"prefill_512": _rate(400), "decode_1": _rate(160)}
    model = {
        "file": "model.gguf",
        "tensor_bytes": 100_000_000,
        "versions": dict.fromkeys(rates, "1.2.3"),
        "cold_start_s": 0.456,
        "peak_memory_bytes": 159_000_000,
        "rates": rates,
    }
    return {
        "date": "2026-01-02",
        "machine": {"cpu": "A <fast> CPU"},
        "limits": {"dram_gb_s": 64.0, "int8_tops": 1.86},
        "threads": 2,
        "runs": 3,
        "models": {"smollm2": model},
    }


def _rate(median: float) -> dict[str, float]:
    return {"median": median, "low": median - 1, "high": median + 1}


def test_the_pages_have_rates_ratios_and_the_share_of_the_bound(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nstale text\n{END}\nafter\n", encoding="utf-8")
    table = write_report(_results(), tmp_path)
    assert "| prefill_512 | 4000 | 400 | 10.0 x |" in table
    assert "| decode_1 | 320 | 160 | 2.0 x |" in table
    assert "decode_1 is at 50% of what the DRAM bandwidth allows (640 tokens/s)." in table
    page = (tmp_path / "docs" / "benchmarks.md").read_text(encoding="utf-8")
    assert "64.0 GB/s DRAM read, 1.86 int8 TOPS" in page
    readme = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert table in readme
    assert "stale text" not in readme
    write_report(_results(), tmp_path)  # a second time changes nothing
    assert (tmp_path / "README.md").read_text(encoding="utf-8") == readme


def test_without_the_peer_there_are_no_ratios(tmp_path: Path) -> None:
    (tmp_path / "docs").mkdir()
    assert "| decode_1 | 320 | - | - |" in write_report(_results(with_peer=False), tmp_path)


def test_the_plot_is_svg_whose_bars_have_the_ratio_of_the_rates() -> None:
    picture = ElementTree.fromstring(plot(_results()))
    bars = list(picture.iter("{http://www.w3.org/2000/svg}rect"))[1:]  # the first is the background
    widths = [float(bar.attrib["width"]) for bar in bars]
    assert len(widths) == 4
    assert widths[0] / widths[1] == pytest.approx(10, rel=0.01)
    assert widths[2] / widths[3] == pytest.approx(2, rel=0.01)


def test_a_readme_without_the_marks_is_an_error() -> None:
    with pytest.raises(ValueError, match="lacks"):
        replace_block("nothing here", "table")
