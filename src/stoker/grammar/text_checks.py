"""Tests of the JSON values in a text as it grows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stoker.grammar.schema.checks import CheckPlan, ValueChecks
from stoker.grammar.schema.reader import Reader


class TextChecks(Protocol):
    """Tests of one text."""

    def feed(self, data: bytes) -> bool:
        """Read on; False if the text must not go on so, and then these tests are of no more use."""
        ...

    def end(self) -> bool:
        """Whether the text may end here."""
        ...

    def copy(self) -> TextChecks:
        """The same tests in the same state, free to go elsewhere."""
        ...


class JsonChecks:
    """Of a text that is one JSON value."""

    def __init__(self, plan: CheckPlan) -> None:
        self._reader = Reader()
        self._checks = ValueChecks(plan)

    @property
    def done(self) -> bool:
        """Whether the value is complete."""
        return self._reader.done

    def feed(self, data: bytes) -> bool:
        """See `TextChecks`."""
        return self._reader.feed(data, self._checks)

    def end(self) -> bool:
        """See `TextChecks`."""
        return self._reader.end(self._checks)

    def copy(self) -> JsonChecks:
        """See `TextChecks`."""
        other = JsonChecks.__new__(JsonChecks)
        other._reader, other._checks = self._reader.copy(), self._checks.copy()
        return other


class TagChecks:
    """Of a text with tags, by the texts that they begin with, none of them empty: the values in them."""

    def __init__(self, tags: Sequence[tuple[bytes, CheckPlan]]) -> None:
        self._tags = tags
        self._longest = max(len(begin) for begin, _ in tags)
        self._tail = b""  # of the text since the last value
        self._open: list[JsonChecks] = []  # more than one if tags begin alike

    def feed(self, data: bytes) -> bool:
        """See `TextChecks`."""
        return all(self._byte(data[at : at + 1]) for at in range(len(data)))

    def end(self) -> bool:
        """See `TextChecks`."""
        return True

    def copy(self) -> TagChecks:
        """See `TextChecks`."""
        other = TagChecks(self._tags)
        other._tail = self._tail
        other._open = [checks.copy() for checks in self._open]
        return other

    def _byte(self, byte: bytes) -> bool:
        if self._open:
            self._open = [checks for checks in self._open if checks.feed(byte)]
            if self._open and all(checks.done for checks in self._open):
                self._open, self._tail = [], b""
                return True
            return bool(self._open)
        self._tail = (self._tail + byte)[-self._longest :]
        self._open = [JsonChecks(plan) for begin, plan in self._tags if self._tail.endswith(begin)]
        return True


class OneTagChecks:
    """Of a text that is one tag, or, where a tag begins with nothing, a value from the first byte on.

    Which tag it is may show late, so all that it may be are followed; it is refused when none is left.
    """

    def __init__(self, tags: Sequence[tuple[bytes, CheckPlan]]) -> None:
        self._tags = tags
        self._text = b""  # as much as a tag's beginning may have
        self._longest = max(len(begin) for begin, _ in tags)
        self._open = [JsonChecks(plan) for begin, plan in tags if not begin]

    def feed(self, data: bytes) -> bool:
        """See `TextChecks`."""
        return all(self._byte(data[at : at + 1]) for at in range(len(data)))

    def end(self) -> bool:
        """See `TextChecks`."""
        return any(checks.done or checks.end() for checks in self._open)

    def copy(self) -> OneTagChecks:
        """See `TextChecks`."""
        other = OneTagChecks.__new__(OneTagChecks)
        other._tags, other._text, other._longest = self._tags, self._text, self._longest
        other._open = [checks.copy() for checks in self._open]
        return other

    def _byte(self, byte: bytes) -> bool:
        self._open = [checks for checks in self._open if checks.feed(byte)]
        if len(self._text) > self._longest:
            return bool(self._open)
        self._text += byte
        self._open += [JsonChecks(plan) for begin, plan in self._tags if begin and begin == self._text]
        begins = any(begin.startswith(self._text) and begin != self._text for begin, _ in self._tags)
        return begins or bool(self._open)
