"""Anthropic's error object and statuses, for everything that is asked under /v1/messages."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import msgspec

from stoker.server.errors import Problem
from stoker.server.http import JSON, Header, Scope, Send, answer_bytes, request_id

_PATH = "/v1/messages"
_TYPES: Mapping[int, str] = MappingProxyType(
    {
        401: "authentication_error",
        403: "permission_error",
        404: "not_found_error",
        408: "timeout_error",
        409: "conflict_error",
        413: "request_too_large",
        429: "rate_limit_error",
        500: "api_error",
        503: "api_error",
        504: "timeout_error",
        529: "overloaded_error",
    }
)
# Codes of ours whose status is another one in this dialect.
_STATUSES: Mapping[str, int] = MappingProxyType({"aborted": 504, "out_of_capacity": 529})

# Clients that would have the server keep a conversation go on without that when they are told so with this.
UNSUPPORTED_THREAD = "thread_unsupported_request"


def speaks_messages(scope: Scope) -> bool:
    """True for the paths whose errors have this form."""
    path: str = scope["path"]
    return path == _PATH or path.startswith(_PATH + "/")


def request_id_header(scope: Scope) -> Header:
    """What Anthropic's SDK reads the request's id from."""
    return (b"request-id", request_id(scope).encode())


def in_dialect(problem: Problem) -> Problem:
    """The problem with the status and type that Anthropic's clients know."""
    status = _STATUSES.get(problem.code or "", problem.status)
    return dataclasses.replace(problem, status=status, type=_TYPES.get(status, "invalid_request_error"))


def error_body(scope: Scope, problem: Problem) -> bytes:
    """The error object, as JSON."""
    known = in_dialect(problem)
    error: dict[str, Any] = {"type": known.type, "message": known.message}
    if known.code == UNSUPPORTED_THREAD:
        error["details"] = {"error_code": UNSUPPORTED_THREAD, "unsupported": ["thread"]}
    return msgspec.json.encode({"type": "error", "error": error, "request_id": request_id(scope)})


async def answer_messages_problem(scope: Scope, send: Send, problem: Problem) -> None:
    """The error object, with the status that goes with it."""
    headers = [JSON, request_id_header(scope), *problem.extra_headers()]
    await answer_bytes(scope, send, in_dialect(problem).status, error_body(scope, problem), headers)
