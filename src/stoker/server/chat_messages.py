"""From the fields of messages and tools to those of a conversation."""

from __future__ import annotations

import json
from collections.abc import Sequence

from stoker.api.chat import Message, Tool, ToolCall
from stoker.server.chat_schemas import (
    AllowedToolsChoice,
    AssistantToolCall,
    ChatMessage,
    FunctionTool,
    NamedToolChoice,
    TextPart,
    ToolChoiceField,
)
from stoker.server.constraints import schema_text
from stoker.server.conversation import AUTO, ToolChoice
from stoker.server.errors import Refusal, refuse


def messages_of(messages: Sequence[ChatMessage]) -> tuple[Message, ...]:
    """The turns of a chat. Parts of one content are lines of it; a developer is the system.

    Raises `Refusal` for fields that a role has not, or lacks.
    """
    return tuple(_message(number, message) for number, message in enumerate(messages))


def _message(number: int, message: ChatMessage) -> Message:
    role = message.role
    for name, of_role in (
        ("tool_calls", "assistant"),
        ("reasoning_content", "assistant"),
        ("refusal", "assistant"),
        ("tool_call_id", "tool"),
    ):
        if getattr(message, name) is not None and role != of_role:
            raise _wrong(number, name, f"is given, but role is {role}; allowed: role {of_role}")
    content = message.refusal if message.content is None else message.content
    if content is None and not message.tool_calls:
        raise _wrong(number, "content", "is missing", code="missing_parameter")
    if role == "tool" and message.tool_call_id is None:
        raise _wrong(number, "tool_call_id", "is missing: role is tool", code="missing_parameter")
    if isinstance(content, list):
        content = "\n".join(part.text if isinstance(part, TextPart) else part.refusal for part in content)
    calls = tuple(_call(number, place, call) for place, call in enumerate(message.tool_calls or ()))
    return Message(
        "system" if role == "developer" else role,
        content or "",
        tool_calls=calls,
        tool_call_id=message.tool_call_id or "",
        name=message.name or "",
        reasoning=message.reasoning_content or "",
    )


def _call(number: int, place: int, call: AssistantToolCall) -> ToolCall:
    arguments = call.function.arguments or "{}"
    try:
        is_object = isinstance(json.loads(arguments), dict)
    except (ValueError, RecursionError):
        is_object = False
    if not is_object:
        raise _wrong(
            number,
            f"tool_calls[{place}].function.arguments",
            f"is {arguments!r:.80}; allowed: the JSON of an object",
        )
    return ToolCall(call.id, call.function.name, arguments)


def _wrong(number: int, name: str, what: str, *, code: str = "invalid_value") -> Refusal:
    where = f"messages[{number}].{name}"
    return refuse(where, f"{where} {what}", code=code)


def tools_of(tools: Sequence[FunctionTool] | None) -> tuple[Tool, ...]:
    """The tools of a chat."""
    return tuple(
        Tool(
            tool.function.name,
            tool.function.description or "",
            schema_text(f"tools[{number}].function.parameters", tool.function.parameters or {}),
            strict=bool(tool.function.strict),
        )
        for number, tool in enumerate(tools or ())
    )


def tool_choice_of(choice: ToolChoiceField | None) -> ToolChoice:
    """Which of them may or must be called."""
    if choice is None:
        return AUTO
    if isinstance(choice, NamedToolChoice):
        return ToolChoice("named", (choice.function.name,))
    if isinstance(choice, AllowedToolsChoice):
        allowed = choice.allowed_tools
        return ToolChoice(allowed.mode, tuple(dict.fromkeys(tool.function.name for tool in allowed.tools)))
    return ToolChoice(choice)
