"""Every error Stoker raises on purpose, in one hierarchy.

A message says what is wrong, the value that was met, what is allowed, and (as ``hint``) what to do.
Exceptions of other libraries are mapped to one of these where they enter.
"""

from __future__ import annotations


class StokerError(Exception):
    """Base of all errors below. ``str(error)`` is one sentence fit for a user."""

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message} (hint: {hint})")
        self.message = message
        self.hint = hint


# --- what is on disk -------------------------------------------------------------------------------


class ModelNotFoundError(StokerError):
    """A model name or path resolves to nothing; the message lists where was looked."""


class ModelFormatError(StokerError):
    """A model file is broken or of a kind that is not understood; says where (offset, tensor, key)."""


class PullError(StokerError):
    """A download failed or did not verify; what was there before is untouched."""


# --- what is asked for -----------------------------------------------------------------------------


class RequestError(StokerError):
    """A request asks for something that is wrong or not supported; nothing was computed."""


class PromptTooLongError(RequestError):
    """Prompt (plus what must fit after it) exceeds the context; the message has both numbers."""


class TemplateError(RequestError):
    """A chat template failed, ran too long, or produced too much."""


# --- what is running -------------------------------------------------------------------------------


class CapacityError(StokerError):
    """Out of KV blocks or queue places; the request may succeed later."""


class QueueFullError(CapacityError):
    """As many requests wait as are allowed; `retry_after_s` is when to try again."""

    def __init__(self, message: str, *, retry_after_s: float = 1.0, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after_s = retry_after_s


class UnavailableError(StokerError):
    """The model cannot answer now: its engine is down and could not be started again, or is shutting down."""


class EngineError(StokerError):
    """The engine could not go on; the cause is chained."""
