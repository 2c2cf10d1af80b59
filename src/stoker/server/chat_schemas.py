"""The fields of messages, tools and calls, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stoker.server.first_mistake import stopping_at_first, with_one_unknown

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9_.-]{1,128}$")]


class Fields(BaseModel):
    """A request body, or a part of one. Nothing is converted, and what is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Called by pydantic when the class is made."""
        return stopping_at_first(handler(source))

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, given: Any) -> Any:
        if not isinstance(given, dict) or given.keys() <= cls.model_fields.keys():
            return given
        known = {field.alias or name: field for name, field in cls.model_fields.items()}
        return with_one_unknown(given, known)


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


class RefusalPart(Fields):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class CalledFunction(Fields):
    """What a call calls."""

    name: Name
    arguments: str = Field(description="JSON of an object.")


class AssistantToolCall(Fields):
    """A call that the assistant made."""

    id: str = Field(min_length=1, max_length=256)
    type: Literal["function"] | None = None
    function: CalledFunction
    index: int | None = Field(None, description="Of a streamed call; not needed.")


class Prediction(Fields):
    """What the answer may be like."""

    type: Literal["content"]
    content: str | Annotated[list[TextPart], Field(min_length=1)]

    @property
    def text(self) -> str:
        """All of it."""
        return self.content if isinstance(self.content, str) else "".join(part.text for part in self.content)


class ChatMessage(Fields):
    """One turn. What a role needs besides: `content`, except with `tool_calls`; a tool's `tool_call_id`."""

    role: Literal["system", "developer", "user", "assistant", "tool"] = Field(
        description="developer means system."
    )
    content: str | Annotated[list[TextPart | RefusalPart], Field(min_length=1)] | None = None
    name: str | None = Field(None, max_length=256, description="Of who speaks, if the template shows it.")
    tool_calls: list[AssistantToolCall] | None = Field(None, description="Of an assistant.")
    tool_call_id: str | None = Field(
        None, max_length=256, description="Of a tool's result: the call it answers."
    )
    reasoning_content: str | None = Field(
        None, description="An assistant's thoughts; a template may show them to the model."
    )
    refusal: str | None = Field(None, description="As a content of type refusal.")


class FunctionDefinition(Fields):
    """What can be called."""

    name: Name
    description: str | None = None
    parameters: dict[str, Any] | None = Field(None, description="JSON Schema of an object. Default: empty.")
    strict: bool | None = Field(None, description="Arguments fit the schema in any case.")


class FunctionTool(Fields):
    """A tool that the model may call."""

    type: Literal["function"]
    function: FunctionDefinition


class NamedFunction(Fields):
    """A tool's name."""

    name: str


class NamedToolChoice(Fields):
    """This tool must be called, once."""

    type: Literal["function"]
    function: NamedFunction


class AllowedTools(Fields):
    """The model sees all tools, and may call some."""

    mode: Literal["auto", "required"]
    tools: list[NamedToolChoice] = Field(min_length=1)


class AllowedToolsChoice(Fields):
    """Only some tools may be called."""

    type: Literal["allowed_tools"]
    allowed_tools: AllowedTools


ToolChoiceField = Literal["none", "auto", "required"] | NamedToolChoice | AllowedToolsChoice
