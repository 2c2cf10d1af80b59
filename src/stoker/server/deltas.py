"""Parts of an answer as the deltas of OpenAI's chat chunks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from stoker.tools import AnswerParser
from stoker.tools.parts import CallStart, Part, ReasoningPart, TextPart

Encode = Callable[[Any], bytes]


def delta_bytes(part: Part, encode: Encode) -> bytes:
    """`"delta":{...}` of one part."""
    return b'"delta":' + encode(_delta(part))


def _delta(part: Part) -> dict[str, Any]:
    if isinstance(part, TextPart):
        return {"content": part.text}
    if isinstance(part, ReasoningPart):
        return {"reasoning_content": part.text}
    if isinstance(part, CallStart):
        function = {"name": part.name, "arguments": ""}
        call = {"index": part.index, "id": part.call_id, "type": "function", "function": function}
        return {"tool_calls": [call]}
    return {"tool_calls": [{"index": part.index, "function": {"arguments": part.text}}]}


def finish_reason(reason: str, parser: AnswerParser) -> str:
    """OpenAI's reason why a choice ended, whose text `parser` has read: one that called tools ended for
    them, unless its last call was cut off."""
    return "tool_calls" if parser.calls and reason == "stop" and not parser.in_call else reason
