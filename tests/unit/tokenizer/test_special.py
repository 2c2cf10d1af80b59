"""Cutting special tokens out of texts, against llama.cpp's rule stated plainly."""

from __future__ import annotations

from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tokenizer.synthetic import bpe_metadata

from stoker.tokenizer import build_tokenizer
from stoker.tokenizer.partition import Partition, Piece, Special, merge_spans, partitions_simply


def _plain_partition(texts: list[str], text: str) -> list[Piece]:
    """The longest special token is cut out everywhere, then the next longest in what is left."""
    pieces: list[Piece] = [text] if text else []
    for special in sorted(texts, key=lambda t: -len(t.encode())):
        cut: list[Piece] = []
        for piece in pieces:
            if isinstance(piece, int):
                cut.append(piece)
                continue
            for at, part in enumerate(piece.split(special)):
                if at:
                    cut.append(texts.index(special))
                if part:
                    cut.append(part)
        pieces = cut
    return pieces


specials = st.lists(st.text(alphabet="ab<", min_size=1, max_size=4), min_size=1, max_size=5, unique=True)


@settings(max_examples=300, deadline=None)
@given(texts=specials, text=st.text(alphabet="ab<", max_size=20))
def test_partition_is_longest_first(texts: list[str], text: str) -> None:
    partition = Partition(
        [Special(t, at, True) for at, t in enumerate(texts)], simple=partitions_simply(texts)
    )
    assert partition.split(text) == _plain_partition(texts, text)


def test_runs_and_tags_are_simple_and_overlaps_are_not() -> None:
    assert partitions_simply(["\n" * count for count in range(1, 32)] + ["<table>", "<tr>"])
    assert not partitions_simply(["ab", "bc"])


def test_a_literal_span_keeps_control_tokens_as_text() -> None:
    tokenizer = build_tokenizer(bpe_metadata(user_defined=("<u>",)))
    text = "<|im_end|><u><|im_end|>"
    ids = tokenizer.encode(text, parse_special=True, literal=[(12, 14)])
    assert ids[:2] == [1, 2]
    assert 1 not in ids[2:]
    assert tokenizer.decode(ids, skip_special=False) == text


@settings(max_examples=100, deadline=None)
@given(text=st.lists(st.sampled_from(["<|im_end|>", "<|im_", "end|>", "x"]), max_size=6).map("".join))
def test_user_text_never_gives_control_tokens(text: str) -> None:
    tokenizer = build_tokenizer(bpe_metadata())
    ids = tokenizer.encode(text)
    assert not any(tokenizer.is_special(index) for index in ids)
    assert tokenizer.decode(ids) == text


def test_control_spans_overlap_and_merge() -> None:
    tokenizer = build_tokenizer(bpe_metadata(specials=("<a>", "></", "<b>")))
    assert tokenizer.control_spans("x<a></y <b>") == [(1, 6), (8, 11)]
    assert merge_spans([(3, 5), (0, 1), (4, 9), (9, 10)]) == [(0, 1), (3, 10)]


def test_many_literal_specials_take_linear_time() -> None:
    tokenizer = build_tokenizer(bpe_metadata())
    text = "<|im_end|>x" * 5000
    spans = [(at, at + 10) for at in range(0, len(text), 11)]
    assert 1 not in tokenizer.encode(text, parse_special=True, literal=spans)


def test_added_tokens_around_a_text() -> None:
    metadata = bpe_metadata(**{"tokenizer.ggml.add_bos_token": True, "tokenizer.ggml.add_eos_token": True})
    tokenizer = build_tokenizer(metadata)
    assert tokenizer.encode("") == [0, 1]
    assert tokenizer.encode("", add_special=False) == []
    assert tokenizer.encode("hello")[0] == 0
