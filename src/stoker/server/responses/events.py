"""The events of a streamed response, as bytes of server-sent events numbered without gaps.

Deltas are the hot path: what does not change around their text is formatted once for each part.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

END = b"\n\n"


class EventLog:
    """Formats events and counts them. `take` gives what was written since it was last called."""

    def __init__(self, first: int = 0) -> None:
        """`first`: the number of the first event."""
        self.number = first  # of the next event
        self._encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode
        self._pieces: list[bytes] = []

    def add(self, kind: str, **fields: Any) -> None:
        """One event of a kind that is written once or twice an answer."""
        name = kind.encode()
        data = self._encode({"type": kind, "sequence_number": self.number, **fields})
        self._pieces.append(b"event: %b\ndata: %b" % (name, data) + END)
        self.number += 1

    def deltas(self, kind: str, **fields: Any) -> Deltas:
        """What writes the deltas of one part."""
        head = b"event: %b\ndata: %b," % (kind.encode(), self._encode({"type": kind, **fields})[:-1])
        return Deltas(self, head + b'"delta":')

    def delta(self, head: bytes, text: str, logprobs: list[Any] | None) -> None:
        """One event between constant ends; `logprobs` of its tokens, for kinds of events that have them."""
        encode = self._encode
        self._pieces += (head, encode(text))
        if logprobs is not None:
            self._pieces += (b',"logprobs":', encode(logprobs) if logprobs else b"[]")
        self._pieces.append(b',"sequence_number":%d}' % self.number + END)
        self.number += 1

    def take(self) -> bytes:
        """The bytes since the last call."""
        data = b"".join(self._pieces)
        self._pieces.clear()
        return data


class Deltas:
    """Writes the deltas of one part."""

    __slots__ = ("_head", "_log")

    def __init__(self, log: EventLog, head: bytes) -> None:
        self._log = log
        self._head = head

    def add(self, text: str, logprobs: list[Any] | None = None) -> None:
        """One piece."""
        self._log.delta(self._head, text, logprobs)


def after(events: bytes, number: int) -> bytes:
    """Of a whole stream's bytes the events after the one with this number."""
    place = 0
    for _ in range(number + 1):
        end = events.find(END, place)
        if end < 0:
            return b""
        place = end + len(END)
    return events[place:]
