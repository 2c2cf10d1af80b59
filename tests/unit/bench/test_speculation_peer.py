"""llama.cpp beside Stoker: rows against the plain mode of the same program, and the table of both."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.speculation_peer import Measured, measure, rows_of
from bench.speculation_report import speculation_section


class Answering:
    """A worker whose answers take a given time."""

    def __init__(self, name: str, seconds: float, *, odd: int | None = None) -> None:
        self.name = name
        self._seconds = seconds
        self._odd = odd
        self.asked: list[dict[str, Any]] = []

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        self.asked.append(request)
        tokens = [request["token_ids"][0], 7 if self._odd == request["token_ids"][0] else 5]
        return {"tokens": tokens, "seconds": self._seconds, "drafted": 4, "accepted": 3}


def test_each_mode_answers_every_prompt_in_every_run_and_one_run_is_not_counted() -> None:
    workers: Any = {
        "llama.cpp plain": Answering("plain", 0.2),
        "llama.cpp prompt-lookup": Answering("lookup", 0.1, odd=3),
    }
    plain, lookup = measure(workers, {"copy": [[1, 2], [3, 4]]}, 2, 64)
    assert [request["token_ids"] for request in workers["llama.cpp plain"].asked] == [[1, 2], [3, 4]] * 3
    assert plain == {
        "workload": "copy",
        "concurrency": 1,
        "drafter": "llama.cpp plain",
        "tokens_per_s": 10.0,
        "speedup": 1.0,
        "acceptance": 0.75,
        "equal_answers": 1.0,
    }
    assert (lookup["tokens_per_s"], lookup["speedup"], lookup["equal_answers"]) == (20.0, 2.0, 0.5)


def test_a_mode_is_compared_with_its_own_program() -> None:
    measured = {
        "llama.cpp plain": Measured([100.0], [[1]]),
        "llama-server plain": Measured([200.0], [[1]]),
        "llama-server ngram-mod": Measured([300.0], [[1]]),
    }
    assert [row["speedup"] for row in rows_of("chat", measured)] == [1.0, 1.0, 1.5]


def _ours() -> dict[str, Any]:
    rows = [
        {"workload": "copy", "concurrency": 1, "drafter": "plain", "tokens_per_s": 400.0, "speedup": 1.0},
        {"workload": "copy", "concurrency": 1, "drafter": "auto", "tokens_per_s": 1200.0, "speedup": 3.0},
    ]
    return {
        "model": "m.gguf",
        "temperature": 0,
        "answer_tokens": 128,
        "runs": 3,
        "rows": [row | {"tokens_per_step": 2.0, "acceptance": None} for row in rows],
    }


def test_the_table_stands_where_both_were_measured(tmp_path: Path) -> None:
    folder = tmp_path / "bench" / "results"
    folder.mkdir(parents=True)
    assert speculation_section(tmp_path) == []
    (folder / "speculation.json").write_text(json.dumps(_ours()))
    assert "### Beside llama.cpp" not in speculation_section(tmp_path)
    measured = {
        "llama.cpp plain": Measured([100.0], [[1], [2]]),
        "llama.cpp prompt-lookup": Measured([150.0], [[1], [3]]),
    }
    peer = {
        "date": "2026-01-02",
        "threads": 2,
        "runs": 3,
        "prompts": 6,
        "versions": ["llama-cpp-python 1.2.3"],
        "rows": [*rows_of("copy", measured), *rows_of("chat", measured)],
    }
    (folder / "speculation_peer.json").write_text(json.dumps(peer))
    lines = speculation_section(tmp_path)
    assert "| | copy | chat |" in lines
    assert "| Stoker plain | 400 | - |" in lines
    assert "| Stoker auto | 1,200, 3.00 x | - |" in lines
    assert "| llama.cpp plain | 100 | 100 |" in lines
    assert "| llama.cpp prompt-lookup | 150, 1.50 x (50%) | 150, 1.50 x (50%) |" in lines
