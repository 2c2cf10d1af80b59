"""Log lines on stderr: one JSON object each, or plain for a terminal. One line for each finished request.

Prompts and answers are never in them unless that is asked for. What a client sends (ids, tenants) is escaped,
so that nobody writes a line that the server did not.
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Literal, TextIO

from stoker.api.chat import Chat, Message
from stoker.api.errors import RequestError
from stoker.api.request import Request
from stoker.telemetry.observe import RequestRecord

LogFormat = Literal["json", "text"]
_LEVELS: Mapping[str, int] = MappingProxyType(
    {"debug": logging.DEBUG, "info": logging.INFO, "warning": logging.WARNING, "error": logging.ERROR}
)
_LOGGER = logging.getLogger("stoker.requests")
# Each is one line per connection or per request, which ours says better, and with more in it.
_QUIET_LOGGERS: Sequence[str] = ("uvicorn.access", "httpx", "httpcore")
_LONGEST_VALUE = 200  # characters of a client's id or tenant; only a mistake or an attack is longer


def configure_logging(
    *, format: LogFormat = "json", level: str = "info", stream: TextIO | None = None
) -> logging.Handler:
    """Send every logger of this process to `stream` (stderr) in one format; what was set up before goes.

    Returns the handler, to take it away again. Raises `RequestError` for an unknown format or level.
    """
    if format not in ("json", "text"):
        raise RequestError(f"log format is {format!r}; allowed: json, text")
    if level not in _LEVELS:
        raise RequestError(f"log level is {level!r}; allowed: {', '.join(_LEVELS)}")
    handler = logging.StreamHandler(sys.stderr if stream is None else stream)
    handler.setFormatter(JsonFormatter() if format == "json" else TextFormatter())
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(max(_LEVELS[level], logging.INFO))  # other libraries' debugging is theirs
    logging.getLogger("stoker").setLevel(_LEVELS[level])
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access", "asyncio"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    for name in _QUIET_LOGGERS:
        logging.getLogger(name).setLevel(logging.WARNING)
    return handler


def log_event(logger: logging.Logger, level: int, event: str, /, **fields: object) -> None:
    """Log `event` with fields of its own; those that are None are left out."""
    if logger.isEnabledFor(level):
        logger.log(level, event, extra={"fields": {k: v for k, v in fields.items() if v is not None}})


class JsonFormatter(logging.Formatter):
    """One JSON object in one line: time (UTC), level, event, logger, and the fields of the event."""

    def format(self, record: logging.LogRecord) -> str:
        """The line, without its end."""
        line: dict[str, object] = {
            "time": _utc(record.created),
            "level": record.levelname.lower(),
            "event": record.getMessage(),
            "logger": record.name,
        }
        for name, value in _fields(record).items():
            line.setdefault(name, value)
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)  # ASCII: no encoding, viewer or direction mark can change it


class TextFormatter(logging.Formatter):
    """A line for people: local time, level if it is not information, event, field=value."""

    def format(self, record: logging.LogRecord) -> str:
        """The line; an exception's traceback follows on lines of its own."""
        words = [time.strftime("%H:%M:%S", time.localtime(record.created))]
        if record.levelno != logging.INFO:
            words.append(record.levelname.lower())
        words.append(_printable(record.getMessage()))
        words += [f"{name}={_plain(value)}" for name, value in _fields(record).items()]
        line = " ".join(words)
        return f"{line}\n{self.formatException(record.exc_info)}" if record.exc_info else line


class RequestLog:
    """An observer that logs each request when it ends."""

    def __init__(self, *, log_prompts: bool = False) -> None:
        self._log_prompts = log_prompts  # prompts and answers; the host must keep the texts, too

    def __call__(self, request: Request, model: str) -> Callable[[RequestRecord], None]:
        """A request has started; what is returned is called with its record."""
        return self._write

    def _write(self, record: RequestRecord) -> None:
        request, error = record.request, record.error
        first_s = record.time_to_first_token_s
        fields: dict[str, object] = {
            "request_id": request.request_id[:_LONGEST_VALUE],
            "model": record.model,
            "tenant": request.tenant[:_LONGEST_VALUE] or None,
            "prompt_tokens": record.prompt_tokens,
            "cached_tokens": record.cached_tokens,
            "generated_tokens": record.generated_tokens,
            "first_token_ms": None if first_s is None else round(first_s * 1000, 1),
            "ms": round(record.seconds * 1000, 1),
            "finish_reason": ",".join(record.finish_reasons),
            "seed": record.done[0].seed if record.done and record.done[0].choice == 0 else None,
        }
        if error is not None:
            fields |= {"error": type(error).__name__, "reason": str(error)[: 5 * _LONGEST_VALUE]}
        if self._log_prompts:
            fields |= {"prompt": _prompt_as_json(request), "answers": list(record.texts)}
        log_event(_LOGGER, logging.INFO if error is None else logging.WARNING, _event(record), **fields)


def _event(record: RequestRecord) -> str:
    if record.error is None:
        return "request finished" if len(record.done) == record.request.sampling.n else "request aborted"
    return "request failed" if record.generated_tokens else "request refused"


def _prompt_as_json(request: Request) -> object:
    prompt = request.prompt
    if request.kind == "chat":
        messages = prompt.messages if isinstance(prompt, Chat) else prompt
        return [{"role": m.role, "content": m.content} for m in messages if isinstance(m, Message)]
    return prompt


def _fields(record: logging.LogRecord) -> Mapping[str, object]:
    fields = getattr(record, "fields", None)
    return fields if isinstance(fields, Mapping) else {}


def _utc(seconds: float) -> str:
    """2026-01-31T23:59:59.123Z."""
    milliseconds = int(seconds * 1000)
    whole, rest = divmod(milliseconds, 1000)
    return f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(whole))}.{rest:03d}Z"


def _plain(value: object) -> str:
    """A value without a space as it is, any other as JSON."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    if isinstance(value, str) and (not text or any(c.isspace() or c in '"=' for c in text)):
        text = json.dumps(text, ensure_ascii=False)
    return _printable(text)


def _printable(text: str) -> str:
    """What moves a terminal's cursor or starts a line is escaped."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
