"""What can be wrong with the tools of a conversation, its calls and its results."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from stoker.api.chat import Message, Tool
from stoker.server.errors import Refusal, refuse
from stoker.server.field_names import FieldNames
from stoker.tools import arguments_schema

MAX_TOOLS = 128  # OpenAI's; each is a part of the grammar and of the prompt
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,128}")  # needs no escape in JSON; OpenAI allows 64, Anthropic 128
_MOST_SHOWN = 20  # names in a message


def checked_tools(tools: Sequence[Tool], fields: FieldNames) -> tuple[Tool, ...]:
    """Tools whose parameters are the schema that arguments are held to. Raises `Refusal`."""
    if len(tools) > MAX_TOOLS:
        raise refuse(fields.tools, f"{fields.tools} has {len(tools)} entries; allowed: at most {MAX_TOOLS}")
    seen: set[str] = set()
    checked = []
    for number, tool in enumerate(tools):
        where = fields.tool_name.format(number)
        if not _NAME.fullmatch(tool.name):
            raise refuse(
                where,
                f"{where} is {tool.name!r:.80}; allowed: 1 to 128 letters, digits, underscores, dots, dashes",
            )
        if tool.name in seen:
            raise refuse(where, f"{where} is {tool.name!r:.140}, as that of another tool; allowed: a new one")
        seen.add(tool.name)
        try:
            parameters = arguments_schema(tool.parameters)
        except (ValueError, RecursionError) as error:
            where = fields.tool_parameters.format(number)
            raise refuse(where, f"{where}: {error}") from None
        checked.append(replace(tool, parameters=parameters))
    return tuple(checked)


def check_choice(mode: str, names: Sequence[str], tools: Sequence[Tool], fields: FieldNames) -> None:
    """Raise `Refusal` for a choice of tools that are not there."""
    where = fields.tool_choice
    if mode in ("required", "named") and not tools:
        raise refuse(where, f"{where} is {mode}, but there are no tools; allowed: with tools")
    known = [tool.name for tool in tools]
    for name in names:
        if name not in known:
            shown = ", ".join(known[:_MOST_SHOWN]) or "none"
            raise refuse(where, f"{where} names the tool {name!r:.140}, which is not there; known: {shown}")


def check_turns(messages: Sequence[Message], template: str, fields: FieldNames) -> None:
    """Raise `Refusal` for results of calls that were not made, calls of one id in one turn, and names that
    would be shown to nobody."""
    called: dict[str, str] = {}
    for number, message in enumerate(messages):
        # Over turns an id may come again: who sends each request under one id gets the same ones.
        twice = [i for i, times in Counter(call.id for call in message.tool_calls).items() if times > 1]
        if twice:
            raise _wrong(fields.tool_calls, number, f"has two calls of the id {twice[0]!r:.80}")
        called.update((call.id, call.name) for call in message.tool_calls)
        if message.role == "tool" and message.tool_call_id not in called:
            ids = ", ".join(list(called)[:_MOST_SHOWN]) or "none"
            raise _wrong(
                fields.tool_call_id,
                number,
                f"is {message.tool_call_id!r:.80}, which no call before it has; known: {ids}",
            )
        if message.name and message.role != "tool" and not _SHOWS_NAME.search(template):
            raise _wrong(fields.name, number, "is given, but the model's chat template does not show names")


_SHOWS_NAME = re.compile(r"""message(?:\.name\b|\[['"]name['"]\])""")


def _wrong(field: str, number: int, what: str) -> Refusal:
    where = field.format(number)
    return refuse(where, f"{where} {what}")
