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

    def turns() -> Iterator[Message]:
        taken: set[int] = set()  # results that stand right after their calls
        for place, message in enumerate(messages):
            if place in taken:
                continue
            if not message.tool_calls:
                yield message
                continue
            if message.content:
                yield replace(message, tool_calls=())
            results = _results_after(messages, place)
            for call in message.tool_calls:
                yield replace(message, content="", tool_calls=(call,))
                answer = results.get(call.id)
                if answer is not None:
                    taken.add(answer)
                    yield messages[answer]

    return tuple(turns()), tuple(tools)


def _results_after(messages: Sequence[Message], place: int) -> dict[str, int]:
    """Where the results of a turn's calls are, by the call's id: before the next turn that calls."""
    found: dict[str, int] = {}
    for number in range(place + 1, len(messages)):
        if messages[number].tool_calls:
            break
        if messages[number].role == "tool":
            found.setdefault(messages[number].tool_call_id, number)
    return found


LLAMA3 = CallFormat(
    "llama3",
    CallMarks(
        heads=(_HEAD, _TAG + _HEAD), triggers=(_HEAD, _TAG), tail='", "parameters": ', end="}", between="; "
    ),
    _render,
    most_calls=1,
    has_control_tokens=True,
)
