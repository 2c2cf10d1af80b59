"""Sizes and durations in words."""

from __future__ import annotations

import pytest
import typer

from stoker.cli.options import parse_bytes, parse_seconds


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("0", 0),
        ("1000", 1000),
        ("1k", 1000),
        ("1KiB", 1024),
        ("1.5g", 1_500_000_000),
        (" 2 GiB ", 2 << 30),
        ("512MB", 512_000_000),
        ("3mi", 3 << 20),
        ("1TB", 10**12),
    ],
)
def test_sizes(text: str, size_bytes: int) -> None:
    assert parse_bytes(text) == size_bytes


@pytest.mark.parametrize("text", ["", "x", "-1", "1e9", "1 2", "5i", "5 parsecs", "9" * 40])
def test_what_is_no_size(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no size"):
        parse_bytes(text)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("-1", -1)]
)
def test_durations(text: str, seconds: float) -> None:
    assert parse_seconds(text) == seconds


@pytest.mark.parametrize("text", ["", "soon", "5d", "1e9", "inf", "nan"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(typer.BadParameter, match="no duration"):
        parse_seconds(text)
