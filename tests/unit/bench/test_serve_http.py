"""The response parser on bytes that are cut anywhere and on bytes that are not HTTP; kept connections."""

from __future__ import annotations

import asyncio
import itertools
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.unit.bench.serve_fakes import listening

from stoker.api.errors import RequestError
from stoker.bench.serve_http import (
    MOST_HEAD_BYTES,
    MOST_LINE_BYTES,
    Address,
    Client,
    Exchange,
    ResponseParser,
)

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


def _fed(data: bytes, cuts: list[int]) -> tuple[ResponseParser, bytes]:
    parser = ResponseParser()
    body = b""
    edges = [0, *sorted(cut % (len(data) + 1) for cut in cuts), len(data)]
    for start, end in itertools.pairwise(edges):
        body += parser.feed(data[start:end])
    return parser, body


@given(
    chunks=st.lists(st.binary(min_size=1, max_size=40), max_size=8),
    cuts=st.lists(st.integers(0, 10_000), max_size=60),
    extension=st.sampled_from([b"", b";name=value", b" ; a"]),
    trailer=st.sampled_from([b"", b"X-Sum: 1\r\n"]),
)
def test_a_chunked_body_is_the_same_however_it_is_cut(
    chunks: list[bytes], cuts: list[int], extension: bytes, trailer: bytes
) -> None:
    coded = b"".join(b"%x%b\r\n%b\r\n" % (len(chunk), extension, chunk) for chunk in chunks)
    parser, body = _fed(HEAD + coded + b"0\r\n" + trailer + b"\r\n", cuts)
    assert parser.problem is None
    assert parser.done
    assert parser.keeps_alive
    assert body == b"".join(chunks)


@given(body=st.binary(max_size=100), cuts=st.lists(st.integers(0, 10_000), max_size=60))
def test_a_body_of_known_length_is_the_same_however_it_is_cut(body: bytes, cuts: list[int]) -> None:
    data = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 No\r\nContent-Length: %d\r\n\r\n%b" % (len(body), body)
    parser, found = _fed(data, cuts)
    assert (parser.status, parser.done, found) == (404, True, body)


@given(data=st.binary(max_size=300), cuts=st.lists(st.integers(0, 10_000), max_size=5))
def test_any_bytes_end_in_a_problem_or_an_answer_never_in_an_exception(data: bytes, cuts: list[int]) -> None:
    for start in (b"", HEAD):
        parser, _ = _fed(start + data, cuts)
        parser.close()
        assert parser.done or parser.problem is not None


def test_a_body_without_a_length_ends_with_the_connection() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.0 200 OK\r\n\r\nab") == b"ab"
    assert parser.feed(b"c") == b"c"
    assert not parser.done
    parser.close()
    assert parser.done
    assert parser.problem is None
    assert not parser.keeps_alive


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (b"SSH-2.0-OpenSSH\r\n", "not HTTP/1.1"),
        (b"HTTP/2 200\r\n\r\n", "not HTTP/1.1"),
        (b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n", "no colon"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n", "content-length"),
        (b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n", "compressed"),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n", "transfer coding"),
        (HEAD + b"zz\r\n", "chunk's size"),
        (HEAD + b"-1\r\n", "chunk's size"),
        (HEAD + b"fffffffff\r\n", "chunk's size"),
        (HEAD + b"\r\n", "chunk's size"),
        (HEAD + b"1\r\nab\r\n", "longer than its size"),
        (HEAD + b"0" * (MOST_LINE_BYTES + 1), "longer than"),
        (HEAD + b"0\r\n" + b"a: b\r\n" * 200, "trailers"),
        (b"HTTP/1.1 200 OK\r\n" + b"a: b\r\n" * MOST_HEAD_BYTES, "longer than"),
    ],
)
def test_what_is_not_http_is_a_problem_in_words(data: bytes, problem: str) -> None:
    parser = ResponseParser()
    parser.feed(data)
    assert parser.problem is not None
    assert problem in parser.problem
    parser.close()  # the first problem stays
    assert problem in parser.problem


def test_an_answer_that_stops_early_is_a_problem() -> None:
    for data in (b"", b"HTTP/1.1 2", HEAD, HEAD + b"5\r\nab", HEAD + b"2\r\nab\r\n", HEAD + b"0\r\n"):
        parser = ResponseParser()
        parser.feed(data)
        parser.close()
        assert parser.problem is not None
        assert "closed the connection" in parser.problem


def test_bytes_after_the_answer_end_the_connections_use() -> None:
    parser = ResponseParser()
    assert parser.feed(b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\naHTTP/1.1 200 OK\r\n") == b"a"
    assert parser.done
    assert not parser.keeps_alive


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://127.0.0.1:8000", ("127.0.0.1", 8000, False, "", "127.0.0.1:8000")),
        ("http://localhost/v1/", ("localhost", 80, False, "", "localhost")),
        ("https://Host.example/api/v1", ("host.example", 443, True, "/api", "host.example")),
        ("http://[::1]:1", ("::1", 1, False, "", "[::1]:1")),
    ],
)
def test_addresses(url: str, expected: tuple[str, int, bool, str, str]) -> None:
    found = Address.parse(url)
    assert (found.host, found.port, found.tls, found.base, found.authority) == expected


@pytest.mark.parametrize(
    "url",
    [
        "",
        "localhost:8000",
        "ftp://a",
        "http://",
        "http://a:99999",
        "http://a b",
        "http://u:p@a",
        "http://a?x=1",
        "http://a/\r\nX: y",
        "http://ä",
        "http://[::1",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(RequestError):
        Address.parse(url)


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(RequestError, match="key"):
        Client(Address.parse("http://a"), api_key="a\r\nX: y", clock=time.perf_counter)


def _exchanges(answer: object, count: int, *, timeout_s: float = 10.0) -> list[Exchange]:
    async def run() -> list[Exchange]:
        async with listening(answer) as url:  # type: ignore[arg-type]
            client = Client(Address.parse(url), api_key="key", clock=time.perf_counter)
            try:
                return [await client.exchange("/x", b"{}", timeout_s=timeout_s) for _ in range(count)]
            finally:
                client.close()

    return asyncio.run(run())


def test_a_connection_is_kept_and_one_that_was_closed_meanwhile_is_made_anew() -> None:
    connections = 0

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections
        connections += 1
        for _ in range(2):  # two answers without saying that the connection closes, then the end
            head = await reader.readuntil(b"{}")
            assert b"Authorization: Bearer key\r\n" in head
            writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await reader.readuntil(b"{}")
        writer.close()

    found = _exchanges(answer, 6)
    assert [(e.status, e.failure, e.body) for e in found] == [(200, None, b"ok")] * 6
    assert connections == 3
    assert all(e.started_s <= e.arrivals[0][0] <= e.ended_s for e in found)


def test_a_kept_connection_that_the_server_has_closed_is_no_failure() -> None:
    """Most servers end an idle one after some seconds, which at a low rate is before every request."""

    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
        await writer.drain()
        writer.close()

    async def run() -> tuple[list[Exchange], int]:
        async with listening(answer) as url:
            client = Client(Address.parse(url), api_key=None, clock=time.perf_counter)
            found = []
            for _ in range(3):
                found.append(await client.exchange("/x", b"{}", timeout_s=10))
                await asyncio.sleep(0.05)  # it hears of the end
            return found, client.retries

    found, retries = asyncio.run(run())
    assert [(e.status, e.failure) for e in found] == [(200, None)] * 3
    assert retries == 2


def test_a_name_that_dns_does_not_take_is_a_failure_to_connect() -> None:
    async def ask() -> Exchange:
        client = Client(Address.parse(f"http://{'a' * 70}.example"), api_key=None, clock=time.perf_counter)
        return await client.exchange("/x", None, timeout_s=5)

    assert asyncio.run(ask()).failure == "connect"


def test_failures_have_kinds() -> None:
    async def silent(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read()
        writer.close()

    async def rude(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await reader.read()
        writer.close()

    async def hasty(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"{}")
        writer.close()

    for answer, kind in ((silent, "timeout"), (rude, "protocol"), (hasty, "closed")):
        (found,) = _exchanges(answer, 1, timeout_s=0.2)
        assert found.failure == kind
        assert found.detail

    async def nobody() -> Exchange:
        client = Client(Address.parse("http://127.0.0.1:1"), api_key=None, clock=time.perf_counter)
        return await client.exchange("/x", None, timeout_s=5)

    assert asyncio.run(nobody()).failure == "connect"
