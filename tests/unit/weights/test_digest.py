"""The digest of a model's files is that of their bytes, whatever was remembered, and where nothing can be."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from stoker.weights.digest import weights_digest


def test_what_is_remembered_is_used_until_the_file_changes(tmp_path: Path) -> None:
    model, notes = tmp_path / "model.gguf", tmp_path / "notes"
    model.write_bytes(b"one")
    assert weights_digest([model], remembered_in=notes) == hashlib.sha256(b"one").hexdigest()
    (note,) = notes.iterdir()
    note.write_text("f" * 64)
    assert weights_digest([model], remembered_in=notes) == "f" * 64  # not hashed again
    note.write_text("not a digest")
    assert weights_digest([model], remembered_in=notes) == hashlib.sha256(b"one").hexdigest()


def test_other_bytes_under_the_same_name_size_and_time(tmp_path: Path) -> None:
    """As after `cp --preserve=timestamps` over it, or where all files of an image have one time."""
    model, notes = tmp_path / "model.gguf", tmp_path / "notes"
    for content in (b"one", b"two"):
        model.write_bytes(content)
        os.utime(model, (1_000_000_000, 1_000_000_000))
        assert weights_digest([model], remembered_in=notes) == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize("above", [False, True])
def test_where_nothing_can_be_remembered(tmp_path: Path, above: bool) -> None:
    """A file lies where the folder, or one above it, should be."""
    model, notes = tmp_path / "model.gguf", tmp_path / "notes"
    model.write_bytes(b"one")
    notes.write_bytes(b"")
    folder = notes / "digests" if above else notes
    assert weights_digest([model], remembered_in=folder) == hashlib.sha256(b"one").hexdigest()
