"""The part of the benchmark page about serving, from one result."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.serve_report import RESULTS, serving_section, serving_table


def _figure(median: float) -> dict[str, Any]:
    return {"median": median, "runs": [median]}


def _results() -> dict[str, Any]:
    ours = {"burst": {"output_tokens_per_s": _figure(1800.4), "itl_ms_p50": _figure(18.24)}}
    ours["intruder"] = {"itl_ratio_p99_p50": _figure(2.5)}
    engine = {"burst": {"output_tokens_per_s": _figure(2000.0)}}
    return {
        "date": "2026-01-02",
        "machine": {"cpu": "A CPU"},
        "threads": 2,
        "runs": 1,
        "model": "smollm2",
        "http_share": 0.9002,
        "engines": {
            "stoker serve": {"version": "1.2", "healthy_s": 1.234, "scenarios": ours},
            "engine": {"version": "1.2", "scenarios": engine},
        },
    }


def test_the_table_has_a_column_for_each_server_and_no_empty_rows() -> None:
    table = "\n".join(serving_table(_results()))
    assert "| smollm2 | stoker serve | engine |" in table
    assert "output tokens/s | 1,800 | 2,000 |" in table
    assert "inter-token latency, median ms | 18.2 | - |" in table
    assert "99th percentile over median | 2.50 | - |" in table
    assert "| from start to healthy, seconds | 1.23 | - |" in table
    assert "1 024 cached" not in table


def test_the_section_is_there_once_there_are_results(tmp_path: Path) -> None:
    assert serving_section(tmp_path) == []
    (tmp_path / RESULTS).parent.mkdir(parents=True)
    (tmp_path / RESULTS).write_text(json.dumps(_results()), encoding="utf-8")
    page = "\n".join(serving_section(tmp_path))
    assert page.startswith("## Serving\n\nA CPU, 2 threads, 2026-01-02")
    assert "90% of the engine's throughput" in page
    assert "stoker serve 1.2, engine 1.2" in page
