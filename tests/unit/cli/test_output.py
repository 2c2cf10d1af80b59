"""What is said on stderr while something is under way."""

from __future__ import annotations

import pytest

from stoker.cli import output


def test_a_log_is_told_now_and_then_how_far_it_is(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    now = 100.0
    monkeypatch.setattr(output.time, "monotonic", lambda: now)
    with output.step_progress("train-draft x") as update:
        for step in range(101):
            update(step, 100, "training")
            now += 1
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.splitlines() == [f"stoker: train-draft x: training, {n} of 100" for n in (30, 60, 90)]


def test_what_is_over_soon_says_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with output.step_progress("bench x") as update:
        update(1, 2, "a")
        update(2, 2, "b")
    assert capsys.readouterr() == ("", "")
