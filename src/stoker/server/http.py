"""What every handler does with ASGI: read a body within its limits, answer, notice that the client left.

Handlers are plain ASGI callables: no request or response object stands between a token and its bytes.
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from dataclasses import dataclass
from typing import Any

import msgspec

from stoker.server.errors import ClientGone, Problem, Refusal
from stoker.server.options import ServerOptions

Scope = MutableMapping[str, Any]
AsgiMessage = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[AsgiMessage]]
Send = Callable[[AsgiMessage], Awaitable[None]]
Handler = Callable[[Scope, Receive, Send], Awaitable[None]]
Header = tuple[bytes, bytes]

JSON: Header = (b"content-type", b"application/json")
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._:+/=-]{1,128}")  # what may stand in a header, a log line and an id
# Read whatever others hold: a few clients that send large bodies slowly must not keep everybody out.
_SMALL_BODY_BYTES = 64 << 10
_ID_KEY = "stoker.request_id"
_TENANT_KEY = "stoker.tenant"
_OWNER_KEY = "stoker.owner"


def header(scope: Scope, name: bytes) -> bytes | None:
    """The first header of this lower-case name."""
    for key, value in scope["headers"]:
        if key == name:
            found: bytes = value
            return found
    return None


def request_id(scope: Scope) -> str:
    """The request's id: what the client called it (X-Request-Id), if that can be one; else drawn."""
    known = scope.get(_ID_KEY)
    if known is None:
        given = header(scope, b"x-request-id")
        known = given.decode() if given and _REQUEST_ID.fullmatch(given) else uuid.uuid4().hex
        scope[_ID_KEY] = known
    return str(known)


def set_request_id(scope: Scope, name: str) -> None:
    """For a call that came without a connection."""
    scope[_ID_KEY] = name


def tenant(scope: Scope) -> str:
    """Who asks, as the API key tells; empty without keys."""
    return str(scope.get(_TENANT_KEY, ""))


def set_tenant(scope: Scope, name: str) -> None:
    """Called once, by whoever has checked the key."""
    scope[_TENANT_KEY] = name


def owner(scope: Scope) -> str:
    """Whose what is stored is: told by the API key itself, not by its place among the others, so that a
    restart with further keys changes nothing; empty without keys."""
    return str(scope.get(_OWNER_KEY, ""))


def set_owner(scope: Scope, name: str) -> None:
    """Called once, by whoever has checked the key."""
    scope[_OWNER_KEY] = name


async def answer_bytes(
    scope: Scope, send: Send, status: int, body: bytes, headers: list[Header] | None = None
) -> None:
    """A whole answer. The request's id goes with it."""
    all_headers = [
        *(headers if headers is not None else [JSON]),
        (b"content-length", str(len(body)).encode()),
        (b"x-request-id", request_id(scope).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": all_headers})
    await send({"type": "http.response.body", "body": body})


async def answer_json(scope: Scope, send: Send, value: object, status: int = 200) -> None:
    """A whole answer in JSON."""
    await answer_bytes(scope, send, status, msgspec.json.encode(value))


async def answer_problem(scope: Scope, send: Send, problem: Problem) -> None:
    """OpenAI's error object, with the problem's status."""
    await answer_bytes(scope, send, problem.status, problem.body(), [JSON, *problem.extra_headers()])


@dataclass(slots=True)
class BodyBudget:
    """How many bytes of bodies are in memory now, over all requests; written by `read_body` only."""

    held_bytes: int = 0


async def read_body(scope: Scope, receive: Receive, options: ServerOptions, budget: BodyBudget) -> bytes:
    """A JSON body. Raises `Refusal` before reading what is too large, or of another type; `ClientGone`."""
    kind = (header(scope, b"content-type") or b"").split(b";")[0].strip().lower()
    if kind != b"application/json":
        # Also what keeps foreign web pages out: this type makes a browser ask first (CORS).
        shown = kind.decode("latin-1") or "missing"
        raise Refusal(
            Problem(415, f"Content-Type is {shown!r:.80}; allowed: application/json", code="content_type")
        )
    length = header(scope, b"content-length")
    if length is not None and length.isdigit() and int(length[:20]) > options.max_body_bytes:
        raise _too_large(options)
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(options.body_timeout_s):
            while True:
                message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part = message.get("body", b"")
                parts.append(part)
                size += len(part)
                budget.held_bytes += len(part)
                if size > options.max_body_bytes:
                    raise _too_large(options)
                if budget.held_bytes > options.max_bodies_bytes and size > _SMALL_BODY_BYTES:
                    raise Refusal(
                        Problem(
                            429,
                            "too many large bodies are being read at once",
                            type="rate_limit_error",
                            code="bodies_full",
                            retry_after_s=1.0,
                        )
                    )
                if not message.get("more_body", False):
                    return b"".join(parts)
    except TimeoutError:
        raise Refusal(
            Problem(
                408,
                f"the body did not arrive within {options.body_timeout_s:g} s",
                code="body_timeout",
                headers=((b"connection", b"close"),),
            )
        ) from None
    finally:
        budget.held_bytes -= size


def _too_large(options: ServerOptions) -> Refusal:
    # The connection stays open: what is still on its way is read and thrown away, for as long as the body's
    # time limit allows, so that the client gets to see this answer rather than a reset.
    message = f"the body has more than {options.max_body_bytes} bytes; allowed: at most that"
    return Refusal(Problem(413, message, code="request_too_large"))


@contextlib.asynccontextmanager
async def while_connected(receive: Receive) -> AsyncIterator[None]:
    """Cancel the block, and raise `ClientGone`, when the client closes its connection.

    Only after the whole body was read: what `receive` says then is that the client left, or nothing.
    """
    task = asyncio.current_task()
    assert task is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await receive())["type"] != "http.disconnect":
            continue
        left = True
        task.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if left and task.uncancel() <= 0:
            raise ClientGone from None
        raise
    finally:
        watcher.cancel()
