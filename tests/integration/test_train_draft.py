"""`stoker train-draft` on a real model: what it generates, and, where torch is, a head from end to end."""

from __future__ import annotations

import json
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.fakes import CountingSeeds

from stoker.api.errors import RequestError
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.engine.text import TextEngine
from stoker.training.corpus import Conversation, Corpus
from stoker.training.dataset import compute_dataset
from stoker.training.train import DraftOptions, train_draft

pytestmark = [pytest.mark.model, pytest.mark.slow]


@pytest.fixture(scope="module")
def text(smollm2_path: Path) -> TextEngine:
    return load_text_engine(smollm2_path, LoadOptions(speculation="off"), seeds=CountingSeeds())


def generated(text: TextEngine, path: Path, tokens: int) -> dict[int, Conversation]:
    corpus = Corpus(path)
    corpus.generate(text, answer_tokens=tokens, most_tokens_each=24)
    return {one.number: one for one in corpus.read()}


def test_an_interrupted_corpus_goes_on_as_it_would_have(text: TextEngine, tmp_path: Path) -> None:
    whole = generated(text, tmp_path / "whole.jsonl", 900)
    parts = tmp_path / "parts.jsonl"
    first = generated(text, parts, 200)
    with parts.open("ab") as file:
        file.write(b'{"number": 7, "prompt": [1')
    found = generated(text, parts, 900)
    assert first.items() <= found.items()
    both = whole.keys() & found.keys()
    assert len(both) > 20
    assert all(whole[number] == found[number] for number in both)
    assert sum(len(one.answer) for one in found.values()) >= 900
    question = text.tokenizer.decode(list(next(iter(found.values())).prompt))
    assert "user\n" in question
    begun = [text.tokenizer.decode(list(found[n].prompt)) for n in (4, 5, 6, 7) if n in found]
    assert begun
    assert all("user\nWrite a Python function" in prompt for prompt in begun)


def test_given_questions_are_asked_and_then_there_are_no_more(text: TextEngine, tmp_path: Path) -> None:
    corpus = Corpus(tmp_path / "corpus.jsonl")
    questions = ("Why is soot black?", "?", "What does a stoker do all day?")
    corpus.generate(text, answer_tokens=10_000, most_tokens_each=8, questions=questions)
    found = list(corpus.read())
    assert [one.number for one in found] == [0, 2]  # one is too short to be a question
    assert "soot" in text.tokenizer.decode(list(found[0].prompt))
    with pytest.raises(RequestError, match="2048 or more"):
        compute_dataset(tmp_path, found, text.engine.interpreter, batch_tokens=512)


def test_states_are_those_of_embeddings(text: TextEngine, tmp_path: Path) -> None:
    """The same bits, rounded to half precision, whatever the chunks."""
    ids = tuple(range(100, 100 + 3000))
    one, other = (
        compute_dataset(
            folder, [Conversation(0, ids[:50], ids[50:])], text.engine.interpreter, batch_tokens=size
        )
        for folder, size in ((tmp_path / "a", 512), (tmp_path / "b", 131))
        if folder.mkdir() is None
    )
    assert one.features.shape == (3000, 576)
    assert np.array_equal(one.features.view(np.uint16), other.features.view(np.uint16))


@pytest.mark.skipif(find_spec("torch") is not None, reason="torch is installed")
def test_without_torch_it_says_what_to_install(smollm2_path: Path, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"torch.*stoker\[train\]"):
        train_draft(
            smollm2_path, tmp_path, tmp_path / "h.gguf", DraftOptions(), questions=(), told=lambda *_: None
        )


@pytest.mark.skipif(find_spec("torch") is None, reason="needs torch: pip install 'stoker[train]'")
def test_a_head_from_end_to_end(smollm2_path: Path, tmp_path: Path) -> None:
    options = DraftOptions(answer_tokens=2500, answer_length=64, steps=6, vocabulary=1024, threads=1)
    told: list[str] = []

    def train(**changes: int) -> Path:
        head = tmp_path / "head.gguf"
        settings = options if not changes else DraftOptions(**options.__dict__ | changes)
        train_draft(
            smollm2_path, tmp_path / "work", head, settings, questions=(),
            told=lambda part, done, total, what: told.append(part),
        )  # fmt: skip
        return head

    head = train()
    assert {"text", "states", "training"} <= set(told)
    first = head.read_bytes()
    told.clear()
    assert train().read_bytes() == first  # nothing is left to do
    assert "text" not in told
    note = json.loads((tmp_path / "work" / "run.json").read_text())
    assert note["seed"] == 0
    with pytest.raises(RequestError, match="holds a run"):
        train_draft(
            smollm2_path, tmp_path / "work", head, DraftOptions(seed=1), questions=(), told=lambda *_: None
        )
    loaded = load_text_engine(smollm2_path, LoadOptions(draft_head=str(head)), seeds=CountingSeeds())
    assert "eagle" in [one.name for one in loaded.engine.offered]
    assert "SHA-256" in head.with_suffix(".md").read_text()


def test_a_head_of_another_model_is_told_of_and_not_used(
    smollm2_path: Path, gemma3_path: Path, tmp_path: Path
) -> None:
    (tmp_path / "cut.gguf").write_bytes(b"GGUF\x03\x00\x00")
    for wrong in (str(gemma3_path), str(tmp_path / "cut.gguf"), str(tmp_path / "none.gguf")):
        loaded = load_text_engine(smollm2_path, LoadOptions(draft_head=wrong), seeds=CountingSeeds())
        assert "eagle" not in [one.name for one in loaded.engine.offered]
        assert any("no drafts by a head" in note for note in loaded.notes)
