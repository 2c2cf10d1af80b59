"""The file of conversations, and what is chosen from it; no model."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from stoker.api.errors import RequestError
from stoker.training.corpus import Conversation, Corpus
from stoker.training.dataset import Dataset, load_dataset
from stoker.training.train import DraftOptions, choose_vocabulary, read_questions


def line(number: int) -> bytes:
    return json.dumps({"number": number, "prompt": [1, 2], "answer": [number]}).encode() + b"\n"


def test_whole_lines_are_read_in_order_of_number(tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "corpus.jsonl")
    assert list(corpus.read()) == []
    corpus.path.write_bytes(line(3) + line(1) + line(2)[:-4])
    assert list(corpus.read()) == [Conversation(1, (1, 2), (1,)), Conversation(3, (1, 2), (3,))]


@pytest.mark.parametrize("bad", [b"no json\n", b'{"number": 1}\n', b"[]\n", b"\xff\xfe\n"])
def test_lines_that_are_no_conversation_are_named(tmp_path: Path, bad: bytes) -> None:
    corpus = Corpus(tmp_path / "corpus.jsonl")
    corpus.path.write_bytes(line(1) + bad)
    with pytest.raises(RequestError, match="line 2 is no conversation"):
        list(corpus.read())


def test_prompts_are_lines_or_objects(tmp_path: Path) -> None:
    path = tmp_path / "prompts"
    path.write_text(
        'What is soot?\n\n{"prompt": "Why\u2028coal?"}\n{"other": 1}\n{not json\n', encoding="utf-8"
    )
    assert read_questions(path) == ("What is soot?", "Why\u2028coal?", "{not json")


@pytest.mark.parametrize("content", [b"", b"\n \n", b'{"prompt": 3}\n', b"\xff\xff"])
def test_a_file_without_prompts_is_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "prompts"
    path.write_bytes(content)
    with pytest.raises(RequestError, match="prompts"):
        read_questions(path)
    with pytest.raises(RequestError, match="cannot be read"):
        read_questions(tmp_path / "none")


def test_the_vocabulary_is_what_answers_have_most_often() -> None:
    token_ids = np.array([9, 9, 9, 9, 5, 5, 40, 7], np.int32)
    data = Dataset(token_ids, token_ids != 9, np.array([0, 8], np.int32), np.zeros((8, 2), np.float16))
    chosen = choose_vocabulary(data, 35)
    assert len(chosen) == 32
    assert (np.diff(chosen) > 0).all()
    assert {5, 40, 7} <= set(chosen.tolist())
    assert choose_vocabulary(data, 131).max() < 131


def test_states_that_do_not_fit_their_tokens_are_computed_again(tmp_path: Path) -> None:
    assert load_dataset(tmp_path) is None
    ids = np.arange(6, dtype=np.int32)
    np.savez(tmp_path / "tokens.npz", token_ids=ids, answers=ids > 2, starts=np.array([0, 6], np.int32))
    states = np.arange(12, dtype=np.float16)
    states.tofile(tmp_path / "features.f16")
    found = load_dataset(tmp_path)
    assert found is not None
    assert found.features.shape == (6, 2)
    assert (found.conversations, found.answer_tokens) == (1, 3)
    states[:-1].tofile(tmp_path / "features.f16")
    assert load_dataset(tmp_path) is None


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"unroll": 9}, {"vocabulary": 3}, {"window": 5}, {"passes": 0}, {"answer_tokens": 0}],
)
def test_options_are_checked(wrong: dict[str, int]) -> None:
    with pytest.raises(RequestError, match=next(iter(wrong))):
        DraftOptions(**wrong)
