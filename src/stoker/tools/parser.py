"""From an answer's text to its parts, piece by piece: what is streamed and what is whole are the same.

However the text is cut into pieces, the parts put together are equal: what may still turn out to be a mark
is held back until it is certain.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass

from stoker.api.constraint import Thinking
from stoker.tools.parts import CallArguments, CallStart, Part, ReasoningPart, TextPart


@dataclass(frozen=True, slots=True)
class CallMarks:
    """A call is `head name tail arguments end`; a run of them stands between `before` and `after`."""

    heads: tuple[str, ...]  # any of them
    triggers: tuple[str, ...]  # once a text has come to one of these, it can only be a call
    tail: str
    end: str
    before: str = ""
    between: str = ""
    after: str = ""


def call_id(seed: str, index: int) -> str:
    """The id of a call: a function of the answer's seed and the call's number, so that a replay has it."""
    return "call_" + hashlib.sha256(f"{seed}/{index}".encode()).hexdigest()[:24]


class AnswerParser:
    """Takes the text of one answer, gives its parts. White space around thoughts and calls is dropped."""

    def __init__(
        self,
        thinking: Thinking | None,
        marks: CallMarks | None,
        *,
        names: tuple[str, ...] = (),
        call_seed: str = "",
    ) -> None:
        """`marks` and `names`: of the tools that may be called; none: whatever comes is text."""
        self._thinking = thinking
        self._marks = marks
        self._names = names
        self._seed = call_seed
        self._held = ""  # not certain yet
        self._parts: list[Part] = []
        self._calls = 0
        self._skips_space = False  # of the text, at its start after thoughts or a call
        self._json = _JsonEnd()
        self._openings: tuple[str, ...] = ()
        if marks is not None:
            self._openings = tuple(marks.before + head for head in marks.heads)
        self._step: Callable[[], bool] = self._in_text
        if thinking is not None:
            self._skips_space = thinking.begun
            self._step = self._in_thoughts if thinking.begun else self._at_start

    @property
    def calls(self) -> int:
        """Calls that have begun."""
        return self._calls

    @property
    def in_call(self) -> bool:
        """True within a call's arguments: if the text ends there, they are cut off."""
        return self._step == self._in_arguments and not self._json.ended

    def push(self, text: str) -> list[Part]:
        """The parts that are certain now."""
        self._held += text
        while self._held and self._step():
            continue
        parts, self._parts = self._parts, []
        return parts

    def finish(self) -> list[Part]:
        """No text follows: what was held back is certain."""
        step = self._step
        if step == self._in_thoughts:
            self._give(ReasoningPart, self._held)
        elif step in (self._at_start, self._in_text) and not (self._skips_space and self._held.isspace()):
            self._give(TextPart, self._without_cut_call(self._held))
        self._held = ""
        parts, self._parts = self._parts, []
        return parts

    def _without_cut_call(self, text: str) -> str:
        """`text` without a call whose tool's name the answer did not come to."""
        triggers = () if self._marks is None else self._marks.triggers
        places = [place for trigger in triggers if (place := text.find(trigger)) >= 0]
        return text[: min(places)].rstrip() if places else text

    # Each step looks at what is held; False: it needs more.

    def _at_start(self) -> bool:
        assert self._thinking is not None
        text, begin = self._held.lstrip(), self._thinking.begin
        if text.startswith(begin):
            self._held = text[len(begin) :]
            self._skips_space = True
            self._step = self._in_thoughts
        elif begin.startswith(text):
            return False
        else:
            self._step = self._in_text
        return True

    def _in_thoughts(self) -> bool:
        assert self._thinking is not None
        end = self._thinking.end
        if self._skips_space:
            self._held = self._held.lstrip()
            if not self._held:
                return False
        place = self._held.find(end)
        if place >= 0:
            self._give(ReasoningPart, self._held[:place].rstrip())
            self._held = self._held[place + len(end) :]
            self._skips_space = True
            self._step = self._in_text
            return True
        certain = len(self._held) - _overlap(self._held, end)
        self._give_certain(ReasoningPart, certain)
        return False

    def _in_text(self) -> bool:
        if self._skips_space:
            self._held = self._held.lstrip()
            if not self._held:
                return False
        if not self._openings:
            self._give(TextPart, self._held)
            self._held = ""
            return False
        from_place = 0
        while True:
            found = [(self._held.find(o, from_place), o) for o in self._openings]
            place, opening = min(((p, o) for p, o in found if p >= 0), default=(-1, ""))
            if place < 0:
                most = max(_overlap(self._held, o) for o in self._openings)
                self._give_certain(TextPart, len(self._held) - most)
                return False
            after = self._name_after(self._held, place + len(opening))
            if after is None:  # it may become a name
                self._give_certain(TextPart, place)
                return False
            if after:
                name, rest = after
                self._give(TextPart, self._held[:place].rstrip())
                self._begin_call(name, rest)
                return True
            from_place = place + 1

    def _name_after(self, text: str, place: int) -> tuple[str, int] | tuple[()] | None:
        """A tool's name and where its arguments begin; () if there is none, None if there may be one."""
        assert self._marks is not None
        rest = text[place : place + 256]
        open_end = False
        for name in self._names:
            whole = name + self._marks.tail
            if rest.startswith(whole):
                return name, place + len(whole)
            open_end = open_end or whole.startswith(rest)
        return None if open_end else ()

    def _begin_call(self, name: str, rest: int) -> None:
        index = self._calls
        self._calls += 1
        self._parts.append(CallStart(index, call_id(self._seed, index), name))
        self._held = self._held[rest:]
        self._json = _JsonEnd()
        self._step = self._in_arguments

    def _in_arguments(self) -> bool:
        size = self._json.push(self._held)
        if size:
            self._parts.append(CallArguments(self._calls - 1, self._held[:size]))
            self._held = self._held[size:]
        if self._json.ended:
            self._step = self._after_arguments
            return True
        return False

    def _after_arguments(self) -> bool:
        assert self._marks is not None
        return self._expect(self._marks.end, self._after_call)

    def _after_call(self) -> bool:
        """Another call of the same run, or the run's end."""
        marks = self._marks
        assert marks is not None
        if not marks.before:
            self._to_text()
            return True
        may_be = False
        for head in marks.heads:
            opening = marks.between + head
            if self._held.startswith(opening):
                after = self._name_after(self._held, len(opening))
                if after is None:
                    return False
                if after:
                    self._begin_call(*after)
                    return True
            may_be = may_be or opening.startswith(self._held)
        if may_be and not (marks.after and self._held.startswith(marks.after)):
            return False
        return self._expect(marks.after, self._to_text_step)

    def _to_text_step(self) -> bool:
        self._to_text()
        return True

    def _to_text(self) -> None:
        self._skips_space = True
        self._step = self._in_text

    def _expect(self, mark: str, then: Callable[[], bool]) -> bool:
        """Take `mark`; what is there instead counts as text."""
        if self._held.startswith(mark):
            self._held = self._held[len(mark) :]
            self._step = then
        elif mark.startswith(self._held):
            return False
        else:
            self._to_text()
        return True

    def _give_certain(self, kind: type[TextPart] | type[ReasoningPart], certain: int) -> None:
        """Give what is held up to `certain`; white space before that place waits for what follows it."""
        text = self._held[:certain].rstrip()
        self._give(kind, text)
        self._held = self._held[len(text) :]

    def _give(self, kind: type[TextPart] | type[ReasoningPart], text: str) -> None:
        if text:
            self._skips_space = False
            self._parts.append(kind(text))


class _JsonEnd:
    """Finds where a JSON object or array ends."""

    __slots__ = ("_depth", "_escaped", "_in_string", "ended")

    def __init__(self) -> None:
        self._depth = 0
        self._in_string = False
        self._escaped = False
        self.ended = False

    def push(self, text: str) -> int:
        """How many of the characters belong to the value."""
        for place, char in enumerate(text):
            if self._in_string:
                if self._escaped:
                    self._escaped = False
                elif char == "\\":
                    self._escaped = True
                elif char == '"':
                    self._in_string = False
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth <= 0:
                    self.ended = True
                    return place + 1
        return len(text)


def _overlap(text: str, mark: str) -> int:
    """The length of the longest end of `text` that is a beginning of `mark`."""
    for size in range(min(len(text), len(mark) - 1), 0, -1):
        if mark.startswith(text[-size:]):
            return size
    return 0
