"""Token ids to text as they come, in whole characters, and stop strings found across the pieces."""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from stoker.api.errors import RequestError
from stoker.tokenizer.tokenizer import Tokenizer

# Stop strings are a few words; each push looks at this many characters at most for each of them.
MAX_STOP_STRINGS = 64
MAX_STOP_CHARS = 4096

_Utf8Decoder = codecs.getincrementaldecoder("utf-8")


class Detokenizer:
    """Text of a growing sequence of token ids.

    What the pushes and the final flush give, put together, equals ``tokenizer.decode`` of all ids with the
    same options. A character split over tokens is held back until it is whole; bytes that cannot become
    one are given as U+FFFD as soon as that is certain.
    """

    __slots__ = ("_blob", "_decoder", "_offsets", "_size", "_skipped", "_strip")

    def __init__(
        self, tokenizer: Tokenizer, *, skip_special: bool = True, continuation: bool = False
    ) -> None:
        """``continuation``: the ids follow others (an answer follows its prompt), so that a leading space
        is part of the text."""
        self._offsets, self._blob = tokenizer.byte_tables()
        self._size = tokenizer.vocab_size
        self._skipped: frozenset[int] = tokenizer.special_ids if skip_special else frozenset()
        self._decoder = _Utf8Decoder("replace")
        self._strip = tokenizer.add_space_prefix and not continuation

    def push(self, ids: Iterable[int]) -> str:
        """The text that ``ids`` complete. Raises RequestError for an id that is not in the vocabulary."""
        offsets, blob, skipped, size = self._offsets, self._blob, self._skipped, self._size
        data = b""
        for index in ids:
            if not 0 <= index < size:
                raise RequestError(f"token id {index} is not one of the model's {size} (0 to {size - 1})")
            if index not in skipped:
                data += blob[offsets[index] : offsets[index + 1]]
        return self._finish(self._decoder.decode(data))

    def flush(self) -> str:
        """What is left when no ids follow: U+FFFD for an unfinished character, mostly nothing."""
        text = self._decoder.decode(b"", True)
        self._decoder.reset()
        return self._finish(text)

    def _finish(self, text: str) -> str:
        if self._strip and text:
            self._strip = False
            return text.removeprefix(" ")
        return text


class StopResult(NamedTuple):
    """What one piece of text adds to the answer."""

    emit: str  # text that is certain to belong to the answer
    stopped: bool  # a stop string was completed; nothing after ``emit`` belongs to the answer


class StopStrings:
    """Ends a text before the first stop string to be completed, however the text is cut into pieces.

    Of two completed by the same character, the longer decides. Text that may be the start of a stop string
    is held back.
    """

    __slots__ = ("_held", "_max_held", "_starts", "_stops", "matched")

    def __init__(self, stops: Sequence[str]) -> None:
        """Raises RequestError for an empty or overlong stop string, or too many of them."""
        if len(stops) > MAX_STOP_STRINGS:
            raise RequestError(f"{len(stops)} stop strings are given; at most {MAX_STOP_STRINGS} are allowed")
        for stop in stops:
            if not 0 < len(stop) <= MAX_STOP_CHARS:
                raise RequestError(
                    f"a stop string has {len(stop)} characters; 1 to {MAX_STOP_CHARS} are allowed"
                )
        self._stops = tuple(dict.fromkeys(stops))
        self._max_held = max(map(len, stops), default=1) - 1
        self._starts = frozenset(stop[:1] for stop in stops)
        self._held = ""
        self.matched: str | None = None  # the stop string that ended the text

    def push(self, text: str) -> StopResult:
        """Take the next piece. After a stop everything is dropped."""
        if self.matched is not None:
            return StopResult("", True)
        if not self._stops:
            return StopResult(text, False)
        text = self._held + text
        first: tuple[int, int, str] | None = None
        for stop in self._stops:
            at = text.find(stop)
            if at >= 0 and (first is None or (at + len(stop), at) < first[:2]):
                first = (at + len(stop), at, stop)
        if first is not None:
            self.matched, self._held = first[2], ""
            return StopResult(text[: first[1]], True)
        keep = self._partial_match(text)
        self._held = text[len(text) - keep :]
        return StopResult(text[: len(text) - keep], False)

    def flush(self) -> str:
        """What was held back, when no text follows."""
        held, self._held = self._held, ""
        return held

    def _partial_match(self, text: str) -> int:
        """Length of the longest end of ``text`` that begins a stop string."""
        for length in range(min(self._max_held, len(text)), 0, -1):
            at = len(text) - length
            if text[at] in self._starts:
                tail = text[at:]
                if any(stop.startswith(tail) for stop in self._stops):
                    return length
        return 0
