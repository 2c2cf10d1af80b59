"""Streaming equals decoding at once, for every sequence of ids and every way to cut it."""

from __future__ import annotations

import functools
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.tokenizer.synthetic import bpe_metadata, spm_metadata

from stoker.api.errors import RequestError
from stoker.tokenizer import Detokenizer, StopStrings, Tokenizer, build_tokenizer, load_tokenizer
from stoker.weights.gguf import GGUFFile


@functools.cache
def _bpe() -> Tokenizer:
    return build_tokenizer(bpe_metadata(user_defined=("<u>",)))


@functools.cache
def _spm() -> Tokenizer:
    pieces = [("\u2581", -5.0), ("a", -6.0), ("\u2581a", -1.0), ("\u00e9", -7.0), ("\U0001f642", -8.0)]
    return build_tokenizer(spm_metadata(pieces))


def _check(tokenizer: Tokenizer, pushes: list[list[int]], skip_special: bool, continuation: bool) -> None:
    detokenizer = Detokenizer(tokenizer, skip_special=skip_special, continuation=continuation)
    parts = [detokenizer.push(ids) for ids in pushes] + [detokenizer.flush()]
    ids = [index for push in pushes for index in push]
    whole = tokenizer.decode(ids, skip_special=skip_special, continuation=continuation)
    assert "".join(parts) == whole
    raw = tokenizer.join_bytes(ids, skip_special=skip_special)
    expected = raw.decode("utf-8", "replace")
    if tokenizer.add_space_prefix and not continuation and expected.startswith(" "):
        expected = expected[1:]
    assert whole == expected


@settings(max_examples=300, deadline=None)
@given(
    pushes=st.lists(st.lists(st.integers(0, 267), max_size=4), max_size=12),
    skip_special=st.booleans(),
    continuation=st.booleans(),
)
@pytest.mark.parametrize("make", [_bpe, _spm])
def test_pushes_and_flush_equal_decode(
    make: object, pushes: list[list[int]], skip_special: bool, continuation: bool
) -> None:
    tokenizer = make()  # type: ignore[operator]
    known = [[index % tokenizer.vocab_size for index in ids] for ids in pushes]
    _check(tokenizer, known, skip_special, continuation)


@settings(max_examples=200, deadline=None)
@given(text=st.text(min_size=1, max_size=20))
@pytest.mark.parametrize("make", [_bpe, _spm])
def test_no_half_characters(make: object, text: str) -> None:
    """Of a valid text no U+FFFD is ever given, and each push gives a beginning of what is left."""
    tokenizer = make()  # type: ignore[operator]
    text = text.replace("\u2581", "").removeprefix(" ").removeprefix(" ")
    detokenizer = Detokenizer(tokenizer)
    left = text
    for index in tokenizer.encode(text):
        emitted = detokenizer.push((index,))
        assert left.startswith(emitted)
        left = left[len(emitted) :]
    assert left == ""
    assert detokenizer.flush() == ""


def test_invalid_bytes_are_given_as_soon_as_they_are_certain() -> None:
    tokenizer = _spm()
    byte = {value: tokenizer.token_id(f"<0x{value:02X}>") for value in (0xF0, 0x9F, 0x41, 0xFF)}
    detokenizer = Detokenizer(tokenizer)
    assert detokenizer.push([byte[0xF0]]) == ""
    assert detokenizer.push([byte[0x9F]]) == ""
    assert detokenizer.push([byte[0x41]]) == "\ufffdA"
    assert detokenizer.push([byte[0xFF]]) == "\ufffd"
    assert detokenizer.push([byte[0xF0]]) == ""
    assert detokenizer.flush() == "\ufffd"
    assert detokenizer.flush() == ""


@pytest.mark.parametrize("index", [-1, 10**9])
def test_an_unknown_id_is_refused(index: int) -> None:
    with pytest.raises(RequestError, match=str(index)):
        Detokenizer(_bpe()).push([index])


@pytest.mark.model
@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_real_vocabularies(
    fixture: str, request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = request.getfixturevalue(fixture)
    with GGUFFile.open(path) as file:
        tokenizer = load_tokenizer(file.metadata, path.name, tmp_path_factory.getbasetemp())

    @settings(max_examples=150, deadline=None)
    @given(
        pushes=st.lists(st.lists(st.integers(0, tokenizer.vocab_size - 1), max_size=4), max_size=12),
        skip_special=st.booleans(),
        continuation=st.booleans(),
    )
    def check(pushes: list[list[int]], skip_special: bool, continuation: bool) -> None:
        _check(tokenizer, pushes, skip_special, continuation)

    check()


def test_a_token_takes_microseconds() -> None:
    """The bound is ten times what was measured, for busy machines: it finds re-decoding, not noise."""
    tokenizer = _bpe()
    ids = tokenizer.encode("hello world \u00e9 \U0001f642 " * 200)
    detokenizer = Detokenizer(tokenizer, continuation=True)
    start = time.perf_counter()
    for index in ids:
        detokenizer.push((index,))
    assert (time.perf_counter() - start) / len(ids) < 20e-6


# --- stop strings ----------------------------------------------------------------------------------


def _plain_stop(stops: list[str], text: str) -> tuple[str, bool]:
    """Read character by character; stop where any stop string is completed, the longest if several."""
    for end in range(1, len(text) + 1):
        done = [stop for stop in stops if text[:end].endswith(stop)]
        if done:
            return text[: end - max(map(len, done))], True
    return text, False


@settings(max_examples=500, deadline=None)
@given(
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), max_size=4),
    pieces=st.lists(st.text(alphabet="abc", max_size=4), max_size=12),
)
def test_stop_strings_equal_the_plain_search(stops: list[str], pieces: list[str]) -> None:
    finder = StopStrings(stops)
    emitted, stopped = "", False
    for piece in pieces:
        result = finder.push(piece)
        assert not (stopped and (result.emit or not result.stopped))
        emitted, stopped = emitted + result.emit, result.stopped
    text = "".join(pieces)
    whole, expected = _plain_stop(stops, text)
    assert stopped == expected
    assert (emitted if stopped else emitted + finder.flush()) == whole
    assert (finder.matched is not None) == expected


@settings(max_examples=200, deadline=None)
@given(
    stops=st.lists(st.text(alphabet="ab", min_size=1, max_size=5), min_size=1, max_size=3),
    text=st.text(alphabet="abc", max_size=20),
)
def test_nothing_is_held_back_without_need(stops: list[str], text: str) -> None:
    """What is held after a push is the longest end of the text that starts a stop string."""
    finder = StopStrings(stops)
    emit, stopped = finder.push(text)
    if not stopped:
        ends = [text[at:] for at in range(len(text)) if any(s.startswith(text[at:]) for s in stops)]
        assert emit == text[: len(text) - max(map(len, ends), default=0)]


def test_bad_stop_strings_are_refused() -> None:
    for stops in ([""], ["x" * 5000], ["x"] * 65):
        with pytest.raises(RequestError):
            StopStrings(stops)
