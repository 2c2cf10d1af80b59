"""An answer's events as parts: thoughts, text, calls, for each choice, in the bunches they come in."""

from __future__ import annotations

from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field

from stoker.api.chat import ToolCall
from stoker.api.errors import EngineError
from stoker.api.events import DoneEvent, Event, TokenLogprob, TokensEvent
from stoker.server.chunks import check_end
from stoker.server.ready import ReadyEvents
from stoker.tools import AnswerParser
from stoker.tools.parts import CallArguments, CallStart, Part, ReasoningPart, TextPart


@dataclass(frozen=True, slots=True)
class LogprobsPart:
    """Log-probabilities of the tokens that the parts before it came from; only if they were asked for."""

    entries: tuple[TokenLogprob, ...]


AnswerPart = Part | LogprobsPart | DoneEvent


async def parts_of(
    events: AsyncIterator[Event], parser: Callable[[str], AnswerParser], *, call_seed: str, choices: int = 1
) -> AsyncGenerator[list[tuple[int, AnswerPart]], None]:
    """Bunches of (choice, part) as they come; a choice's last one is its `DoneEvent`.

    `parser`: `Prepared.parser`; `call_seed`: the request's id, from which call ids are made. Raises
    `EngineError` or `Refusal` for a choice that failed. Close it, whatever happened: that aborts what is not
    finished.
    """
    parsers = [parser(f"{call_seed}/{choice}") for choice in range(choices)]
    ready = ReadyEvents(events)
    open_choices = choices
    try:
        while open_choices:
            bunch = await ready.take()
            if not bunch:
                raise EngineError("the endpoint's events ended before every choice did")
            parts: list[tuple[int, AnswerPart]] = []
            for event in bunch:
                if isinstance(event, TokensEvent):
                    choice = event.choice
                    if event.text:
                        parts += [(choice, part) for part in parsers[choice].push(event.text)]
                    if event.logprobs is not None:
                        parts.append((choice, LogprobsPart(event.logprobs)))
                elif isinstance(event, DoneEvent):
                    check_end(event)
                    choice = event.choice
                    parts += [(choice, part) for part in parsers[choice].finish()]
                    parts.append((choice, event))
                    open_choices -= 1
            if parts:
                yield parts
    finally:
        await ready.close()


@dataclass(slots=True)
class Gathered:
    """The parts of one choice, put together."""

    texts: list[str] = field(default_factory=list)
    thoughts: list[str] = field(default_factory=list)
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    done: DoneEvent | None = None

    def add(self, part: AnswerPart) -> None:
        """Take the next part."""
        if isinstance(part, TextPart):
            self.texts.append(part.text)
        elif isinstance(part, ReasoningPart):
            self.thoughts.append(part.text)
        elif isinstance(part, CallStart):
            self.calls.append(ToolCall(part.call_id, part.name, ""))
        elif isinstance(part, CallArguments):
            call = self.calls[part.index]
            self.calls[part.index] = ToolCall(call.id, call.name, call.arguments + part.text)
        elif isinstance(part, LogprobsPart):
            self.logprobs += part.entries
        else:
            self.done = part

    @property
    def text(self) -> str:
        """What was said."""
        return "".join(self.texts)

    @property
    def reasoning(self) -> str:
        """What was thought."""
        return "".join(self.thoughts)


def gather(parts: Sequence[Part]) -> Gathered:
    """Parts of one choice, put together."""
    gathered = Gathered()
    for part in parts:
        gathered.add(part)
    return gathered
