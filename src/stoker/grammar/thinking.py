"""A guide for models that think aloud: first the thoughts, with an end in time, then the answer."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from dataclasses import dataclass
from typing import Literal

from stoker.api.constraint import Thinking
from stoker.api.errors import EngineError
from stoker.grammar.checked import CheckedGuide
from stoker.grammar.guide import FreeGuide, MaskRow, set_bits
from stoker.grammar.matching import GrammarGuide
from stoker.grammar.vocabulary import Vocabulary

Inner = GrammarGuide | CheckedGuide | FreeGuide
Phase = Literal["opening", "thoughts", "gap", "answer"]

# Models write empty lines between thoughts and answer: so many tokens of nothing else belong to neither.
GAP_TOKENS = 2


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """`Thinking` in the tokens of one model."""

    begin: bytes
    end: bytes
    begun: bool
    budget_tokens: int | None
    closing_ids: tuple[int, ...]  # `closing` and the end mark
    # Per number of bytes of the begin mark that are there: the tokens that bring more of it and nothing else.
    begin_steps: tuple[tuple[int, ...], ...]
    newline_ids: tuple[int, ...]
    thoughts_mask: MaskRow  # all but control tokens, of which only the end mark may come
    vocabulary: Vocabulary

    @classmethod
    def of(cls, thinking: Thinking, vocabulary: Vocabulary) -> ThinkingMarks:
        """The marks as the model's tokens. A mark that is one token is only ever that token."""
        begin, end = thinking.begin.encode(), thinking.end.encode()
        whole = vocabulary.token_of(begin)
        steps = [() if whole is not None else _steps(begin[at:], vocabulary) for at in range(len(begin))]
        if whole is not None:
            steps[0] = (whole,)
        end_ids = vocabulary.continue_text(thinking.end)
        thoughts_mask = vocabulary.text_mask.copy()
        set_bits(thoughts_mask, (index for index in end_ids if index not in vocabulary.stop_ids))
        newlines = (vocabulary.token_of(text) for text in (b"\n", b"\n\n"))
        return cls(
            begin=begin,
            end=end,
            begun=thinking.begun,
            budget_tokens=thinking.budget_tokens,
            closing_ids=tuple(vocabulary.continue_text(thinking.closing + thinking.end)),
            begin_steps=tuple(steps),
            newline_ids=tuple(index for index in newlines if index is not None),
            thoughts_mask=thoughts_mask,
            vocabulary=vocabulary,
        )


def _steps(rest: bytes, vocabulary: Vocabulary) -> tuple[int, ...]:
    found = (vocabulary.token_of(rest[:length]) for length in range(1, len(rest) + 1))
    return tuple(index for index in found if index is not None)


class ThinkingGuide:
    """Thoughts, then what `new_inner` guides.

    Phases: `opening` (the begin mark may come, or the answer at once), `thoughts`, `gap` (just after the end
    mark), `answer`. Marks are looked for in the text, so that one is found however it is tokenized.
    """

    def __init__(self, marks: ThinkingMarks, new_inner: Callable[[], Inner]) -> None:
        self._marks = marks
        self._new_inner = new_inner
        self._inner: Inner = new_inner()
        self._inner_alive = True  # in `opening`: what came may still be the answer's beginning
        self._constrained = not self._inner.free
        self._phase: Phase = "thoughts" if marks.begun else "opening"
        self._begin_bytes = 0  # of the begin mark that are there
        self._tail = b""  # of the thoughts: as much as may be the end mark's beginning
        self._tail_lengths: tuple[int, ...] = ()  # bytes of the last thoughts' tokens, enough for the tail
        self._gap_left = GAP_TOKENS
        self._forced: tuple[int, ...] = ()
        self.thought_tokens = 0
        self._close_in_time()

    # --- what the engine asks ----------------------------------------------------------------------

    @property
    def forced(self) -> tuple[int, ...]:
        """The closing of thoughts that have spent their budget; in the answer, what its grammar forces."""
        return self._inner.forced if self._phase == "answer" else self._forced

    @property
    def free(self) -> bool:
        """Whether the answer is; thoughts under a constraint must not end the text."""
        return not self._constrained

    @property
    def finished(self) -> bool:
        """Whether the answer is complete."""
        return self._phase == "answer" and self._inner.finished

    def fill_mask(self, mask: MaskRow) -> None:
        """See `Guide`."""
        if self._phase == "thoughts":
            mask[:] = self._marks.thoughts_mask
            return
        if self._inner_alive:
            self._inner.fill_mask(mask)
        else:
            mask[:] = 0
        if self._phase == "opening":
            set_bits(mask, self._marks.begin_steps[self._begin_bytes])
        elif self._phase == "gap":
            set_bits(mask, self._marks.newline_ids)

    def refuses(self, token_id: int) -> bool:
        """In thoughts: a token that has the end mark and goes on: its rest would escape the grammar."""
        if not self._constrained:
            return False
        if self._phase == "thoughts":
            if token_id in self._marks.vocabulary.stop_ids:
                return True
            _, found, rest = (self._tail + self._bytes(token_id)).partition(self._marks.end)
            return bool(found) and bool(rest.strip(b"\n"))
        if self._phase == "answer" or not self._belongs_to_marks(token_id):
            return self._inner.refuses(token_id)
        return False

    def push(self, token_id: int) -> None:
        """See `Guide`."""
        if self._forced:
            if token_id != self._forced[0]:
                raise EngineError(f"token {token_id} was pushed where token {self._forced[0]} is forced")
            self._forced = self._forced[1:]
        if self._phase == "opening":
            self._push_opening(token_id)
        elif self._phase == "thoughts":
            self._push_thought(token_id)
        elif self._phase == "gap":
            self._push_gap(token_id)
        else:
            self._inner.push(token_id)
        self._close_in_time()

    def fork(self) -> ThinkingGuide:
        """See `Guide`."""
        made = copy(self)
        made._inner = self._inner.fork()
        return made

    # --- phases ------------------------------------------------------------------------------------

    def _belongs_to_marks(self, token_id: int) -> bool:
        if self._phase == "opening":
            return token_id in self._marks.begin_steps[self._begin_bytes] and not (
                self._inner_alive and self._inner.allows(token_id)
            )
        return token_id in self._marks.newline_ids and not self._inner.allows(token_id)

    def _push_opening(self, token_id: int) -> None:
        marks = self._marks
        text = self._bytes(token_id)
        if not self._constrained and self._begin_bytes == 0:
            text = text.lstrip(b" \r\n")  # a model that is free may begin with an empty line
            if not text:
                return
        expected = marks.begin[self._begin_bytes :]
        if text.startswith(expected):
            if self._constrained and text != expected:
                raise EngineError(f"token {token_id} was pushed where the grammar does not allow it")
            self._phase, self._inner, self._inner_alive = "thoughts", self._new_inner(), True
            self._tail = text[len(expected) :]
            return
        if self._inner_alive and self._inner.allows(token_id):
            if self._inner.forced[:1] != (token_id,):
                # The marks begin alike (<think>, <tool_call>), and a piece of one came, not the forced token.
                self._inner.leave_run()
            self._inner.push(token_id)
        else:
            self._inner_alive = False
        if expected.startswith(text):
            self._begin_bytes += len(text)
        elif self._inner_alive:
            self._phase = "answer"
        else:
            raise EngineError(f"token {token_id} was pushed where the grammar does not allow it")

    def _push_thought(self, token_id: int) -> None:
        text = self._bytes(token_id)
        if not self._constrained and token_id in self._marks.vocabulary.stop_ids:
            return
        before, found, rest = (self._tail + text).partition(self._marks.end)
        if not found:
            self.thought_tokens += 1
            keep = len(self._marks.end) - 1
            self._tail = before[-keep:] if keep else b""
            self._tail_lengths = (*self._tail_lengths, len(text))[-len(self._marks.end) :]
            return
        if len(before) > len(self._tail):
            self.thought_tokens += 1  # its beginning is a thought
        else:
            self.thought_tokens -= _within(len(self._tail) - len(before), self._tail_lengths)
        self._tail = b""
        self._forced = ()
        self._phase = "gap" if self._constrained else "answer"
        if rest.strip(b"\n") and self._constrained:
            raise EngineError(f"token {token_id} was pushed where it is refused")

    def _push_gap(self, token_id: int) -> None:
        if self._belongs_to_marks(token_id):
            self._gap_left -= 1
            if not self._gap_left:
                self._phase = "answer"
            return
        self._phase = "answer"
        self._inner.push(token_id)

    def _close_in_time(self) -> None:
        """Once the budget is spent: write what closes thoughts, or the rest of an end mark that has begun."""
        budget = self._marks.budget_tokens
        if self._phase != "thoughts" or self._forced or budget is None or self.thought_tokens < budget:
            return
        end = self._marks.end
        for length in range(min(len(end) - 1, len(self._tail)), 0, -1):
            if self._tail.endswith(end[:length]):
                rest = end[length:].decode("utf-8", "replace")
                self._forced = tuple(self._marks.vocabulary.continue_text(rest))
                return
        self._forced = self._marks.closing_ids

    def _bytes(self, token_id: int) -> bytes:
        return self._marks.vocabulary.tokenizer.token_bytes(token_id)


def _within(last_bytes: int, lengths: tuple[int, ...]) -> int:
    """How many tokens of these lengths, counted from the last, lie in the last bytes altogether."""
    count = 0
    for length in reversed(lengths):
        last_bytes -= length
        if last_bytes < 0:
            break
        count += 1
    return count
