"""The HTTP answer of a stream of events."""

from __future__ import annotations

from stoker.server.http import Header, Scope, Send, request_id

_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the pieces
)


class EventStream:
    """Its header goes out with the first bytes: until then the status can still be an error's."""

    __slots__ = ("_scope", "_send", "started")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.started = False

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the client reads more slowly than it is answered."""
        await self._body(data, more=True)

    async def end(self, data: bytes) -> None:
        """Send the last bytes, which may be the first."""
        await self._body(data, more=False)

    async def _body(self, data: bytes, *, more: bool) -> None:
        if not self.started:
            self.started = True
            headers = [*_HEADERS, (b"x-request-id", request_id(self._scope).encode())]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})
