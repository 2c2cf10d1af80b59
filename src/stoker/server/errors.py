"""From what went wrong to what the client is told: one status and OpenAI's error object for each."""

from __future__ import annotations

import math
from dataclasses import dataclass

import msgspec

from stoker.api.errors import (
    CapacityError,
    ModelNotFoundError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    StokerError,
    UnavailableError,
)

# A load or a restart takes about this long; sooner asking only adds to the queue.
_RETRY_AFTER_S = 2.0


@dataclass(frozen=True, slots=True)
class Problem:
    """Why a request was not answered, as the client sees it."""

    status: int
    message: str
    type: str = "invalid_request_error"
    param: str | None = None  # the field that is to blame
    code: str | None = None
    retry_after_s: float | None = None
    headers: tuple[tuple[bytes, bytes], ...] = ()
    is_ours: bool = False  # to be logged with its traceback; the client learns nothing of it

    def body(self) -> bytes:
        """OpenAI's error object, as JSON."""
        error = {"message": self.message, "type": self.type, "param": self.param, "code": self.code}
        return msgspec.json.encode({"error": error})

    def extra_headers(self) -> list[tuple[bytes, bytes]]:
        """`Retry-After` where there is one, in whole seconds, and this problem's own."""
        headers = list(self.headers)
        if self.retry_after_s is not None:
            headers.append((b"retry-after", str(max(1, math.ceil(self.retry_after_s))).encode()))
        return headers


class Refusal(Exception):
    """A request that is refused in this package; never leaves it."""

    def __init__(self, problem: Problem) -> None:
        super().__init__(problem.message)
        self.problem = problem


class ClientGone(Exception):
    """The client closed its connection; there is nobody to answer. Never leaves this package."""


def refuse(param: str | None, message: str, *, code: str = "invalid_value", status: int = 400) -> Refusal:
    """A refusal because of one field; `message` names it, its value and what is allowed."""
    return Refusal(Problem(status, message, param=param, code=code))


def problem_of(error: BaseException) -> Problem:
    """What to tell the client. Messages of our own errors are fit for users; others stay in the log."""
    if isinstance(error, Refusal):
        return error.problem
    if isinstance(error, ModelNotFoundError):
        return Problem(404, str(error), param="model", code="model_not_found")
    if isinstance(error, PromptTooLongError):
        return Problem(400, str(error), code="context_length_exceeded")
    if isinstance(error, RequestError):
        return Problem(400, str(error), code="invalid_value")
    if isinstance(error, QueueFullError):
        return Problem(
            429, str(error), type="rate_limit_error", code="queue_full", retry_after_s=error.retry_after_s
        )
    if isinstance(error, UnavailableError | CapacityError):
        code = "unavailable" if isinstance(error, UnavailableError) else "out_of_capacity"
        return Problem(
            503, str(error), type="service_unavailable_error", code=code, retry_after_s=_RETRY_AFTER_S
        )
    if isinstance(error, RecursionError):  # of one that was only just decoded; others are refused there
        return Problem(400, "the body nests too deeply; allowed: some hundred levels", code="invalid_value")
    what = "the engine failed" if isinstance(error, StokerError) else "internal error"
    return Problem(
        500,
        f"{what} while answering; the server's log has the reason under this request's id",
        type="server_error",
        code="internal_error",
        is_ours=True,
    )
