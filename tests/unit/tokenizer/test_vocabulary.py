"""What a broken or foreign vocabulary is answered with, and what ends a generation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from tests.unit.tokenizer.synthetic import bpe_metadata, spm_metadata

from stoker.api.errors import ModelFormatError
from stoker.tokenizer import build_tokenizer
from stoker.tokenizer.pretokenizer import PRE_TOKENIZERS

PIECES = [("\u2581", -5.0), ("a", -6.0), ("b", -7.0), ("ab", -1.0), ("\u2581ab", -2.0)]


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.model": None}, "tokenizer.ggml.model is missing"),
        ({"tokenizer.ggml.model": "bert"}, "known: gpt2, llama"),
        ({"tokenizer.ggml.pre": "no-such"}, "known: .*smollm"),
        ({"tokenizer.ggml.pre": 7}, "tokenizer.ggml.pre is int 7"),
        ({"tokenizer.ggml.tokens": None}, "tokenizer.ggml.tokens is missing"),
        ({"tokenizer.ggml.tokens": []}, "has 0 entries"),
        ({"tokenizer.ggml.tokens": "abc"}, "an array is needed"),
        ({"tokenizer.ggml.tokens": ["a", 5]}, r"tokens\[1\]"),
        ({"tokenizer.ggml.tokens": ["a", "a"]}, "more than once"),
        ({"tokenizer.ggml.token_type": [1]}, "1 entries for"),
        ({"tokenizer.ggml.merges": None}, "tokenizer.ggml.merges is missing"),
        ({"tokenizer.ggml.merges": ["h"]}, r"merges\[0\]"),
        ({"tokenizer.ggml.merges": ["h zz"]}, r"merges\[0\]"),
        ({"tokenizer.ggml.merges": [3]}, r"merges\[0\]"),
        ({"tokenizer.ggml.bos_token_id": 99999}, "bos_token_id is 99999"),
        ({"tokenizer.ggml.eos_token_id": -1}, "eos_token_id is -1"),
        ({"tokenizer.ggml.eos_token_id": "x"}, "a token id is needed"),
        ({"tokenizer.ggml.add_bos_token": "yes"}, "a bool is needed"),
        ({"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.bos_token_id": None}, "no bos_token_id"),
        ({"tokenizer.chat_template": 5}, "a string is needed"),
    ],
)
def test_broken_bpe_metadata_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFormatError, match=named):
        build_tokenizer(bpe_metadata(**change))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"tokenizer.ggml.scores": None}, "scores is missing"),
        ({"tokenizer.ggml.scores": [0.0]}, "1 entries for"),
        ({"tokenizer.ggml.scores": [math.nan] * 999}, "a number is needed"),
    ],
)
def test_broken_spm_metadata_is_refused(change: dict[str, Any], named: str) -> None:
    with pytest.raises(ModelFormatError, match=named):
        build_tokenizer(spm_metadata(PIECES, **change))


def test_spm_without_byte_tokens_is_refused() -> None:
    metadata = spm_metadata(PIECES)
    metadata["tokenizer.ggml.tokens"][3] = "x"
    with pytest.raises(ModelFormatError, match="<0x00>"):
        build_tokenizer(metadata)


def test_overlong_spm_token_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="at most 512"):
        build_tokenizer(spm_metadata([("a" * 100_000, -1.0)]))


def test_numpy_arrays_are_taken_like_lists() -> None:
    lists = spm_metadata(PIECES)
    arrays = {
        **lists,
        "tokenizer.ggml.scores": np.array(lists["tokenizer.ggml.scores"], np.float32),
        "tokenizer.ggml.token_type": np.array(lists["tokenizer.ggml.token_type"], np.int32),
        "tokenizer.ggml.bos_token_id": np.uint32(1),
    }
    assert build_tokenizer(arrays).encode("ab ab") == build_tokenizer(lists).encode("ab ab")


def test_a_vocabulary_without_merges_gives_single_bytes() -> None:
    tokenizer = build_tokenizer(bpe_metadata(merges=()))
    assert tokenizer.decode(tokenizer.encode("hello")) == "hello"
    assert len(tokenizer.encode("hello")) == 5


def test_every_end_token_stops() -> None:
    metadata = bpe_metadata(specials=("<s>", "<|endoftext|>", "<|im_end|>", "<|fim_pad|>", "<|other|>"))
    tokenizer = build_tokenizer(metadata)
    assert tokenizer.stop_ids == (1, 2, 3)
    assert tokenizer.eot_id == 2


def test_an_end_token_marked_normal_becomes_control() -> None:
    metadata = bpe_metadata(specials=("<s>", "</s>"), user_defined=("<|im_end|>",))
    tokenizer = build_tokenizer(metadata)
    assert tokenizer.is_special(2)
    assert 2 in tokenizer.stop_ids
    assert 2 not in tokenizer.encode("<|im_end|>")


def test_harmony_end_of_message_does_not_stop() -> None:
    tokenizer = build_tokenizer(bpe_metadata(specials=("<s>", "<|return|>", "<|call|>", "<|end|>")))
    assert tokenizer.stop_ids == (1, 2)


def test_every_known_pre_tokenizer_builds() -> None:
    for name in PRE_TOKENIZERS:
        tokenizer = build_tokenizer(bpe_metadata(pre=name))
        text = "Hello world 1234, don't  stop\n\n é 你好"
        assert tokenizer.decode(tokenizer.encode(text)) == text
