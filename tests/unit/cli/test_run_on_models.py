"""`stoker run` on the real models, as a user starts it."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from .test_app import ROOT, _stoker

pytestmark = pytest.mark.model


def _json(*arguments: str) -> dict[str, object]:
    shown = _stoker("run", *arguments, "--json", "--quiet")
    assert shown.returncode == 0, shown.stderr
    answer = json.loads(shown.stdout)
    assert isinstance(answer, dict)
    return answer


def test_a_seed_repeats_the_answer_with_other_threads(smollm2_path: Path) -> None:
    question = (str(smollm2_path), "Invent a name for a ship.", "--max-tokens", "24", "--temperature", "1.2")
    first = _json(*question, "--seed", "11", "--threads", "2")
    again = _json(*question, "--seed", "11", "--threads", "1")
    assert first["text"] == again["text"]
    assert first["token_ids"] == again["token_ids"]
    assert len(first["token_ids"]) == first["completion_tokens"] <= 24
    assert (first["seed"], first["finish_reason"]) == (11, again["finish_reason"])
    drawn = _json(*question)  # without a seed one is drawn, and said
    assert _json(*question, "--seed", str(drawn["seed"]))["text"] == drawn["text"]


def test_the_answer_is_on_stdout_and_the_speed_on_stderr(smollm2_path: Path) -> None:
    shown = _stoker("run", str(smollm2_path), stdin="Say yes.", STOKER_MAX_TOKENS="4", STOKER_TEMPERATURE="0")
    assert shown.returncode == 0
    assert shown.stdout.strip()
    assert "answer 4 tokens" in shown.stderr
    assert "first token after" in shown.stderr
    verbose = _stoker("run", str(smollm2_path), "Hi", "-n", "1", "--verbose", "--seed", "5")
    assert "seed 5; finished: length" in verbose.stderr


def test_raw_and_base_models_go_on_with_the_text(smollm2_path: Path, gemma3_path: Path) -> None:
    options = ("--temperature", "0", "--max-tokens", "8")
    assert "Paris" in str(_json(str(smollm2_path), "The capital of France is", "--raw", *options)["text"])
    chat = _json(str(smollm2_path), "The capital of France is", *options)
    raw = _json(str(smollm2_path), "The capital of France is", "--raw", *options)
    assert int(str(chat["prompt_tokens"])) > int(str(raw["prompt_tokens"]))  # the template's own tokens
    assert _json(str(gemma3_path), "The capital of France is", *options)["completion_tokens"] == 8
    plain = ("run", str(gemma3_path), "One, two", "-n", "1")
    assert "has no chat template" in _stoker(*plain).stderr
    assert "has no chat template" not in _stoker(*plain, "--raw").stderr
    refused = _stoker("run", str(gemma3_path), "x", "--system", "be brief")
    assert refused.returncode == 1
    assert "no chat template" in refused.stderr


def test_a_prompt_longer_than_the_context_is_refused_with_both_numbers(smollm2_path: Path) -> None:
    shown = _stoker("run", str(smollm2_path), "word " * 100, "--context", "64", "--raw")
    assert shown.returncode == 1
    assert "allowed: at most 64" in shown.stderr
    assert shown.stdout == ""


def test_ctrl_c_stops_an_answer_and_keeps_what_came(smollm2_path: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "stoker",
        "run",
        str(smollm2_path),
        "Count to ten thousand.",
        "--seed",
        "1",
    ]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        stdin=subprocess.DEVNULL,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT / "src")},
    )
    assert process.stdout is not None
    first = process.stdout.read(40)  # some tokens
    process.send_signal(signal.SIGINT)
    rest, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert len(first + rest) >= 40
    assert "tokens/s" in errors
    assert "Traceback" not in errors
