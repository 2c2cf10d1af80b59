"""Limits that hold before a request is one: time and size of its header, and clients that do not read.

uvicorn bounds none of them with httptools. They are set on the connection, so no handler has to think of
clients that send a byte a minute, a header without end, or never take their answer.
"""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from stoker.server.errors import Problem
from stoker.server.options import ServerOptions

MOST_HEADER_BYTES = 64 << 10  # request line and all headers; nginx takes 32 KiB, Node 16
# How long a client may take nothing of an answer that waits for it.
_STALL_S = 60.0
_GRACE_S = 5.0  # the handler's own time limit for a body comes first, since it can say why


class LimitedProtocol(HttpToolsProtocol):
    """One connection: uvicorn's HTTP protocol with limits. uvicorn is given it with the first two arguments
    bound, and calls it with its own for each connection."""

    def __init__(self, options: ServerOptions, most_connections: int, **given_by_uvicorn: Any) -> None:
        super().__init__(**given_by_uvicorn)
        self._options = options
        self._most_connections = most_connections
        self._header_bytes = 0
        self._in_header = True
        self._timer: asyncio.TimerHandle | None = None
        self._stalled: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock; refuse one connection too many."""
        super().connection_made(transport)
        if len(self.connections) > self._most_connections:
            self._refuse(
                Problem(
                    503,
                    "too many connections are open",
                    type="service_unavailable_error",
                    code="connections_full",
                    retry_after_s=1.0,
                )
            )
            return
        self._time_out_after(self._options.header_timeout_s)

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clocks."""
        self._stop_timer()
        self.resume_writing()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """Count what belongs to a header."""
        if self._in_header:
            self._header_bytes += len(data)
        super().data_received(data)
        # What arrives with the header's end is the body's.
        if self._in_header and self._header_bytes > MOST_HEADER_BYTES and self.parser is not None:
            self._refuse(
                Problem(
                    431,
                    f"the header has more than {MOST_HEADER_BYTES} bytes; allowed: at most that",
                    code="header_too_large",
                )
            )

    def send_400_response(self, msg: str) -> None:
        """What the parser did not understand."""
        self._refuse(Problem(400, "this is not HTTP/1.1", code="invalid_http"))

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        super().on_message_begin()
        if self._timer is None:  # a further request on the connection
            self._time_out_after(self._options.header_timeout_s)

    def on_headers_complete(self) -> None:
        """From here the body's time runs."""
        self._in_header = False
        self._header_bytes = 0
        super().on_headers_complete()
        # A form is an upload, and watched by its handler; it has longer than a body that is held in memory.
        is_form = any(
            name == b"content-type" and value.lower().startswith(b"multipart/form-data")
            for name, value in self.headers
        )
        body_s = self._options.upload_timeout_s if is_form else self._options.body_timeout_s
        self._time_out_after(self._options.header_timeout_s + body_s + _GRACE_S)

    def on_message_complete(self) -> None:
        """The request is here; its answer may take as long as it takes."""
        self._in_header = True
        self._stop_timer()
        super().on_message_complete()

    def pause_writing(self) -> None:
        """The client reads more slowly than it is answered."""
        super().pause_writing()
        if self._stalled is None:
            self._stalled = self.loop.call_later(_STALL_S, self.transport.abort)

    def resume_writing(self) -> None:
        """It has read on."""
        if self._stalled is not None:
            self._stalled.cancel()
            self._stalled = None
        super().resume_writing()

    def _time_out_after(self, seconds: float) -> None:
        self._stop_timer()
        self._timer = self.loop.call_later(seconds, self._time_out)

    def _stop_timer(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _time_out(self) -> None:
        self._timer = None
        if self.transport.is_closing():
            return
        busy = self.cycle is not None and not self.cycle.response_complete
        if busy or not self._in_header or not self._header_bytes:
            self.transport.abort()  # nothing to answer, or an answer has begun
            return
        self._refuse(
            Problem(
                408,
                f"the header did not arrive within {self._options.header_timeout_s:g} s",
                code="header_timeout",
            )
        )

    def _refuse(self, problem: Problem) -> None:
        body = problem.body()
        lines = [
            b"HTTP/1.1 %d Refused" % problem.status,
            b"content-type: application/json",
            b"content-length: %d" % len(body),
            b"connection: close",
            *(name + b": " + value for name, value in problem.extra_headers()),
            b"",
            body,
        ]
        self._stop_timer()
        self.transport.write(b"\r\n".join(lines))
        self.transport.close()
