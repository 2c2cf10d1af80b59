"""The tables on disk: read back equal, rebuilt when damaged, never half written."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tokenizer.synthetic import bpe_metadata

from stoker.api.errors import RequestError
from stoker.tokenizer import build_tokenizer, load_tokenizer
from stoker.tokenizer.table import TableError, pack, unpack
from stoker.tokenizer.tokenizer import table_path
from stoker.tokenizer.vocabulary import read_vocabulary

DATA = pack(read_vocabulary(bpe_metadata()))


def _fail() -> dict[str, object]:
    raise AssertionError("the metadata must not be read when the cache is whole")


def test_the_second_load_does_not_read_the_metadata(tmp_path: Path) -> None:
    first = load_tokenizer(bpe_metadata, b"key", tmp_path)
    second = load_tokenizer(_fail, b"key", tmp_path)
    text = "hello  world <|im_end|>"
    assert first.encode(text, parse_special=True) == second.encode(text, parse_special=True)
    assert (first.stop_ids, first.vocab_size) == (second.stop_ids, second.vocab_size)
    assert [p.suffix for p in (tmp_path / "tokenizers").iterdir()] == [".tok"]


def test_another_key_is_another_file(tmp_path: Path) -> None:
    load_tokenizer(bpe_metadata, "a", tmp_path)
    load_tokenizer(bpe_metadata, "b", tmp_path)
    assert len(list((tmp_path / "tokenizers").iterdir())) == 2


@pytest.mark.parametrize("damage", [b"", b"short", DATA[:-1], DATA[:200], b"\0" * len(DATA)])
def test_a_damaged_file_is_built_anew(tmp_path: Path, damage: bytes) -> None:
    path = table_path("key", tmp_path)
    path.parent.mkdir(parents=True)
    path.write_bytes(damage)
    tokenizer = load_tokenizer(bpe_metadata, "key", tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello world")) == "hello world"
    assert path.read_bytes() == DATA


@settings(max_examples=100, deadline=None)
@given(at=st.integers(0, len(DATA) - 1), bit=st.integers(0, 7))
def test_any_flipped_bit_is_noticed(at: int, bit: int) -> None:
    broken = bytearray(DATA)
    broken[at] ^= 1 << bit
    with pytest.raises(TableError):
        unpack(bytes(broken))


def test_a_folder_that_cannot_be_written_is_no_error(tmp_path: Path) -> None:
    (tmp_path / "tokenizers").write_text("a file where the folder should be")
    tokenizer = load_tokenizer(bpe_metadata, "key", tmp_path)
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"


def test_stoker_home_is_used(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_HOME", str(tmp_path))
    load_tokenizer(bpe_metadata, "key")
    assert table_path("key", tmp_path).is_file()


def test_tokens_by_id_and_text() -> None:
    metadata = bpe_metadata()
    tokenizer = build_tokenizer(metadata)
    for index, text in enumerate(metadata["tokenizer.ggml.tokens"]):
        assert tokenizer.token_text(index) == text
        assert tokenizer.token_id(text) == index
    assert tokenizer.token_id("no such token") is None
    assert tokenizer.token_bytes(tokenizer.encode(" wor")[0]) == b" wor"


@pytest.mark.parametrize("index", [-1, 10**6, 1 << 63])
def test_an_unknown_id_is_refused(index: int) -> None:
    tokenizer = build_tokenizer(bpe_metadata())
    for call in (tokenizer.token_bytes, tokenizer.token_text, lambda i: tokenizer.decode([i])):
        with pytest.raises(RequestError, match=str(index)):
            call(index)
