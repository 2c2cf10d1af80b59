"""What `train-draft` finds in its folder: another run, or what was cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stoker.api.errors import RequestError
from stoker.training.corpus import Corpus
from stoker.training.dataset import load_dataset
from stoker.training.train import DraftOptions, _check_writable, _claim


@pytest.mark.parametrize(
    ("digest", "options", "questions"),
    [
        ("b" * 64, DraftOptions(), ("one", "two")),
        ("a" * 64, DraftOptions(answer_tokens=1000), ("one", "two")),
        ("a" * 64, DraftOptions(seed=1), ("one", "two")),
        ("a" * 64, DraftOptions(), ("one", "other")),
        ("a" * 64, DraftOptions(), ("onetwo",)),
    ],
)
def test_another_run_is_refused_before_it_does_anything(
    tmp_path: Path, digest: str, options: DraftOptions, questions: tuple[str, ...]
) -> None:
    _claim(tmp_path, "a" * 64, DraftOptions(), ("one", "two"))
    _claim(tmp_path, "a" * 64, DraftOptions(steps=7), ("one", "two"))
    with pytest.raises(RequestError, match="holds a run with"):
        _claim(tmp_path, digest, options, questions)
    _claim(tmp_path, "a" * 64, DraftOptions(), ("one", "two"))


def test_states_that_were_cut_are_computed_again(tmp_path: Path) -> None:
    token_ids = np.arange(6, dtype=np.int32)
    np.savez(
        tmp_path / "tokens.npz",
        token_ids=token_ids,
        answers=token_ids > 2,
        starts=np.array([0, 6], np.int32),
    )
    np.zeros((6, 4), np.float16).tofile(tmp_path / "features.f16")
    found = load_dataset(tmp_path)
    assert found is not None
    assert found.answer_tokens == 3
    whole = (tmp_path / "tokens.npz").read_bytes()
    for size in (0, 1, len(whole) // 2, len(whole) - 1):
        (tmp_path / "tokens.npz").write_bytes(whole[:size])
        assert load_dataset(tmp_path) is None


@pytest.mark.parametrize("answer", ['"abc"', '["x"]', "[[1]]", "null", "7"])
def test_an_answer_that_is_no_list_of_tokens_is_refused(tmp_path: Path, answer: str) -> None:
    path = tmp_path / "corpus.jsonl"
    path.write_text(f'{{"number": 0, "prompt": [1], "answer": {answer}}}\n')
    with pytest.raises(RequestError, match="line 1 is no conversation"):
        list(Corpus(path).read())


def test_where_nothing_can_be_written_is_said_first(tmp_path: Path) -> None:
    _check_writable(tmp_path / "new" / "head.gguf")
    (tmp_path / "file").write_text("")
    with pytest.raises(RequestError, match="cannot be made"):
        _check_writable(tmp_path / "file" / "head.gguf")
    with pytest.raises(RequestError, match="cannot be written to"):
        _check_writable(tmp_path / "new")
