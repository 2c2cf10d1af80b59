"""Questions and streamed answers on one model: what `stoker run` does, without a terminal in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from stoker.api.events import DoneEvent, Event, TokensEvent
from stoker.api.request import Message, Prompt
from stoker.cli.timing import AnswerTiming

# From a prompt to its events; closing the iterator aborts the request.
Generate = Callable[[Prompt], Iterator[Event]]


@dataclass
class Answer:
    """One answer on its way. Iterate it for pieces of text; afterwards the other fields are complete.

    Ctrl-C while it is iterated stops it: the request is aborted, and `finish_reason` is "interrupted".
    """

    events: Iterator[Event]
    on_end: Callable[[Answer], None] = lambda answer: None
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    timing: AnswerTiming = field(default_factory=AnswerTiming)
    finish_reason: Literal["stop", "length", "abort", "interrupted"] | None = None
    seed: int | None = None

    @property
    def text(self) -> str:
        """What has arrived so far."""
        return "".join(self.pieces)

    def __iter__(self) -> Generator[str, None, None]:
        try:
            for event in self.events:
                if isinstance(event, TokensEvent):
                    self.timing.count(len(event.token_ids))
                    self.token_ids += event.token_ids
                    if event.text:
                        self.pieces.append(event.text)
                        yield event.text
                elif isinstance(event, DoneEvent):
                    self.finish_reason = event.finish_reason
                    self.seed = event.seed
                    self.timing.prompt_tokens = event.usage.prompt_tokens
        except KeyboardInterrupt:
            self.finish_reason = "interrupted"
        finally:
            close = getattr(self.events, "close", None)
            if close is not None:
                close()
            self.on_end(self)

    def print_text(self) -> None:
        """Write the pieces to stdout as they come, and end the line."""
        pieces = iter(self)
        try:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # it struck here, between two pieces, not inside the iteration
            self.finish_reason = "interrupted"
        finally:
            pieces.close()
        if not self.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()

    def as_dict(self) -> dict[str, Any]:
        """For --json, after the answer is complete."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "seed": self.seed,
            **self.timing.as_dict(),
        }


class Talker:
    """One model and the conversation so far; the only writer of that.

    With a chat template a question goes behind all earlier turns. Without one (base models, or `raw`) each question
    is a text to go on with, and nothing is remembered.
    """

    def __init__(
        self, name: str, generate: Generate, *, is_chat: bool, system: str | None = None, facts: Sequence[str] = ()
    ) -> None:
        self.name = name
        self.is_chat = is_chat
        self._generate = generate
        self._facts = tuple(facts)
        self._opening = (Message("system", system),) if system is not None else ()
        self._turns: list[Message] = list(self._opening)

    @property
    def turns(self) -> tuple[Message, ...]:
        """The conversation, system message first."""
        return tuple(self._turns)

    def description(self) -> str:
        """What was loaded, in one line."""
        return ", ".join([self.name, *self._facts])

    def clear(self) -> None:
        """Forget everything but the system message."""
        self._turns = list(self._opening)

    def answer(self, question: str) -> Answer:
        """Ask; the turn joins the conversation when the answer has ended, whole or interrupted.

        Raises RequestError (from here or from the answer's iteration) for what cannot be answered; the
        conversation is then as before.
        """
        if not self.is_chat:
            return Answer(self._generate(question))
        asked = Message("user", question)

        def remember(answer: Answer) -> None:
            if answer.finish_reason is not None:
                self._turns += [asked, Message("assistant", answer.text)]

        return Answer(self._generate((*self._turns, asked)), on_end=remember)
