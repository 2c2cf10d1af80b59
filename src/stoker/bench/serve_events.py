"""What a streamed answer says: events from bytes that were cut anywhere, tokens from events."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from stoker.bench.serve_http import Exchange

MOST_TOKENS = 1 << 40  # what a usage may say; more is nonsense, and overflows when divided
MOST_LINE_BYTES = 1 << 20  # of one event: ten thousand times a token's

_LINE_END = re.compile(rb"\r\n|\n|\r")


class EventStream:
    """Bytes in, the data of whole events out, as the HTML standard has it. Other fields are left out."""

    def __init__(self) -> None:
        self._fragments: list[bytes] = []  # a line whose end has not come
        self._fragment_bytes = 0
        self._after_return = False  # the last line ended in CR: a LF now would belong to it
        self._data: list[bytes] = []  # of the event under way
        self._is_first = True
        self.too_long = False  # a line passed MOST_LINE_BYTES; nothing more is read

    def feed(self, piece: bytes) -> list[bytes]:
        """The data of every event that ends in `piece`."""
        if self._after_return and piece:
            piece = piece.removeprefix(b"\n")
            self._after_return = False
        if not piece or self.too_long:
            return []
        if b"\n" not in piece and b"\r" not in piece:
            self._keep(piece)
            return []
        self._after_return = piece.endswith(b"\r")
        *lines, rest = _LINE_END.split(b"".join([*self._fragments, piece]))
        self._fragments, self._fragment_bytes = [], 0
        if rest:
            self._keep(rest)
        return [data for line in lines if (data := self._line(line)) is not None]

    def _keep(self, fragment: bytes) -> None:
        self._fragments.append(fragment)
        self._fragment_bytes += len(fragment)
        self.too_long = self._fragment_bytes > MOST_LINE_BYTES

    def _line(self, line: bytes) -> bytes | None:
        if self._is_first:
            line = line.removeprefix(b"\xef\xbb\xbf")
            self._is_first = False
        if line.startswith(b"data:"):
            self._data.append(line[6:] if line.startswith(b"data: ") else line[5:])
        elif line == b"data":
            self._data.append(b"")
        elif not line and self._data:
            data = b"\n".join(self._data)
            self._data = []
            return data
        return None


@dataclass(frozen=True, slots=True)
class StreamRecord:
    """One request as its client saw it. Times in seconds of one clock."""

    started_s: float
    ended_s: float
    # (when, tokens) of each read that brought some. Without token ids, one event with text counts as one
    # token, and `output_tokens` may be more: a server may send several tokens in one event.
    arrivals: tuple[tuple[float, int], ...]
    output_tokens: int
    counted_by: Literal["token_ids", "usage", "events"]
    prompt_tokens: int | None = None  # what the server says
    cached_tokens: int | None = None
    error: str | None = None  # its kind; none: the answer is whole
    detail: str = ""


def read_stream(exchange: Exchange) -> StreamRecord:
    """Make sense of what came. Never raises: what is wrong is the record's `error`."""
    answer = _Answer()
    if exchange.status == 200:
        for when, data in _events(exchange):
            answer.add(when, data)
    error, detail = exchange.failure, exchange.detail
    if error is None and exchange.status != 200:
        error, detail = f"http_{exchange.status}", message_of(exchange.body)
    elif error is None and answer.error is not None:
        error, detail = answer.error, answer.detail
    elif error is None and not answer.has_ended:
        error, detail = "incomplete", "the stream ended without a finish_reason or [DONE]"
    elif error is None and not answer.arrivals:
        error, detail = "empty", "the stream brought no token"
    return answer.record(exchange, error, detail)


def _events(exchange: Exchange) -> Iterator[tuple[float, bytes]]:
    stream = EventStream()
    for when, piece in exchange.arrivals:
        for data in stream.feed(piece):
            yield when, data
        if stream.too_long:
            yield when, b'{"error":{"message":"an event is longer than %d bytes"}}' % MOST_LINE_BYTES
            return


class _Answer:
    """Sums up the events of one stream."""

    def __init__(self) -> None:
        self.arrivals: dict[float, int] = {}
        self.has_ended = False
        self.error: str | None = None
        self.detail = ""
        self._has_ids = False
        self._usage: dict[str, Any] = {}

    def add(self, when: float, data: bytes) -> None:
        """Take in one event that came at `when`."""
        if data.strip() == b"[DONE]":
            self.has_ended = True
            return
        try:
            event = json.loads(data)
        except (ValueError, RecursionError):
            event = None
        if not isinstance(event, dict):
            self._fail("protocol", f"an event is not a JSON object: {data[:80]!r}")
            return
        if event.get("error"):
            self._fail("stream_error", message_of(data))
            return
        if isinstance(event.get("usage"), dict):
            self._usage = event["usage"]
        choices = event.get("choices")
        for choice in choices if isinstance(choices, list) else ():
            if isinstance(choice, dict):
                self._add_choice(when, choice)

    def record(self, exchange: Exchange, error: str | None, detail: str) -> StreamRecord:
        """Everything, once the last event was added."""
        counted = sum(self.arrivals.values())
        stated = _count(self._usage.get("completion_tokens"))
        details = self._usage.get("prompt_tokens_details")
        by_usage = not self._has_ids and bool(stated)
        return StreamRecord(
            started_s=exchange.started_s,
            ended_s=exchange.ended_s,
            arrivals=tuple(self.arrivals.items()),
            output_tokens=stated if by_usage and stated is not None else counted,
            counted_by="token_ids" if self._has_ids else "usage" if by_usage else "events",
            prompt_tokens=_count(self._usage.get("prompt_tokens")),
            cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else None,
            error=error,
            detail=detail,
        )

    def _add_choice(self, when: float, choice: dict[str, Any]) -> None:
        if choice.get("finish_reason"):
            self.has_ended = True
        token_ids = choice.get("token_ids")
        if isinstance(token_ids, list):
            self._has_ids = True
            tokens = len(token_ids)
        else:
            tokens = 0 if self._has_ids else int(_has_text(choice))
        if tokens:
            self.arrivals[when] = self.arrivals.get(when, 0) + tokens

    def _fail(self, kind: str, detail: str) -> None:
        if self.error is None:
            self.error, self.detail = kind, detail


def message_of(body: bytes) -> str:
    """What an error body says, in OpenAI's shape or another; the start of the body if in none."""
    try:
        value = json.loads(body)
    except (ValueError, RecursionError):
        return body[:200].decode("utf-8", "replace").strip()
    error = value.get("error", value) if isinstance(value, dict) else value
    message = error.get("message") or error.get("detail") if isinstance(error, dict) else error
    return str(message or value)[:400]


def _has_text(choice: dict[str, Any]) -> bool:
    delta = choice.get("delta")
    if isinstance(delta, dict):
        return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"))
    return bool(choice.get("text"))


def _count(value: Any) -> int | None:
    return value if type(value) is int and 0 <= value <= MOST_TOKENS else None
