"""Finding special tokens in a text before anything else is tokenized.

The rule is llama.cpp's: the longest special token is cut out everywhere first, then the next longest in
what is left. Where no two special tokens can overlap, that is the same as reading from the left and taking
the longest token at each place, which is what is done then.
"""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

Span = tuple[int, int]
Piece = str | int  # plain text, or the id of a special token


@dataclass(frozen=True)
class Special:
    """One special token of the vocabulary."""

    text: str
    index: int
    is_control: bool  # control or unknown, not user-defined


class Partition:
    """Cuts texts at a fixed set of special tokens."""

    def __init__(self, specials: Iterable[Special], *, simple: bool) -> None:
        self._specials = sorted(specials, key=lambda special: -len(special.text.encode()))
        self._simple = simple
        self._by_text = {special.text: special for special in self._specials}
        # A head is the first two characters (one for one-character tokens): a regular expression finds
        # heads, a look-up of the few lengths possible after each decides. An alternation of thousands of
        # whole tokens would be slow to compile and to try.
        lengths: dict[str, set[int]] = {}
        for text in self._by_text:
            lengths.setdefault(text[:2], set()).add(len(text))
        self._lengths = {head: sorted(found, reverse=True) for head, found in lengths.items()}
        heads = sorted(self._lengths, key=len, reverse=True)
        self._heads = re.compile("|".join(map(re.escape, heads))) if heads else None

    def split(self, text: str, literal: Sequence[Span] = ()) -> list[Piece]:
        """Plain pieces and token ids in order. A control token that overlaps a span of ``literal``
        (ascending, disjoint, in characters) is text there."""
        if self._heads is None or not text:
            return [text] if text else []
        if self._simple:
            return self._from_left(text, literal)
        return self._longest_first(text, literal)

    def control_spans(self, text: str) -> list[Span]:
        """Where any control token's text stands in ``text``, overlapping ones merged; ascending."""
        spans: list[Span] = []
        match = self._heads.search(text) if self._heads is not None else None
        while match is not None and self._heads is not None:
            at = match.start()
            spans += [(at, at + len(s.text)) for s in self._candidates(text, at) if s.is_control]
            match = self._heads.search(text, at + 1)
        return merge_spans(spans)

    def _candidates(self, text: str, at: int) -> Iterable[Special]:
        """The special tokens that stand at ``at``, longest first."""
        for head in (text[at : at + 2], text[at : at + 1]):
            for length in self._lengths.get(head, ()):
                special = self._by_text.get(text[at : at + length])
                if special is not None:
                    yield special

    def _from_left(self, text: str, literal: Sequence[Span]) -> list[Piece]:
        assert self._heads is not None
        pieces: list[Piece] = []
        plain = 0
        match = self._heads.search(text)
        while match is not None:
            at = after = match.start()
            for special in self._candidates(text, at):
                end = at + len(special.text)
                if not (special.is_control and _overlaps(literal, at, end)):
                    if at > plain:
                        pieces.append(text[plain:at])
                    pieces.append(special.index)
                    plain = after = end
                    break
            match = self._heads.search(text, max(after, at + 1))
        if plain < len(text):
            pieces.append(text[plain:])
        return pieces

    def _longest_first(self, text: str, literal: Sequence[Span]) -> list[Piece]:
        pieces: list[tuple[int, int, int | None]] = [(0, len(text), None)]
        for special in self._specials:
            if special.text not in text:
                continue
            cut: list[tuple[int, int, int | None]] = []
            for start, end, index in pieces:
                if index is not None:
                    cut.append((start, end, index))
                    continue
                at = search = start
                while True:
                    found = text.find(special.text, search, end)
                    if found < 0:
                        break
                    after = found + len(special.text)
                    if special.is_control and _overlaps(literal, found, after):
                        search = found + 1
                        continue
                    if found > at:
                        cut.append((at, found, None))
                    cut.append((found, after, special.index))
                    at = search = after
                if at < end:
                    cut.append((at, end, None))
            pieces = cut
        return [text[start:end] if index is None else index for start, end, index in pieces]


def _overlaps(spans: Sequence[Span], start: int, end: int) -> bool:
    after = bisect_left(spans, (end,))  # the spans before ``after`` start before ``end``
    return after > 0 and spans[after - 1][1] > start


def merge_spans(spans: Iterable[Span]) -> list[Span]:
    """The same places as ascending, disjoint spans."""
    merged: list[Span] = []
    for start, end in sorted(spans):
        if merged and start <= merged[-1][1]:
            merged[-1] = (merged[-1][0], max(end, merged[-1][1]))
        else:
            merged.append((start, end))
    return merged


def partitions_simply(texts: Sequence[str]) -> bool:
    """Whether reading from the left gives llama.cpp's result: no special token's end is another's start.

    Runs of one character (newlines, spaces) overlap each other, but cut the same way in both orders.
    """
    starts: dict[str, set[str]] = {}
    for text in texts:
        for length in range(1, len(text) + 1):
            starts.setdefault(text[:length], set()).add(text)
    for text in texts:
        for at in range(1, len(text)):
            for other in starts.get(text[at:], ()):
                same_run = len(set(text)) == 1 and set(other) == set(text)
                if other != text and not same_run:
                    return False
    return True
