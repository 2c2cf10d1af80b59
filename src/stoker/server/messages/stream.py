"""The response of a stream: its header and opening go out with the first bytes, and pings in silence.

A prompt may take minutes to compute; proxies and clients give up on a connection that says nothing for one.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator

from stoker.server.http import Header, Scope, Send, request_id
from stoker.server.messages.errors import request_id_header
from stoker.server.messages.events import PING

SILENCE_S = 10.0  # the shortest time limits that are met in practice are 30 s
_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the pieces
)


class EventStream:
    """Where one answer's events go. Until the first bytes, errors can still have a status of their own."""

    __slots__ = ("_lock", "_scope", "_send", "_silent", "opening", "started")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self._lock = asyncio.Lock()  # a ping must not come between the header and what it waits for
        self._silent = False  # since the last look of who pings
        self.opening = b""  # what goes before everything else; set by whoever knows it
        self.started = False

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send whole events; waits while the client reads more slowly than it is answered."""
        self._silent = False
        data, self.opening = self.opening + data, b""
        async with self._lock:
            if not self.started:
                self.started = True
                x_request_id = (b"x-request-id", request_id(self._scope).encode())
                headers = [*_HEADERS, request_id_header(self._scope), x_request_id]
                await self._send({"type": "http.response.start", "status": 200, "headers": headers})
            await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def end(self, data: bytes) -> None:
        """Send the last events, which may be the first."""
        await self.write(data, more=False)

    @contextlib.asynccontextmanager
    async def pinged(self, silence_s: float) -> AsyncIterator[None]:
        """For the time of the block, a ping goes out after `silence_s` to twice that without an event."""

        async def ping() -> None:
            while True:
                self._silent = True
                await asyncio.sleep(silence_s)
                if self._silent:
                    await self.write(PING)

        task = asyncio.create_task(ping())
        try:
            yield
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
