"""Hermes' calls, which Qwen 2.5, Qwen 3 and SmolLM3 write: JSON between <tool_call> marks."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.api.chat import Message, Tool
from stoker.tools.format import CallFormat
from stoker.tools.parser import CallMarks

HERMES_MARKS = CallMarks(
    heads=('<tool_call>\n{"name": "',),
    triggers=("<tool_call>",),
    tail='", "arguments": ',
    end="}\n</tool_call>",
    between="\n",
)


def _render(
    messages: Sequence[Message], tools: Sequence[Tool], template: str
) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
    """The template knows tools, calls and results."""
    return tuple(messages), tuple(tools)


HERMES = CallFormat("hermes", HERMES_MARKS, _render, has_control_tokens=True)
