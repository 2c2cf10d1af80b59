"""Measuring a process: what it prints first, what it held, and how it failed."""

from __future__ import annotations

import sys

import pytest

from stoker.api.errors import EngineError
from stoker.bench.cold_start import _one_start


def test_time_and_memory_are_of_the_process_itself() -> None:
    ballast = bytearray(300_000_000)  # of the parent: must not count
    ballast[::4096] = b"x" * len(ballast[::4096])
    start = _one_start(
        [sys.executable, "-c", "import time; time.sleep(0.2); print('x', flush=True); time.sleep(0.2)"]
    )
    assert 0.2 <= start.first_token_s < 20
    if sys.platform == "linux":
        assert 1_000_000 < start.peak_memory_bytes < 100_000_000


@pytest.mark.parametrize(
    ("script", "says"),
    [
        ("import sys; print('gone', file=sys.stderr); sys.exit(3)", "status 3: gone"),
        ("pass", "printed nothing"),
    ],
)
def test_a_process_that_fails_or_is_silent_is_an_error(script: str, says: str) -> None:
    with pytest.raises(EngineError, match=says):
        _one_start([sys.executable, "-c", script])
