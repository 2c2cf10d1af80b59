"""The fields of Anthropic's Messages API, as pydantic models: what is accepted, and what is documented.

A field of these that asks for something this server has not only takes the value that asks for nothing; what
is not here at all is refused in `stoker.server.messages.fields`, with its reason.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from stoker.api.request import MAX_STOP_STRINGS, SEEDS
from stoker.server.conversation import MAX_TOOLS
from stoker.server.first_mistake import MOST_OBJECTS, stopping_at_first, with_one_unknown
from stoker.server.schemas import KeepAlive, StopText

_INT32 = (1 << 31) - 1
ToolName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]
CallId = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,128}$")]


class Fields(BaseModel):
    """An object of a request. Nothing is converted, null means left out, and what is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Called by pydantic when the class is made."""
        return stopping_at_first(handler(source))

    @model_validator(mode="before")
    @classmethod
    def without_nulls(cls, given: Any) -> Any:
        """Clients send the answers' own objects back, whose empty fields are nulls."""
        if not isinstance(given, dict):
            return given
        if None in given.values():
            given = {name: value for name, value in given.items() if value is not None}
        return given if given.keys() <= cls.model_fields.keys() else with_one_unknown(given, _known(cls))


def _known(model: type[BaseModel]) -> Mapping[str, Any]:
    return {field.alias or name: field for name, field in model.model_fields.items()}


class CacheControl(Fields):
    """Where a cached prefix ends. Prefixes are cached here whether or not one is marked."""

    type: Literal["ephemeral"]
    ttl: Literal["5m", "1h"] | None = Field(None, description="Prefixes stay for as long as there is room.")
    scope: str | None = Field(None, max_length=64, description="One server is one scope.")


class TextBlock(Fields):
    """Text."""

    type: Literal["text"]
    text: str
    cache_control: CacheControl | None = None
    citations: Annotated[list[Any], Field(max_length=0)] | None = Field(
        None, description="Only empty: nothing here cites."
    )


class ThinkingBlock(Fields):
    """What the model thought, sent back. Templates show it to the model where theirs do."""

    type: Literal["thinking"]
    thinking: str
    signature: str | None = Field(None, description="Not checked: thoughts are text like any other.")


class DirectCaller(Fields):
    """The model itself made the call."""

    type: Literal["direct"]


class ToolUseBlock(Fields):
    """A call that the model made."""

    type: Literal["tool_use"]
    id: CallId
    name: ToolName
    input: dict[str, Any]
    cache_control: CacheControl | None = None
    caller: DirectCaller | None = None


def _as_blocks(value: Any) -> Any:
    return [{"type": "text", "text": value}] if isinstance(value, str) else value


TextBlocks = Annotated[
    list[TextBlock], BeforeValidator(_as_blocks, json_schema_input_type=str | list[TextBlock])
]


class ToolResultBlock(Fields):
    """What a call gave."""

    type: Literal["tool_result"]
    tool_use_id: CallId
    content: TextBlocks | None = None
    is_error: bool | None = Field(None, description='True: the model reads "Error: " before the content.')
    cache_control: CacheControl | None = None


Block = Annotated[TextBlock | ThinkingBlock | ToolUseBlock | ToolResultBlock, Field(discriminator="type")]
Blocks = Annotated[
    list[Block],
    Field(min_length=1),
    BeforeValidator(_as_blocks, json_schema_input_type=str | Annotated[list[Block], Field(min_length=1)]),
]


class Turn(Fields):
    """A message. Neighbours of one role are one turn."""

    role: Literal["user", "assistant", "system"]
    content: Blocks


class CustomTool(Fields):
    """A tool that the client runs."""

    type: Literal["custom"] | None = None
    name: ToolName
    description: str | None = None
    input_schema: dict[str, Any] = Field(description='A JSON Schema of type "object".')
    strict: bool | None = Field(
        None, description="Arguments are always held to the schema; true refuses a schema that cannot be."
    )
    input_examples: list[dict[str, Any]] | None = Field(
        None, max_length=64, description="Shown to the model with the description."
    )
    cache_control: CacheControl | None = None
    allowed_callers: list[Literal["direct"]] | None = None
    defer_loading: Literal[False] | None = Field(None, description="There is no tool search.")
    eager_input_streaming: bool | None = Field(None, description="Input is always streamed as it comes.")


class ToolChoiceFields(Fields):
    """Which tools the model may or must call."""

    type: Literal["auto", "any", "tool", "none"]
    name: ToolName | None = Field(None, description='Of type "tool".')
    disable_parallel_tool_use: bool | None = Field(None, description="At most one call.")


class ThinkingFields(Fields):
    """How long a model that thinks may do so."""

    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: int | None = Field(None, ge=0, le=_INT32, description='Of type "enabled"; the most.')
    display: Literal["summarized", "omitted"] | None = Field(
        None, description="omitted: thoughts are left out of the answer; else they are there as they are."
    )


class JsonFormat(Fields):
    """The answer is JSON of this schema."""

    type: Literal["json_schema"]
    json_schema: dict[str, Any] = Field(alias="schema")


class OutputConfig(Fields):
    """What the answer looks like."""

    effort: Literal["low", "medium", "high", "xhigh", "max"] | None = None
    format: JsonFormat | None = None


class Metadata(Fields):
    """About the request."""

    user_id: str | None = Field(
        None, max_length=1024, description="With the API key: who shares the machine fairly with others."
    )


class KeptThinking(Fields):
    """An edit that edits nothing: all thoughts are kept."""

    type: Literal["clear_thinking_20251015"]
    keep: Literal["all"]


class ContextManagement(Fields):
    """Only edits that change nothing: a conversation is never cut here."""

    edits: list[KeptThinking] | None = Field(None, max_length=64)


class ConversationFields(Fields):
    """What is asked about, without how it is answered."""

    model: str | None = Field(None, max_length=1024, description="Default: the first model of the server.")
    messages: list[Turn] = Field(min_length=1, max_length=MOST_OBJECTS)
    system: TextBlocks | None = None
    tools: list[CustomTool] | None = Field(None, max_length=MAX_TOOLS)
    tool_choice: ToolChoiceFields | None = None
    thinking: ThinkingFields | None = Field(None, description="Default: as the model does by itself.")
    output_config: OutputConfig | None = None
    cache_control: CacheControl | None = None
    context_management: ContextManagement | None = None
    speed: Literal["standard"] | None = None
    keep_alive: float | KeepAlive | None = Field(
        None, description="How long the model stays loaded: seconds, or 5m, 1h; negative: for ever."
    )


class CountTokensRequest(ConversationFields):
    """The body of POST /v1/messages/count_tokens."""


class MessagesRequest(ConversationFields):
    """The body of POST /v1/messages."""

    max_tokens: int = Field(ge=0, le=_INT32, description="0: compute and cache the prompt, answer nothing.")
    stop_sequences: list[StopText] | None = Field(None, max_length=MAX_STOP_STRINGS)
    temperature: float | None = Field(None, ge=0, le=1000, description="Default 1; 0: the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_INT32, description="0 or -1: all.")
    metadata: Metadata | None = None
    service_tier: Literal["auto", "standard_only"] | None = None
    stream: bool | None = None
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Replays an answer, which tells its seed.")
    priority: int | None = Field(None, ge=-(1 << 31), le=_INT32, description="Lower goes first.")
    deadline_ms: int | None = Field(
        None, ge=1, le=_INT32, description="Give up with 504 if no token came in this time."
    )
    cache_salt: str | None = Field(
        None, max_length=1024, description="Cached prefixes are shared only among requests of the same salt."
    )


# --- answers -----------------------------------------------------------------------------------------


class AnswerBlock(BaseModel):
    """A piece of the answer: text, thinking, or a call of a tool."""

    type: Literal["text", "thinking", "tool_use"]
    text: str | None = None
    citations: None = None
    thinking: str | None = None
    signature: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    caller: dict[str, str] | None = None


class OutputTokensDetails(BaseModel):
    """Of the answer's tokens."""

    thinking_tokens: int


class MessageUsage(BaseModel):
    """Tokens. The prompt's are input_tokens and cache_read_input_tokens together."""

    input_tokens: int
    cache_creation_input_tokens: Literal[0]
    cache_read_input_tokens: int
    output_tokens: int
    output_tokens_details: OutputTokensDetails
    service_tier: Literal["standard"]


StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use", "model_context_window_exceeded"]


class MessageAnswer(BaseModel):
    """The answer of POST /v1/messages without `stream`."""

    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason
    stop_sequence: str | None
    usage: MessageUsage
    seed: int
    warnings: list[str] | None = None


class TokenCount(BaseModel):
    """The answer of POST /v1/messages/count_tokens."""

    input_tokens: int


class MessagesErrorDetails(BaseModel):
    """Anthropic's kinds."""

    type: str
    message: str
    details: dict[str, Any] | None = None  # only where a client can go on by them


class MessagesError(BaseModel):
    """Every answer under /v1/messages that is not a 2xx."""

    type: Literal["error"]
    error: MessagesErrorDetails
    request_id: str
