"""Clients that send too much, too slowly, too many, or leave: a clear answer, and the others go on."""

from __future__ import annotations

import asyncio
import json
import socket
import time
from collections.abc import Callable

import httpx
import pytest
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, serve

from stoker.api.errors import QueueFullError
from stoker.server import ServerOptions


def _request(
    body: bytes, *, length: int | None = None, extra: str = "", path: str = "/v1/completions"
) -> bytes:
    size = len(body) if length is None else length
    return (
        f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
        f"content-length: {size}\r\n{extra}\r\n"
    ).encode() + body


def _read_all(connection: socket.socket) -> bytes:
    data = b""
    while part := connection.recv(65536):
        data += part
    return data


def _read_answer(connection: socket.socket) -> tuple[int, bytes]:
    """Status and body of an answer with a content-length."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = connection.recv(65536)
        assert part, data
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.startswith(b"content-length")
    )
    while len(body) < length:
        body += connection.recv(65536)
    return int(head.split(b" ")[1]), body


def _wait_for(what: Callable[[], bool], seconds: float = 5.0) -> None:
    end = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.005)


def test_a_body_that_says_it_is_too_large_is_not_read() -> None:
    with serve(FakeHost(), ServerOptions(max_body_bytes=1000)) as served:
        connection = served.connect()
        connection.sendall(_request(b"x", length=100 << 20))
        status, body = _read_answer(connection)
        assert (status, json.loads(body)["error"]["code"]) == (413, "request_too_large")
        assert served.complete().status_code == 200


def test_a_hundred_megabytes_are_refused_and_the_client_sees_why() -> None:
    with serve(FakeHost()) as served:
        response = served.post("/v1/completions", b'{"prompt": "' + b"x" * (100 << 20) + b'"}')
        assert response.status_code == 413
        assert served.service.bodies.held_bytes == 0
        assert served.complete().status_code == 200


def test_a_body_without_a_length_is_counted() -> None:
    with serve(FakeHost(), ServerOptions(max_body_bytes=100_000)) as served:

        def parts() -> object:
            for _ in range(1000):
                yield b"x" * 1000

        response = httpx.post(
            served.url + "/v1/completions", content=parts(), headers={"content-type": "application/json"}
        )
        assert response.status_code == 413
        assert served.service.bodies.held_bytes == 0


def test_bodies_of_all_requests_together_are_bounded() -> None:
    options = ServerOptions(max_body_bytes=200_000, max_bodies_bytes=300_000)
    with serve(FakeHost(), options) as served:
        first = served.connect()
        first.sendall(_request(b"x" * 199_000, length=200_000))
        _wait_for(lambda: served.service.bodies.held_bytes == 199_000)
        refused = served.post("/v1/completions", b'"' + b"x" * 150_000 + b'"')
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        second = served.connect()
        second.sendall(_request(b"x" * 101_000, length=200_000))
        _wait_for(lambda: served.service.bodies.held_bytes == 300_000)
        assert served.complete("x" * 10_000).status_code == 200  # small ones are not kept out
        second.close()
        first.close()
        _wait_for(lambda: served.service.bodies.held_bytes == 0)
        assert served.complete("x" * 150_000).status_code == 200


def test_a_header_that_trickles_ends_in_408() -> None:
    with serve(FakeHost(), ServerOptions(header_timeout_s=0.3)) as served:
        connection = served.connect()
        connection.sendall(b"POST /v1/completions HTTP/1.1\r\nhost: local")
        assert b" 408 " in _read_all(connection)
        silent = served.connect()
        assert _read_all(silent) == b""  # closed without a word
        assert served.complete().status_code == 200


def test_a_second_request_on_a_connection_has_the_same_limit() -> None:
    with serve(FakeHost(), ServerOptions(header_timeout_s=0.3)) as served:
        connection = served.connect()
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert _read_answer(connection)[0] == 200
        time.sleep(0.5)  # idle between two requests is not slow
        connection.sendall(b"GET /health HTTP/1.1\r\nhost: localhost\r\n\r\n")
        assert _read_answer(connection)[0] == 200
        connection.sendall(b"GET /hea")
        assert b" 408 " in _read_all(connection)


def test_a_body_that_trickles_ends_in_408() -> None:
    with serve(FakeHost(), ServerOptions(body_timeout_s=0.3)) as served:
        connection = served.connect()
        connection.sendall(_request(b"{", length=100))
        answer = _read_all(connection)
        assert b" 408 " in answer
        assert b"body_timeout" in answer
        assert served.service.bodies.held_bytes == 0


def test_a_header_without_end_is_refused() -> None:
    with serve(FakeHost()) as served:
        connection = served.connect()
        connection.sendall(b"GET / HTTP/1.1\r\nx: " + b"y" * 100_000)
        assert b" 431 " in _read_all(connection)


@pytest.mark.parametrize("data", [b"\x16\x03\x01\x02\x00", b"HELLO\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n"])
def test_what_is_not_http_gets_400(data: bytes) -> None:
    with serve(FakeHost()) as served:
        connection = served.connect()
        connection.sendall(data)
        assert b" 400 " in _read_all(connection)


def _leave(served: Served, **fields: object) -> None:
    """Ask, wait until the model works on it, and close the connection."""
    model = served.host.model
    before = len(model.requests)
    connection = served.connect()
    connection.sendall(_request(json.dumps({"prompt": "a", **fields}).encode()))
    _wait_for(lambda: len(model.requests) > before and model.open > 0)
    if fields.get("stream"):
        connection.recv(1)
    connection.close()


@pytest.mark.parametrize("fields", [{}, {"stream": True}, {"n": 3}, {"prompt": ["a", "b"], "stream": True}])
def test_a_client_that_leaves_aborts_its_request(fields: dict[str, object]) -> None:
    with serve(FakeHost(FakeModel(token_delay_s=0.02, answer=lambda r, s: "x" * 1000))) as served:
        _leave(served, max_tokens=1000, **fields)
        model = served.host.model
        _wait_for(lambda: model.open == 0, seconds=1.0)
        assert len(model.aborted) == len(model.requests)
        _wait_for(lambda: (served.service.open_requests, served.host.in_use) == (0, 0), seconds=1.0)
        assert served.complete(max_tokens=1).status_code == 200


def test_a_client_that_leaves_before_the_first_token_aborts_too() -> None:
    with serve(FakeHost(FakeModel(first_delay_s=30.0))) as served:
        model = served.host.model
        for stream in (False, True):
            connection = served.connect()
            connection.sendall(_request(json.dumps({"prompt": "a", "stream": stream}).encode()))
            _wait_for(lambda: model.open == 1)
            connection.close()
            _wait_for(lambda: model.open == 0, seconds=1.0)


def test_too_many_open_requests_are_429_and_the_server_lives() -> None:
    host = FakeHost(FakeModel(first_delay_s=1.0))
    with serve(host, ServerOptions(max_open_requests=50)) as served:

        async def ask(client: httpx.AsyncClient) -> int:
            response = await client.post(served.url + "/v1/completions", json={"prompt": "a"})
            assert ("retry-after" in response.headers) == (response.status_code == 429)
            return response.status_code

        async def flood() -> list[int]:
            limits = httpx.Limits(max_connections=None)
            async with httpx.AsyncClient(timeout=60, limits=limits) as client:
                return await asyncio.gather(*(ask(client) for _ in range(150)))

        statuses = asyncio.run(flood())
        assert statuses.count(200) == 50
        assert statuses.count(429) == 100
        assert served.complete(max_tokens=1).status_code == 200


def test_a_full_queue_is_429_for_streams_too() -> None:
    with serve(FakeHost(FakeModel(error=QueueFullError("full", retry_after_s=3)))) as served:
        for stream in (False, True):
            response = served.chat(stream=stream)
            assert (response.status_code, response.headers["retry-after"]) == (429, "3")


def test_a_client_that_does_not_read_holds_up_nobody() -> None:
    text = "x" * 100_000  # a chunk of 200 bytes each: more than the buffers of a connection take
    with serve(FakeHost(FakeModel(answer=lambda r, s: text if r.prompt == "big" else "y"))) as served:
        slow = served.connect()
        slow.sendall(_request(b'{"prompt": "big", "max_tokens": 100000, "stream": true}'))
        _wait_for(lambda: served.host.model.open == 1)
        for _ in range(3):
            assert served.complete("small").json()["choices"][0]["text"] == "y"
        slow.close()
        _wait_for(lambda: served.host.model.open == 0)


def test_a_stop_lets_open_requests_finish_and_takes_no_new_ones() -> None:
    host = FakeHost(FakeModel(token_delay_s=0.02, answer=lambda r, s: "x" * 20))
    with serve(host, ServerOptions(drain_s=10)) as served:
        connection = served.connect()
        connection.sendall(_request(b'{"prompt": "a", "max_tokens": 20, "stream": true}'))
        _wait_for(lambda: host.model.open == 1)
        served.stop()
        answer = _read_all(connection)
        assert answer.count(b'"text":"x"') == 20
        assert answer.rstrip().endswith(b"data: [DONE]\n\n\r\n0")
        with pytest.raises(OSError):
            served.connect().recv(1)
        served.thread.join(10)
        assert not served.thread.is_alive()
    assert host.closed_after_s == 10


def test_a_stop_does_not_wait_longer_than_it_may() -> None:
    host = FakeHost(FakeModel(first_delay_s=60.0))
    with serve(host, ServerOptions(drain_s=0.2)) as served:
        connection = served.connect()
        connection.sendall(_request(b'{"prompt": "a"}'))
        _wait_for(lambda: host.model.open == 1)
        started = time.monotonic()
        served.stop()
        served.thread.join(20)
        assert time.monotonic() - started < 8


class _Draining(FakeHost):
    """Waits for what is open, as models in processes do, and does not hurry when it is told again."""

    closing: asyncio.Task[None] | None = None

    async def close(self, *, drain_s: float) -> None:
        if self.closing is None:
            self.closing = asyncio.create_task(self._drain(drain_s))
        await asyncio.wait([self.closing])

    async def _drain(self, drain_s: float) -> None:
        end = time.monotonic() + drain_s
        while self.model.open and time.monotonic() < end:
            await asyncio.sleep(0.01)


@pytest.mark.parametrize("reads", [True, False])
def test_a_second_stop_does_not_wait(reads: bool) -> None:
    """Neither for a request that takes long, nor for a client that does not take its answer."""
    text = "x" * 200_000
    model = FakeModel(first_delay_s=60.0) if reads else FakeModel(answer=lambda r, s: text)
    with serve(_Draining(model), ServerOptions(drain_s=30)) as served:
        connection = served.connect()
        connection.sendall(_request(b'{"prompt": "a", "max_tokens": 200000, "stream": true}'))
        _wait_for(lambda: model.open == 1)
        time.sleep(0.3)
        started = time.monotonic()
        served.stop()
        time.sleep(0.3)
        served.stop()
        served.thread.join(20)
        assert time.monotonic() - started < 8
        connection.close()
