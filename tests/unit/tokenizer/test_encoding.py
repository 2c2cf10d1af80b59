"""The two roads from text to ids, against each other and against the plain statement of the algorithm."""

from __future__ import annotations

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tokenizer.synthetic import bpe_metadata, plain_spm_ids, spm_metadata

from stoker.tokenizer import Tokenizer, build_tokenizer
from stoker.tokenizer.pretokenizer import PRE_TOKENIZERS, ascii_splitter, library_pre_tokenizer

LETTERS = ["\u2581", "a", "b", "c"]
piece_texts = st.lists(
    st.text(alphabet="\u2581ab", min_size=2, max_size=6), min_size=1, max_size=25, unique=True
)


def _roads(metadata: dict[str, object]) -> tuple[Tokenizer, Tokenizer]:
    """A tokenizer that never builds the library's model, and one that does at once."""
    return build_tokenizer(metadata, library_after_chars=1 << 40), build_tokenizer(
        metadata, library_after_chars=0
    )


@settings(max_examples=60, deadline=None)
@given(pieces=piece_texts, texts=st.lists(st.text(alphabet="ab \u00e9z", max_size=24), max_size=8))
def test_spm_equals_the_plain_algorithm_on_both_roads(pieces: list[str], texts: list[str]) -> None:
    scored = [(text, -float(at)) for at, text in enumerate(pieces)]
    scored += [(letter, -1000.0 - at) for at, letter in enumerate(LETTERS)]
    metadata = spm_metadata(scored, **{"tokenizer.ggml.add_space_prefix": False})
    tables, library = _roads(metadata)
    for text in texts:
        expected = plain_spm_ids(metadata, text)
        assert tables.encode(text, add_special=False) == expected
        assert library.encode(text, add_special=False) == expected


@settings(max_examples=60, deadline=None)
@given(
    pieces=piece_texts,
    scores=st.lists(st.integers(-3, 0), min_size=25, max_size=25),
    texts=st.lists(st.text(alphabet="ab ", max_size=24), max_size=8),
)
def test_spm_with_equal_scores_takes_the_leftmost(
    pieces: list[str], scores: list[int], texts: list[str]
) -> None:
    scored = [(text, float(score)) for text, score in zip(pieces, scores, strict=False)]
    scored += [(letter, -1000.0) for letter in LETTERS]
    metadata = spm_metadata(scored, **{"tokenizer.ggml.add_space_prefix": False})
    tokenizer = build_tokenizer(metadata, library_after_chars=0)
    for text in texts:
        assert tokenizer.encode(text, add_special=False) == plain_spm_ids(metadata, text)


@settings(max_examples=40, deadline=None)
@given(pieces=piece_texts, text=st.text(alphabet="ab ", max_size=30))
def test_spm_merges_through_letters_that_are_no_tokens(pieces: list[str], text: str) -> None:
    """A letter that only occurs inside longer tokens still merges; alone it is written as bytes."""
    scored = [(piece, -float(at)) for at, piece in enumerate(pieces)] + [("b", -99.0)]
    metadata = spm_metadata(scored, **{"tokenizer.ggml.add_space_prefix": False})
    expected = plain_spm_ids(metadata, text)
    for tokenizer in _roads(metadata):
        assert tokenizer.encode(text, add_special=False) == expected


@settings(max_examples=100, deadline=None)
@given(text=st.text(max_size=60))
def test_bpe_roads_agree(text: str) -> None:
    tables, library = _roads(bpe_metadata())
    assert tables.encode(text) == library.encode(text)
    assert tables.decode(tables.encode(text)) == text


def test_bpe_whole_words_are_not_merged() -> None:
    """With ignore_merges a word that is a token is that token, even where merging would stop short of it."""
    metadata = bpe_metadata(merges=("a b", "c d"), pre="llama-bpe", user_defined=())
    metadata["tokenizer.ggml.tokens"].append("abcd")
    metadata["tokenizer.ggml.token_type"].append(1)
    whole = len(metadata["tokenizer.ggml.tokens"]) - 1
    for tokenizer in _roads(metadata):
        assert tokenizer.encode("abcd", add_special=False) == [whole]
        assert len(tokenizer.encode("abcdab", add_special=False)) == 3


def test_bpe_byte_without_a_token_is_dropped_and_blocks_merging() -> None:
    metadata = bpe_metadata(merges=("a b",))
    missing = metadata["tokenizer.ggml.tokens"].index("\u0104")  # byte 0x04
    metadata["tokenizer.ggml.tokens"][missing] = "<unused>"
    a, b = (metadata["tokenizer.ggml.tokens"].index(letter) for letter in "ab")
    for tokenizer in _roads(metadata):
        assert tokenizer.encode("a\x04b") == [a, b]
        assert tokenizer.encode("ab\x04") == [len(metadata["tokenizer.ggml.tokens"]) - 1]


@pytest.mark.parametrize("name", sorted(PRE_TOKENIZERS))
@settings(max_examples=60, deadline=None)
@given(
    text=st.text(
        alphabet=st.one_of(
            st.sampled_from("aZ'sStT09 \n\r\t.,$^~|/_-<>[]\\"), st.characters(max_codepoint=127)
        ),
        max_size=40,
    )
)
def test_ascii_words_are_the_library_s_words(name: str, text: str) -> None:
    found = [text[a:b] for _, (a, b) in library_pre_tokenizer(name).pre_tokenize_str(text)]
    assert ascii_splitter(name)(text) == found
    assert "".join(found) == text


def test_smollm_words() -> None:
    """Stated by hand, so that both splitters cannot be wrong together."""
    split = ascii_splitter("smollm")
    assert split("I've 123 cats...  ok\n\nno") == [
        "I", "'ve", " ", "1", "2", "3", " cats", "...", " ", " ok", "\n", "\n", "no",
    ]  # fmt: skip
    assert ascii_splitter("llama-bpe")("I'VE 12345 cats...\n  ok") == [
        "I", "'VE", " ", "123", "45", " cats", "...\n", " ", " ok",
    ]  # fmt: skip


def test_the_library_takes_over_after_enough_text() -> None:
    tokenizer = build_tokenizer(bpe_metadata(), library_after_chars=100)
    before = tokenizer.encode("hello world")
    for length in range(1, 30):
        tokenizer.encode("w" * length)
    assert tokenizer._plain._library is not None
    assert tokenizer.encode("hello world") == before


def test_long_texts_do_not_take_quadratic_time() -> None:
    """100 000 letters in one word: seconds if each merge moved the rest."""
    scored = [("a" * (1 << power), -float(power)) for power in range(1, 7)] + [("a", -99.0)]
    tokenizer = build_tokenizer(spm_metadata(scored), library_after_chars=1 << 40)
    assert len(tokenizer.encode("a" * 100_000, add_special=False)) < 100_000 // 32


def test_lone_surrogates_are_replaced_and_pairs_joined() -> None:
    tokenizer = build_tokenizer(bpe_metadata())
    assert tokenizer.decode(tokenizer.encode("a\ud800b")) == "a\ufffdb"
    assert tokenizer.decode(tokenizer.encode("\ud83d\ude42")) == "\U0001f642"


def test_space_prefix_comes_after_each_special_token() -> None:
    pieces = [("\u2581", -5.0), ("a", -6.0), ("\u2581a", -1.0)]
    metadata = spm_metadata(pieces, user_defined=("<u>",))
    tokenizer = build_tokenizer(metadata)
    ids = {text: at for at, text in enumerate(metadata["tokenizer.ggml.tokens"])}
    word = ids["\u2581a"]
    assert tokenizer.encode("a<u>a a") == [1, word, ids["<u>"], word, word]
    assert tokenizer.decode(tokenizer.encode("a a")) == "a a"
    assert tokenizer.decode([word, word]) == "a a"
    assert tokenizer.decode([word], continuation=True) == " a"


def test_control_token_text_is_text_even_where_merges_lead_to_it() -> None:
    """'<s' and '>' are tokens and '<s>' has a score, yet user text never becomes the control token."""
    pieces = [("<", -5.0), ("s", -6.0), (">", -7.0), ("<s", -1.0), ("\u2581", -9.0)]
    tokenizer = build_tokenizer(spm_metadata(pieces, **{"tokenizer.ggml.add_space_prefix": False}))
    ids = tokenizer.encode("<s>", add_special=False)
    assert 1 not in ids
    assert tokenizer.decode(ids) == "<s>"
    assert tokenizer.encode("<s>", add_special=False, parse_special=True) == [1]
    byte_like = tokenizer.encode("<0x0A>", add_special=False)
    assert tokenizer.decode(byte_like) == "<0x0A>"
    assert not re.search("\n", tokenizer.decode(byte_like))


@pytest.mark.parametrize("pre", ["smollm", "llama-bpe"])
def test_bpe_merges_that_lead_to_a_control_token_are_left_out(pre: str) -> None:
    metadata = bpe_metadata(merges=("a b", "ab c"), specials=("abc", "<e>"), pre=pre)
    for tokenizer in _roads(metadata):
        ids = tokenizer.encode("abc", add_special=False)
        assert not any(tokenizer.is_special(index) for index in ids)
        assert tokenizer.decode(ids) == "abc"
        assert tokenizer.encode("abc", add_special=False, parse_special=True) == [0]
