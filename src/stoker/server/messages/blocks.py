"""The parts of an answer as content blocks: one opens, grows, and closes before the next opens.

Streamed and whole answers are both made of these steps, so that they cannot differ.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from stoker.tools.parts import CallArguments, CallStart, Part, ReasoningPart, TextPart

BlockKind = Literal["text", "thinking", "tool_use"]


@dataclass(frozen=True, slots=True)
class BlockStart:
    """Block `index` begins; blocks are numbered from 0."""

    index: int
    kind: BlockKind
    call_id: str = ""
    name: str = ""


@dataclass(frozen=True, slots=True)
class BlockText:
    """More of the block that is open: text, thoughts, or the JSON text of a call's input."""

    index: int
    kind: BlockKind
    text: str


@dataclass(frozen=True, slots=True)
class BlockEnd:
    """Block `index` is complete. `signature` is of a thinking block."""

    index: int
    kind: BlockKind
    signature: str = ""


Step = BlockStart | BlockText | BlockEnd


class BlockOrder:
    """Turns parts into steps. One for each answer; `finish` comes once, after the last part."""

    __slots__ = ("_index", "_kind", "_omits", "_thoughts", "called")

    def __init__(self, *, omits_thinking: bool) -> None:
        """`omits_thinking`: a block of thoughts has its signature, and not the thoughts."""
        self._omits = omits_thinking
        self._index = -1
        self._kind: BlockKind | None = None  # of the block that is open
        self._thoughts = hashlib.sha256()  # of the open block
        self.called = False  # whether any tool was

    def steps(self, parts: Sequence[Part]) -> list[Step]:
        """What these parts add."""
        steps: list[Step] = []
        for part in parts:
            if isinstance(part, TextPart) and self._kind == "text" and part.text:  # nearly all
                steps.append(BlockText(self._index, "text", part.text))
            else:
                steps += self._part(part)
        return steps

    def finish(self) -> list[Step]:
        """The end of the last block."""
        return list(self._end())

    def _part(self, part: Part) -> Iterator[Step]:
        if isinstance(part, TextPart):
            yield from self._more("text", part.text)
        elif isinstance(part, CallArguments):
            if part.text:
                yield BlockText(self._index, "tool_use", part.text)
        elif isinstance(part, CallStart):
            yield from self._end()
            self.called = True
            self._index += 1
            self._kind = "tool_use"
            yield BlockStart(self._index, "tool_use", part.call_id, part.name)
        elif isinstance(part, ReasoningPart):
            for step in self._more("thinking", part.text):
                if not (self._omits and isinstance(step, BlockText)):
                    yield step
            self._thoughts.update(part.text.encode("utf-8", "surrogatepass"))

    def _more(self, kind: BlockKind, text: str) -> Iterator[Step]:
        if not text:
            return
        if self._kind != kind:
            yield from self._end()
            self._index += 1
            self._kind = kind
            yield BlockStart(self._index, kind)
        yield BlockText(self._index, kind, text)

    def _end(self) -> Iterator[Step]:
        if self._kind is None:
            return
        signature = ""
        if self._kind == "thinking":
            # Clients drop thoughts that have none when they send them back. It proves nothing: a digest.
            signature = base64.b64encode(self._thoughts.digest()).decode()
            self._thoughts = hashlib.sha256()
        yield BlockEnd(self._index, self._kind, signature)
        self._kind = None
