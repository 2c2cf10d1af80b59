"""Server-sent events cut anywhere; what a stream is worth."""

from __future__ import annotations

import itertools
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.bench.serve_events import MOST_LINE_BYTES, EventStream, message_of, read_stream
from stoker.bench.serve_http import Exchange


def _events(data: bytes, cuts: list[int]) -> list[bytes]:
    stream = EventStream()
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    return [event for start, end in itertools.pairwise(edges) for event in stream.feed(data[start:end])]


@given(
    payloads=st.lists(
        st.text(st.characters(codec="utf-8", exclude_characters="\r\n"), min_size=1, max_size=30), max_size=6
    ),
    end=st.sampled_from([b"\n", b"\r\n", b"\r"]),
    space=st.sampled_from([b"", b" "]),
    noise=st.sampled_from([b"", b": comment", b"event: token", b"id"]),
    mark=st.booleans(),
    cuts=st.lists(st.integers(0, 10_000), max_size=80),
)
def test_events_are_the_same_however_they_are_cut_and_whatever_ends_their_lines(
    payloads: list[str], end: bytes, space: bytes, noise: bytes, mark: bool, cuts: list[int]
) -> None:
    data = b"\xef\xbb\xbf" if mark else b""
    for payload in payloads:
        # One leading space is the field's; a payload's own must come behind it.
        lead = b" " if payload.startswith(" ") else space
        data += (noise + end if noise else b"") + b"data:" + lead + payload.encode() + end + end
    expected = [payload.encode() for payload in payloads]
    assert _events(data, cuts) == expected
    assert _events(data, []) == expected
    assert _events(data, list(range(len(data)))) == expected


def test_several_data_lines_are_one_event_and_an_unended_event_is_none() -> None:
    assert _events(b"data: a\ndata\ndata:b\n\n\n\ndata: lost\n", []) == [b"a\n\nb"]


def test_a_line_without_end_stops_the_reading() -> None:
    stream = EventStream()
    for _ in range(MOST_LINE_BYTES // 1024 + 1):
        assert stream.feed(b"x" * 1024) == []
    assert stream.too_long
    assert stream.feed(b"\n\ndata: a\n\n") == []


def _exchange(*pieces: tuple[float, bytes], status: int = 200, **fields: Any) -> Exchange:
    return Exchange(1.0, 9.0, status, list(pieces), **fields)


def _said(**choice: Any) -> bytes:
    return b"data: " + json.dumps({"choices": [choice]}).encode() + b"\n\n"


USAGE = (
    b'data: {"choices":[],"usage":{"prompt_tokens":5,"completion_tokens":6,'
    b'"prompt_tokens_details":{"cached_tokens":4}}}\n\n'
)
DONE = b"data: [DONE]\n\n"


def test_tokens_are_counted_by_ids_else_by_usage_else_by_events() -> None:
    ids = _said(text="", token_ids=[1, 2]), _said(text="ab", token_ids=[3], finish_reason="length")
    record = read_stream(_exchange((2.0, ids[0]), (3.0, ids[1] + USAGE + DONE)))
    assert record.arrivals == ((2.0, 2), (3.0, 1))
    assert (record.output_tokens, record.counted_by, record.error) == (3, "token_ids", None)
    assert (record.prompt_tokens, record.cached_tokens) == (5, 4)

    texts = _said(text="a"), _said(text="b") + _said(text="c"), _said(text="", finish_reason="stop")
    record = read_stream(_exchange((2.0, texts[0]), (3.0, texts[1]), (4.0, texts[2] + USAGE + DONE)))
    assert record.arrivals == ((2.0, 1), (3.0, 2))
    assert (record.output_tokens, record.counted_by) == (6, "usage")

    record = read_stream(_exchange((2.0, texts[0]), (3.0, texts[1]), (4.0, DONE)))
    assert (record.output_tokens, record.counted_by, record.prompt_tokens) == (3, "events", None)


def test_a_chats_role_is_no_token() -> None:
    role = _said(delta={"role": "assistant", "content": ""})
    record = read_stream(_exchange((2.0, role), (3.0, _said(delta={"content": "a"}) + DONE)))
    assert record.arrivals == ((3.0, 1),)


def test_an_event_comes_when_its_last_byte_does() -> None:
    data = _said(text="a")
    record = read_stream(_exchange((2.0, data[:-1]), (3.0, data[-1:] + DONE)))
    assert record.arrivals == ((3.0, 1),)


def test_a_missing_done_is_forgiven_where_the_choice_has_ended() -> None:
    assert read_stream(_exchange((2.0, _said(text="a", finish_reason="length")))).error is None
    assert read_stream(_exchange((2.0, _said(text="a")))).error == "incomplete"


@pytest.mark.parametrize(
    ("exchange", "error", "detail"),
    [
        (_exchange(failure="timeout", detail="late"), "timeout", "late"),
        (_exchange((2.0, _said(text="a")), failure="closed", detail="gone"), "closed", "gone"),
        (_exchange((2.0, b'{"error":{"message":"full"}}'), status=429), "http_429", "full"),
        (_exchange((2.0, b'{"detail":"no"}'), status=404), "http_404", "no"),
        (_exchange((2.0, b"<html>"), status=502), "http_502", "<html>"),
        (_exchange((2.0, b'data: {"error":{"message":"died"}}\n\n' + DONE)), "stream_error", "died"),
        (_exchange((2.0, b"data: {\n\n" + DONE)), "protocol", "JSON"),
        (_exchange((2.0, b"data: [1]\n\n" + DONE)), "protocol", "JSON"),
        (_exchange((2.0, b"data: " + b"x" * (MOST_LINE_BYTES + 1))), "stream_error", "longer"),
        (_exchange((2.0, b"data: " + b"[" * 100_000 + b"\n\n" + DONE)), "protocol", "JSON"),
        (_exchange((2.0, DONE)), "empty", "no token"),
        (_exchange(), "incomplete", "finish_reason"),
    ],
)
def test_errors_have_kinds(exchange: Exchange, error: str, detail: str) -> None:
    record = read_stream(exchange)
    assert record.error == error
    assert detail in record.detail


@given(
    st.recursive(
        st.none() | st.integers() | st.text(),
        lambda v: (
            st.lists(v)
            | st.dictionaries(
                st.sampled_from(
                    [
                        "choices",
                        "usage",
                        "error",
                        "delta",
                        "text",
                        "token_ids",
                        "content",
                        "completion_tokens",
                        "prompt_tokens_details",
                    ]
                ),
                v,
            )
        ),
    )
)
def test_any_json_is_read_without_an_exception(value: Any) -> None:
    data = json.dumps(value).encode()
    read_stream(_exchange((2.0, b"data: " + data + b"\n\n" + DONE)))
    message_of(data)
