"""An answer without a socket: a line's body goes through the handler that a call over HTTP goes through."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from dataclasses import dataclass

from stoker.server.errors import problem_of
from stoker.server.http import (
    JSON,
    AsgiMessage,
    Handler,
    Receive,
    Scope,
    header,
    set_owner,
    set_request_id,
    set_tenant,
)

_LOGGER = logging.getLogger("stoker.server")


@dataclass(frozen=True, slots=True)
class Caller:
    """On whose behalf a body is asked."""

    owner: str
    tenant: str


@dataclass(frozen=True, slots=True)
class Answered:
    """What a client would have got."""

    status: int
    request_id: str
    body: bytes


class Answers:
    """The handlers of some paths. They are given bodies that are in memory; nobody leaves early."""

    def __init__(self, handlers: Mapping[str, Handler]) -> None:
        self._handlers = handlers

    async def answer(self, path: str, body: bytes, *, request_id: str, caller: Caller) -> Answered:
        """POST `body` to `path`. Cancelling it aborts the request; nothing else is raised."""
        scope: Scope = {
            "type": "http",
            "method": "POST",
            "path": path,
            "headers": [JSON],
            "query_string": b"",
            "path_params": {},
        }
        set_request_id(scope, request_id)
        set_owner(scope, caller.owner)
        set_tenant(scope, caller.tenant)
        sent: list[AsgiMessage] = []

        async def send(message: AsgiMessage) -> None:
            sent.append(message)

        try:
            await self._handlers[path](scope, _receiver(body), send)
        except Exception as error:
            problem = problem_of(error)
            if problem.is_ours:
                fields = {"request_id": request_id, "path": path}
                _LOGGER.error("a line of a batch failed", exc_info=error, extra={"fields": fields})
            return Answered(problem.status, request_id, problem.body())
        start = sent[0]
        shown = header(start, b"x-request-id")
        whole = b"".join(message.get("body", b"") for message in sent[1:])
        return Answered(start["status"], shown.decode() if shown else request_id, whole)


def _receiver(body: bytes) -> Receive:
    given = False

    async def receive() -> AsgiMessage:
        nonlocal given
        if not given:
            given = True
            return {"type": "http.request", "body": body, "more_body": False}
        await asyncio.Event().wait()  # until the handler no longer asks: the client never leaves
        raise AssertionError

    return receive
