"""Tools, calls and results as plain text, for templates that know nothing of them.

Such templates often insist on turns that alternate, and some take no system message; what is rendered here
satisfies both.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from stoker.api.chat import Message, Tool, ToolCall
from stoker.tools.parser import CallMarks

_TAKES_SYSTEM = re.compile(r"""['"]system['"]""")
_REFUSES_SYSTEM = re.compile(r"system role (?:is )?not supported", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Plain:
    """How one format is explained and shown."""

    marks: CallMarks
    instructions: str  # the tools follow, one a line
    result: str = "<tool_response>\n{}\n</tool_response>"  # with the result in place of {}

    def render(
        self, messages: Sequence[Message], tools: Sequence[Tool], template: str
    ) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
        """Messages of system, user and assistant only, and no tools."""
        if not tools and not any(m.tool_calls or m.role == "tool" for m in messages):
            return tuple(messages), ()
        turns = [self._turn(message) for message in messages]
        if tools:
            turns = _with_system(turns, self._explained(tools))
        if not _TAKES_SYSTEM.search(template) or _REFUSES_SYSTEM.search(template):
            turns = _without_system(turns)
        return tuple(_alternating(turns)), ()

    def _explained(self, tools: Sequence[Tool]) -> str:
        lines = [
            json.dumps(
                {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": json.loads(tool.parameters),
                },
                ensure_ascii=False,
            )
            for tool in tools
        ]
        return "\n".join([self.instructions, *lines])

    def _turn(self, message: Message) -> Message:
        if message.role == "tool":
            return Message("user", self.result.replace("{}", message.content, 1))
        if not message.tool_calls:
            return message
        calls = self._calls(message.tool_calls)
        text = f"{message.content}\n{calls}" if message.content else calls
        return Message(message.role, text, reasoning=message.reasoning)

    def _calls(self, calls: Sequence[ToolCall]) -> str:
        marks = self.marks
        texts = [marks.heads[0] + call.name + marks.tail + call.arguments + marks.end for call in calls]
        return marks.before + marks.between.join(texts) + marks.after


def _with_system(turns: list[Message], text: str) -> list[Message]:
    if turns and turns[0].role == "system":
        first = turns[0]
        return [replace(first, content=f"{first.content}\n\n{text}"), *turns[1:]]
    return [Message("system", text), *turns]


def _without_system(turns: list[Message]) -> list[Message]:
    return [replace(turn, role="user") if turn.role == "system" else turn for turn in turns]


def _alternating(turns: list[Message]) -> Iterator[Message]:
    """Turns of one role after each other become one."""
    last: Message | None = None
    for turn in turns:
        if last is not None and last.role == turn.role and last.name == turn.name:
            last = replace(last, content=f"{last.content}\n\n{turn.content}")
            continue
        if last is not None:
            yield last
        last = turn
    if last is not None:
        yield last
