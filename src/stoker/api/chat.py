"""Conversations: messages, the tools a model may call, and its calls. Frozen values."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from stoker.api.errors import RequestError


@dataclass(frozen=True, slots=True)
class ToolCall:
    """A call that the model made: `arguments` is the JSON text of an object."""

    id: str
    name: str
    arguments: str


@dataclass(frozen=True, slots=True)
class Tool:
    """A function that the model may call. `parameters` is the JSON text of a JSON Schema."""

    name: str
    description: str = ""
    parameters: str = "{}"
    strict: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat. role: "system", "user", "assistant", "tool", or what the model's template knows."""

    role: str
    content: str
    tool_calls: tuple[ToolCall, ...] = ()  # of an assistant
    tool_call_id: str = ""  # of a tool's result: the call it answers
    name: str = ""  # of the tool, or of who speaks
    reasoning: str = ""  # an assistant's thoughts, apart from what it said

    def __post_init__(self) -> None:
        for name in ("role", "content", "tool_call_id", "name", "reasoning"):
            if not isinstance(getattr(self, name), str):
                raise RequestError(f"message {name} is {getattr(self, name)!r}; allowed: a string")


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation with what its template is given besides the messages."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()  # shown to the model by its template
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)  # further names: enable_thinking
    add_generation_prompt: bool = True  # false: the last message is left open, to be gone on with
