"""HTTP/1.1 for the load generator: what came, and when, at little cost.

The machine's cores belong to the server under test, so the client must be cheap. Measured with 32 streams of
one 200-byte chunk every 10 ms, process time per chunk: httpx 155 us (91 us on uvloop), asyncio's stream
reader 47 us (23 us), a protocol that stamps and keeps the bytes 34 us (18 us), most of it the system's calls.
Hence the last: `Connection` stamps each read with the clock, takes the transfer coding off and keeps the
rest; JSON is looked at when the run is over (`serve_events`). Proxies and redirects are not followed,
compression is not asked for.
"""

from __future__ import annotations

import asyncio
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast
from urllib.parse import urlsplit

from stoker.api.errors import RequestError

MOST_HEAD_BYTES = 1 << 16  # status line and headers; common servers send less than 1 kB
MOST_LINE_BYTES = 1 << 12  # a chunk's size line, or a trailer
MOST_BODY_BYTES = 1 << 28  # a server that never ends must not fill the memory

_STATUS_LINE = re.compile(rb"HTTP/1\.([01]) ([1-9]\d\d)(?: |$)")
_CHUNK_SIZE = re.compile(rb"([0-9A-Fa-f]{1,8})[ \t]*(?:;.*)?")
_LENGTH = re.compile(r"\d{1,12}")


class ResponseParser:
    """Bytes of one response in, bytes of its body out, however they are cut. Does no input or output itself.

    After `feed`: `done` once the response is whole; `problem` says what is wrong with it, once something is.
    """

    def __init__(self) -> None:
        self.status = 0  # until the head has come
        self.headers: dict[str, str] = {}  # names in lower case
        self.done = False
        self.problem: str | None = None
        self.keeps_alive = False
        self._buffer = b""
        self._left = 0  # bytes of the chunk, or of the body, still to come
        self._body_bytes = 0
        self._trailers = 0
        # (buffer, position, pieces) -> new position; -1: more bytes are needed. Parts add to `pieces`.
        self._part: Callable[[bytes, int, list[bytes]], int] = self._head

    def feed(self, data: bytes) -> bytes:
        """What `data` adds to the body."""
        buffer = self._buffer + data if self._buffer else data
        position = 0
        pieces: list[bytes] = []
        while not self.done and self.problem is None and position < len(buffer):
            advanced = self._part(buffer, position, pieces)
            if advanced < 0:
                break
            position = advanced
        self._buffer = buffer[position:]
        if self.done and self._buffer:
            self.keeps_alive = False  # an answer to nothing that was asked
        body = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        self._body_bytes += len(body)
        if self._body_bytes > MOST_BODY_BYTES:
            self.problem = f"the body is longer than {MOST_BODY_BYTES} bytes"
        return body

    def close(self) -> None:
        """The connection has ended: the response is `done`, or a `problem`."""
        self.keeps_alive = False
        if self.done or self.problem is not None:
            return
        if self._part == self._rest:
            self.done = True
        else:
            self.problem = "the server closed the connection before the answer's end"

    def _head(self, buffer: bytes, position: int, pieces: list[bytes]) -> int:
        end = buffer.find(b"\r\n\r\n", position)
        if end < 0 or end - position > MOST_HEAD_BYTES:
            if len(buffer) - position > MOST_HEAD_BYTES:
                self.problem = f"the head is longer than {MOST_HEAD_BYTES} bytes"
            elif not b"HTTP/1.".startswith(buffer[position : position + 7]):
                self.problem = (
                    f"the answer is not HTTP/1.1: it starts with {buffer[position : position + 20]!r}"
                )
            return -1
        status_line, *lines = buffer[position:end].split(b"\r\n")
        found = _STATUS_LINE.match(status_line)
        if found is None:
            self.problem = f"the answer is not HTTP/1.1: it starts with {status_line[:20]!r}"
            return -1
        self.status = int(found[2])
        self.headers = {}
        for line in lines:
            name, colon, value = line.partition(b":")
            if not colon:
                self.problem = f"a header has no colon: {line[:80]!r}"
                return -1
            self.headers[name.decode("latin-1").lower()] = value.strip().decode("latin-1")
        if self.status >= 200:  # 1xx come before the answer
            self._choose_body(is_1_1=found[1] == b"1")
        return end + 4

    def _choose_body(self, *, is_1_1: bool) -> None:
        headers = self.headers
        coding = headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        self.keeps_alive = is_1_1 and "close" not in headers.get("connection", "").lower()
        if headers.get("content-encoding", "identity").lower() != "identity":
            self.problem = f"the answer is compressed ({headers['content-encoding']}), though not asked to be"
        elif self.status in (204, 304):
            self.done = True
        elif coding == "chunked":
            self._part = self._chunk_size
        elif coding:
            self.problem = f"transfer coding {coding!r:.80}; allowed: chunked"
        elif length is not None:
            if not _LENGTH.fullmatch(length):
                self.problem = f"content-length is {length!r:.80}; allowed: a number"
                return
            self._left = int(length)
            self._part = self._sized
            self.done = self._left == 0
        else:
            self.keeps_alive = False
            self._part = self._rest

    def _sized(self, buffer: bytes, position: int, pieces: list[bytes]) -> int:
        end = min(len(buffer), position + self._left)
        pieces.append(buffer[position:end])
        self._left -= end - position
        self.done = self._left == 0
        return end

    def _rest(self, buffer: bytes, position: int, pieces: list[bytes]) -> int:
        pieces.append(buffer[position:])
        return len(buffer)

    def _chunk_size(self, buffer: bytes, position: int, pieces: list[bytes]) -> int:
        line, after = self._line(buffer, position)
        if after < 0:
            return -1
        found = _CHUNK_SIZE.fullmatch(line)
        if found is None:
            self.problem = f"a chunk's size is {line[:20]!r}; allowed: up to 8 hexadecimal digits"
            return -1
        self._left = int(found[1], 16)
        self._part = self._chunk if self._left else self._trailer
        return after

    def _chunk(self, buffer: bytes, position: int, pieces: list[bytes]) -> int:
        if self._left:
            end = min(len(buffer), position + self._left)
            pieces.append(buffer[position:end])
            self._left -= end - position
            return end
        if len(buffer) - position < 2:
            return -1
        if buffer[position : position + 2] != b"\r\n":
            self.problem = f"a chunk is longer than its size: {buffer[position : position + 20]!r} follows"
            return -1
        self._part = self._chunk_size
        return position + 2

    def _trailer(self, buffer: bytes, position: int, pieces: list[bytes]) -> int:
        line, after = self._line(buffer, position)
        if after >= 0 and not line:
            self.done = True
        self._trailers += after >= 0
        if self._trailers > 100:
            self.problem = "the answer has more than 100 trailers"
        return after

    def _line(self, buffer: bytes, position: int) -> tuple[bytes, int]:
        """The line at `position` without its end, and where the next begins: -1 if it is not whole."""
        end = buffer.find(b"\r\n", position)
        if end < 0:
            if len(buffer) - position > MOST_LINE_BYTES:
                self.problem = f"a line of the chunked body is longer than {MOST_LINE_BYTES} bytes"
            return b"", -1
        return buffer[position:end], end + 2


@dataclass(slots=True)
class Exchange:
    """One request and what came back. `failure` is none, or a kind: connect, timeout, closed, protocol."""

    started_s: float  # when it was sent, or was due
    ended_s: float = 0.0
    status: int = 0
    arrivals: list[tuple[float, bytes]] = field(default_factory=list)  # (when, the body's bytes) of each read
    failure: str | None = None
    detail: str = ""

    @property
    def body(self) -> bytes:
        """The whole body."""
        return b"".join(piece for _, piece in self.arrivals)


class Connection(asyncio.Protocol):
    """One connection, one request at a time. Stamps each read before anything else is done with it."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._transport: asyncio.Transport | None = None
        self._parser: ResponseParser | None = None  # while a response is awaited
        self._arrivals: list[tuple[float, bytes]] = []
        self._ended: asyncio.Future[None] | None = None
        self.usable = True
        self.heard = False  # whether any byte of the present response has come

    async def ask(self, message: bytes, arrivals: list[tuple[float, bytes]]) -> ResponseParser:
        """Send a request; wait for the response's end. Fills `arrivals` as reads come."""
        assert self._transport is not None
        parser = ResponseParser()
        self.heard = False
        if not self.usable:  # the server has closed it since its last answer
            parser.close()
            return parser
        self._parser, self._arrivals = parser, arrivals
        self._ended = asyncio.get_running_loop().create_future()
        self._transport.write(message)
        try:
            await self._ended
        finally:
            self._parser = None
            if not parser.keeps_alive or not parser.done:
                self.drop()
        return parser

    def drop(self) -> None:
        """End the connection at once."""
        self.usable = False
        if self._transport is not None:
            self._transport.abort()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """Called by the loop."""
        self._transport = cast(asyncio.Transport, transport)  # uvloop's are not instances of it

    def data_received(self, data: bytes) -> None:
        """Called by the loop, once for each read."""
        now = self._clock()
        parser = self._parser
        if parser is None:
            self.drop()  # nothing was asked
            return
        self.heard = True
        piece = parser.feed(data)
        if piece:
            self._arrivals.append((now, piece))
        if parser.done or parser.problem is not None:
            self._end()

    def connection_lost(self, error: Exception | None) -> None:
        """Called by the loop."""
        self.usable = False
        if self._parser is not None:
            self._parser.close()
            self._end()

    def _end(self) -> None:
        if self._ended is not None and not self._ended.done():
            self._ended.set_result(None)


@dataclass(frozen=True)
class Address:
    """Where an endpoint is."""

    host: str
    port: int
    tls: bool
    base: str  # path before /v1, without a slash at its end

    @classmethod
    def parse(cls, url: str) -> Address:
        """From http://host[:port][/path]; a /v1 at its end is left out. Raises RequestError."""
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError as error:
            raise RequestError(f"URL {url!r:.200}: {error}") from error
        if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
            raise RequestError(f"URL is {url!r:.200}; allowed: http://HOST[:PORT][/PATH], or https")
        if parts.username is not None:
            raise RequestError("the URL has a user name; allowed: none", hint="--api-key KEY")
        if not url.isascii() or not url.isprintable() or " " in url:
            raise RequestError(f"URL is {url!r:.200}; allowed: printable ASCII without spaces")
        tls = parts.scheme == "https"
        base = parts.path.rstrip("/").removesuffix("/v1")
        return cls(parts.hostname, port or (443 if tls else 80), tls, base)

    @property
    def authority(self) -> str:
        """As the Host header wants it."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.tls else 80) else f"{host}:{self.port}"


class Client:
    """Requests to one endpoint over kept connections: as many as there are requests at a time."""

    def __init__(self, address: Address, *, api_key: str | None, clock: Callable[[], float]) -> None:
        if api_key is not None and not (api_key.isascii() and api_key.isprintable()):
            raise RequestError("the API key has characters that a header cannot have")
        self.address = address
        self.clock = clock
        self.ended = 0  # exchanges so far
        self.retries = 0  # requests sent again, since their kept connection closed without a byte
        self._idle: list[Connection] = []
        self._tls = ssl.create_default_context() if address.tls else None
        authorization = f"Authorization: Bearer {api_key}\r\n" if api_key else ""
        self._headers = (
            f"Host: {address.authority}\r\nAccept: application/json, text/event-stream\r\n"
            f"User-Agent: stoker-bench\r\n{authorization}"
        )

    def close(self) -> None:
        """End the kept connections."""
        for connection in self._idle:
            connection.drop()
        self._idle.clear()

    async def exchange(
        self,
        path: str,
        body: bytes | None,
        *,
        timeout_s: float,
        due_s: float | None = None,
        exchange: Exchange | None = None,
    ) -> Exchange:
        """POST `body`, or GET without one; never raises for what the other side does.

        Time runs from `due_s`, or from now. With `exchange`, that one is filled: a caller can look on.
        """
        found = exchange if exchange is not None else Exchange(0.0)
        found.started_s = self.clock() if due_s is None else due_s
        method, extra = ("GET", "") if body is None else ("POST", "Content-Type: application/json\r\n")
        head = f"{method} {self.address.base}{path} HTTP/1.1\r\n{self._headers}{extra}"
        message = f"{head}Content-Length: {len(body or b'')}\r\n\r\n".encode("ascii") + (body or b"")
        try:
            async with asyncio.timeout(timeout_s):
                parser = await self._ask(message, found)
        except TimeoutError:
            found.failure, found.detail = "timeout", f"no end within {timeout_s:g} s"
        except (OSError, UnicodeError) as error:  # also ssl.SSLError; a name that DNS does not take
            found.failure, found.detail = "connect", str(error) or type(error).__name__
        else:
            found.status = parser.status
            if parser.problem is not None:
                found.failure = "closed" if "closed the connection" in parser.problem else "protocol"
                found.detail = parser.problem
        found.ended_s = self.clock()
        self.ended += 1
        return found

    async def _ask(self, message: bytes, found: Exchange) -> ResponseParser:
        while self._idle:
            connection = self._idle.pop()
            parser = await connection.ask(message, found.arrivals)
            # A server may close a kept connection just as it is used again: then, and only then, ask anew.
            if parser.done or connection.heard:
                return self._keep(connection, parser)
            self.retries += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(
            lambda: Connection(self.clock), self.address.host, self.address.port, ssl=self._tls
        )
        return self._keep(connection, await connection.ask(message, found.arrivals))

    def _keep(self, connection: Connection, parser: ResponseParser) -> ResponseParser:
        if connection.usable:
            self._idle.append(connection)
        return parser
