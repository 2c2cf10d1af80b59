"""Mistral's calls: a JSON array after [TOOL_CALLS]; in newer models each name after a mark of its own."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import replace

from stoker.api.chat import Message, Tool
from stoker.tools.format import CallFormat
from stoker.tools.parser import CallMarks

_ID_CHARS = 9  # the templates raise for ids of another length
_DIGITS = "0123456789abcdefghijklmnopqrstuvwxyz"


def _render(
    messages: Sequence[Message], tools: Sequence[Tool], template: str
) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
    """The template knows tools, calls and results, by ids of a form of its own."""
    return tuple(
        replace(
            message,
            tool_calls=tuple(replace(call, id=short_id(call.id)) for call in message.tool_calls),
            tool_call_id=short_id(message.tool_call_id) if message.tool_call_id else "",
        )
        if message.tool_calls or message.tool_call_id
        else message
        for message in messages
    ), tuple(tools)


def short_id(call_id: str) -> str:
    """An id that the templates take: the same for the same id, and of nine letters and digits."""
    if len(call_id) == _ID_CHARS and call_id.isascii() and call_id.isalnum():
        return call_id
    number = int.from_bytes(hashlib.sha256(call_id.encode("utf-8", "surrogatepass")).digest(), "big")
    chars = []
    for _ in range(_ID_CHARS):
        number, digit = divmod(number, len(_DIGITS))
        chars.append(_DIGITS[digit])
    return "".join(chars)


def _array(name: str, before: str) -> CallFormat:
    marks = CallMarks(
        heads=('{"name": "',),
        triggers=("[TOOL_CALLS]",),
        tail='", "arguments": ',
        end="}",
        before=before,
        between=", ",
        after="]",
    )
    return CallFormat(name, marks, _render, has_control_tokens=True)


MISTRAL = _array("mistral", "[TOOL_CALLS][")
# Models whose tokenizer is SentencePiece's put a space after the mark.
MISTRAL_SPACED = _array("mistral-spaced", "[TOOL_CALLS] [")
MISTRAL_NAMED = CallFormat(
    "mistral-named",
    CallMarks(heads=("[TOOL_CALLS]",), triggers=("[TOOL_CALLS]",), tail="[ARGS]", end=""),
    _render,
    has_control_tokens=True,
)
