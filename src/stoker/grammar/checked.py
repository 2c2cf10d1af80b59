"""A guide whose grammar accepts too much, with tests of the values in the text."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from stoker.grammar.guide import MaskRow
from stoker.grammar.matching import GrammarGuide
from stoker.grammar.schema.checks import CheckPlan, ValueChecks
from stoker.grammar.schema.reader import Reader
from stoker.grammar.vocabulary import Vocabulary


class TextChecks(Protocol):
    """Tests of a text as it grows."""

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
    """Of a text with tags, by where each begins: the values in them."""

    def __init__(self, tags: Sequence[tuple[bytes, CheckPlan | None]]) -> None:
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
            if not self._open:
                return False
            if all(checks.done for checks in self._open):
                self._open, self._tail = [], b""
            return True
        self._tail = (self._tail + byte)[-self._longest :]
        begun = [plan for begin, plan in self._tags if self._tail.endswith(begin)]
        if begun and None not in begun:
            self._open = [JsonChecks(plan) for plan in begun if plan is not None]
        return True


class CheckedGuide:
    """A `GrammarGuide` that also refuses tokens after which a value would be wrong."""

    free = False
    thought_tokens = 0

    def __init__(self, inner: GrammarGuide, checks: TextChecks, vocabulary: Vocabulary) -> None:
        self._inner = inner
        self._checks = checks
        self._vocabulary = vocabulary
        self._tried: tuple[int, TextChecks] | None = None  # the last token that was asked about

    @property
    def forced(self) -> tuple[int, ...]:
        """What the grammar forces."""
        return self._inner.forced

    @property
    def finished(self) -> bool:
        """Whether the grammar is at its end."""
        return self._inner.finished

    def fill_mask(self, mask: MaskRow) -> None:
        """The grammar's mask."""
        self._inner.fill_mask(mask)

    def allows(self, token_id: int) -> bool:
        """Whether the text may go on with the token."""
        return self._inner.allows(token_id) and not self.refuses(token_id)

    def refuses(self, token_id: int) -> bool:
        """Whether the token completes a value that is wrong, or forces one to come."""
        checks = self._checks.copy()
        if token_id in self._vocabulary.stop_ids:
            return not checks.end()
        if not checks.feed(self._vocabulary.tokenizer.token_bytes(token_id)):
            return True
        self._tried = (token_id, checks)
        forced, ends = self._inner.after(token_id)
        if not forced and not ends:
            return False
        beyond = checks.copy()
        return not beyond.feed(forced) or (ends and not beyond.end())

    def push(self, token_id: int) -> None:
        """See `Guide`."""
        self._inner.push(token_id)
        tried, self._tried = self._tried, None
        if tried is not None and tried[0] == token_id:
            self._checks = tried[1]
        elif token_id not in self._vocabulary.stop_ids:
            self._checks.feed(self._vocabulary.tokenizer.token_bytes(token_id))
