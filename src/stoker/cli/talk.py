"""Questions and streamed answers on one model: what `stoker run` does, without a terminal in it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from stoker.api.chat import Message
from stoker.api.errors import EngineError
from stoker.cli.timing import AnswerTiming

if TYPE_CHECKING:
    from stoker.llm import Piece

INTERRUPTED = "interrupted"  # beside the engine's own finish reasons
FAILED = "error"  # the engine's own: the model could not go on

# From a prompt (a text, or the messages of a chat) to its pieces; closing the iterator aborts the request.
Generate = Callable[[str | tuple[Message, ...]], "Iterator[Piece]"]


@dataclass
class Answer:
    """One answer on its way. Iterate it for pieces of text; afterwards the other fields are complete.

    Ctrl-C while it is iterated stops it: the request is aborted, and `finish_reason` is "interrupted".
    """

    stream: Iterator[Piece]
    on_end: Callable[[Answer], None] = lambda answer: None
    pieces: list[str] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)
    timing: AnswerTiming = field(default_factory=AnswerTiming)
    finish_reason: str | None = None  # none until it has ended
    stop_reason: str | int | None = None  # what went wrong, if the finish reason is "error"
    seed: int | None = None

    @property
    def text(self) -> str:
        """What has arrived so far."""
        return "".join(self.pieces)

    def __iter__(self) -> Generator[str, None, None]:
        try:
            for piece in self.stream:
                self.timing.count(len(piece.token_ids))
                self.token_ids += piece.token_ids
                if piece.text:
                    self.pieces.append(piece.text)
                    yield piece.text
                if piece.finish_reason is not None:
                    self.finish_reason = piece.finish_reason
                    self.stop_reason = piece.stop_reason
                    self.seed = piece.seed
                    self.timing.prompt_tokens = piece.prompt_tokens or 0
        except KeyboardInterrupt:
            self.finish_reason = INTERRUPTED
        finally:
            if isinstance(self.stream, Generator):
                self.stream.close()
            self.on_end(self)

    def print_text(self) -> None:
        """Write the pieces to stdout as they come, and end the line; a failure without text writes none."""
        pieces = iter(self)
        try:
            for piece in pieces:
                sys.stdout.write(piece)
                sys.stdout.flush()
        except KeyboardInterrupt:  # it struck here, between two pieces, not inside the iteration
            self.finish_reason = INTERRUPTED
        finally:
            pieces.close()
        if not self.text and self.finish_reason == FAILED:
            return
        if not self.text.endswith("\n"):
            sys.stdout.write("\n")
            sys.stdout.flush()

    def check(self) -> None:
        """Raise EngineError, with the reason, if the model failed on the way to this end."""
        if self.finish_reason == FAILED:
            raise EngineError(str(self.stop_reason))

    def as_dict(self) -> dict[str, Any]:
        """For --json, after the answer is complete."""
        return {
            "text": self.text,
            "token_ids": self.token_ids,
            "finish_reason": self.finish_reason,
            "stop_reason": self.stop_reason,
            "seed": self.seed,
            **self.timing.as_dict(),
        }


class Talker:
    """One model and the conversation so far; the only writer of that.

    With a chat template a question goes behind all earlier turns. Without one (base models, or `raw`) each
    question is a text to go on with, and nothing is remembered.
    """

    def __init__(
        self,
        name: str,
        generate: Generate,
        *,
        is_chat: bool,
        system: str | None = None,
        facts: Sequence[str] = (),
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
        """Ask; the turn joins the conversation when the answer has ended, whole or interrupted; not failed.

        Raises RequestError (from here or from the answer's iteration) for what cannot be answered; the
        conversation is then as before.
        """
        timing = AnswerTiming()  # before the template and the tokenizer, which are part of the wait
        if not self.is_chat:
            return Answer(self._generate(question), timing=timing)
        asked = Message("user", question)

        def remember(answer: Answer) -> None:
            if answer.finish_reason not in (None, FAILED):
                self._turns += [asked, Message("assistant", answer.text)]

        return Answer(self._generate((*self._turns, asked)), on_end=remember, timing=timing)
