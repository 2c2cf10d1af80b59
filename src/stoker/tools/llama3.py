"""Calls of Llama 3.1 and later: a bare JSON object, one in an answer, after <|python_tag|> or not."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from stoker.api.chat import Message, Tool
from stoker.tools.format import CallFormat
from stoker.tools.parser import CallMarks

_HEAD = '{"name": "'
_TAG = "<|python_tag|>"


def _render(
    messages: Sequence[Message], tools: Sequence[Tool], template: str
) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
    """The template raises for several calls in one turn, and drops what was said beside a call: each becomes
    a turn of its own, a call's result after it."""
    results = {m.tool_call_id: m for m in messages if m.role == "tool"}
    paired = {call.id for m in messages if len(m.tool_calls) > 1 for call in m.tool_calls}

    def turns() -> Iterator[Message]:
        for message in messages:
            if message.role == "tool" and message.tool_call_id in paired:
                continue
            if message.tool_calls and message.content:
                yield replace(message, tool_calls=())
            for call in message.tool_calls:
                yield replace(message, content="", tool_calls=(call,))
                if call.id in paired and call.id in results:
                    yield results[call.id]
            if not message.tool_calls:
                yield message

    return tuple(turns()), tuple(tools)


LLAMA3 = CallFormat(
    "llama3",
    CallMarks(
        heads=(_HEAD, _TAG + _HEAD), triggers=(_HEAD, _TAG), tail='", "parameters": ', end="}", between="; "
    ),
    _render,
    most_calls=1,
    has_control_tokens=True,
)
