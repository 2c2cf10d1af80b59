"""The fields of /v1/responses as pydantic models: what is accepted, refused and why, and answered.

Items, tools and formats come in many kinds of which few are known here. They are checked one by one by
`items` and `asked`, which know where in a body they stand; the models of each kind are here.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from stoker.api.request import MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, SEEDS
from stoker.server.query import QueryFields
from stoker.server.schemas import Fields, KeepAlive, MetadataKey, MetadataValue, StopText

_INT32 = (1 << 31) - 1
MAX_ID_CHARS = 256
MAX_LISTED = 100  # OpenAI's
MAX_METADATA_PAIRS = 16  # OpenAI's limits, which clients rely on to know what fits

Identifier = Annotated[str, Field(min_length=1, max_length=MAX_ID_CHARS)]
Metadata = Annotated[
    dict[MetadataKey, MetadataValue],
    Field(max_length=MAX_METADATA_PAIRS),
]
Status = Literal["in_progress", "completed", "incomplete"]

# Fields of OpenAI's that this server has not: why, and which values ask for nothing that is not done anyway.
REFUSED: Mapping[str, tuple[str, tuple[Any, ...]]] = MappingProxyType(
    {
        "access_programs": ("there are no access programs here", ({},)),
        "background_options": (
            'background responses run as soon as they can; allowed: {"completion_window": "soonest"}',
            ({}, {"completion_window": "soonest"}),
        ),
        "context_management": ("conversations are not compacted", ([],)),
        "conversation": ("conversations are not stored apart; allowed: previous_response_id", ()),
        "image": ("only text goes in and comes out", ({},)),
        "max_tool_calls": ("it limits built-in tools, which this server has not", ()),
        "moderation": ("nothing is moderated here", ()),
        "personality": ("no model here takes it", ()),
        "prompt": ("prompts are not stored here; allowed: instructions and input", ()),
        "prompt_cache_options": ("every prefix is cached, for as long as memory holds it", ({},)),
        "prompt_cache_retention": ("every prefix is cached, for as long as memory holds it", ()),
    }
)

# Kinds of tools and items that need something this server does not run.
REFUSED_TOOLS: Mapping[str, str] = MappingProxyType(
    {
        "web_search": "this server searches nothing",
        "web_search_preview": "this server searches nothing",
        "file_search": "this server searches nothing",
        "computer": "this server uses no computer",
        "computer_use_preview": "this server uses no computer",
        "code_interpreter": "this server runs no code",
        "programmatic_tool_calling": "this server runs no code",
        "mcp": "this server calls no other servers",
        "image_generation": "only text goes in and comes out",
        "local_shell": "this server runs no commands",
        "shell": "this server runs no commands",
        "apply_patch": "this server changes no files",
        "custom": "calls have arguments in JSON",
        "namespace": "tools are one flat list",
        "tool_search": "tools are one flat list",
    }
)


class InputMessage(Fields):
    """A turn of the conversation."""

    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: str | list[dict[str, Any]]
    id: Identifier | None = None
    status: Status | None = None
    phase: Literal["commentary", "final_answer"] | None = Field(None, description="Not shown to the model.")


class FunctionCall(Fields):
    """A call that the model made."""

    type: Literal["function_call"]
    call_id: Identifier
    name: Identifier
    arguments: str
    id: Identifier | None = None
    status: Status | None = None


class FunctionCallOutput(Fields):
    """What a call gave."""

    type: Literal["function_call_output"]
    call_id: Identifier
    output: str | list[dict[str, Any]]
    id: Identifier | None = None
    name: str | None = Field(None, max_length=MAX_ID_CHARS)
    status: Status | None = None


class ReasoningText(Fields):
    """Thoughts."""

    type: Literal["reasoning_text"]
    text: str


class Reasoning(Fields):
    """The model's thoughts before what it said or called next."""

    type: Literal["reasoning"]
    id: Identifier | None = None
    summary: list[Any] = Field([], max_length=0)
    content: list[ReasoningText] = Field([])
    status: Status | None = None


class ItemReference(Fields):
    """An item of a stored response."""

    type: Literal["item_reference"]
    id: Identifier


class TextContent(Fields):
    """Text in a message, or in what a call gave."""

    type: Literal["input_text", "output_text", "text"]
    text: str
    annotations: list[Any] = Field([], max_length=0)
    logprobs: list[Any] = Field([], description="Not shown to the model.")


class RefusalContent(Fields):
    """What an assistant said instead of an answer."""

    type: Literal["refusal"]
    refusal: str


class FunctionTool(Fields):
    """A function that the model may call."""

    type: Literal["function"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FormatText(Fields):
    """Any text."""

    type: Literal["text"]


class FormatObject(Fields):
    """Any JSON object."""

    type: Literal["json_object"]


class FormatSchema(Fields):
    """JSON of a schema."""

    type: Literal["json_schema"]
    name: Annotated[str, Field(min_length=1, max_length=64)]
    schema_: dict[str, Any] = Field(alias="schema")
    description: str | None = None
    strict: bool | None = None


class TextOptions(Fields):
    """The form of the text."""

    format: dict[str, Any] | None = Field(
        None, description='{"type": "text"}, {"type": "json_object"} or {"type": "json_schema", ...}.'
    )
    verbosity: Literal["medium"] | None = Field(None, description="Models here take no other.")


class ReasoningOptions(Fields):
    """How models that think do it."""

    effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    summary: None = Field(None, description="Thoughts are given as they are, not as summaries.")
    generate_summary: None = Field(None, description="As summary.")
    context: Literal["auto"] | None = None
    mode: Literal["standard"] | None = None


class ResponseStreamOptions(Fields):
    """What a stream tells besides the answer."""

    include_obfuscation: Literal[False] | None = Field(None, description="Streams are not padded.")


class InputFields(Fields):
    """What the model is shown: the same for an answer and for the count of its tokens."""

    model: str | None = Field(None, max_length=1024, description="Default: the first model of the server.")
    input: str | list[dict[str, Any]] | None = Field(
        None,
        description="A text, or items: message, function_call, function_call_output, reasoning, "
        "item_reference.",
    )
    instructions: str | None = Field(None, description="Comes first, as the system; not carried over.")
    previous_response_id: Identifier | None = Field(None, description="Go on after this stored response.")
    tools: list[dict[str, Any]] | None = Field(None, description="Functions; built-in tools are refused.")
    tool_choice: str | dict[str, Any] | None = Field(
        None,
        description='auto, none, required, {"type": "function", "name": ...}, or '
        '{"type": "allowed_tools", "mode": ..., "tools": [...]}.',
    )
    parallel_tool_calls: bool | None = Field(None, description="Default true.")
    text: TextOptions | None = None
    reasoning: ReasoningOptions | None = None
    truncation: Literal["disabled"] | None = Field(None, description="A prompt that is too long is a 400.")
    keep_alive: float | KeepAlive | None = Field(
        None, description="How long the model stays loaded: seconds, or 5m, 1h; negative: for ever."
    )


class InputTokensRequest(InputFields):
    """The body of POST /v1/responses/input_tokens."""


class ResponseRequest(InputFields):
    """The body of POST /v1/responses."""

    stream: bool | None = None
    stream_options: ResponseStreamOptions | None = Field(None, description="Only with `stream`.")
    background: bool | None = Field(None, description="Answer at once, and work on: poll or stream it later.")
    store: bool | None = Field(None, description="Default true.")
    metadata: Metadata | None = None
    include: list[str] | None = Field(None, description="message.output_text.logprobs, or nothing.")
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    max_output_tokens: int | None = Field(
        None, ge=1, le=_INT32, description="Default: what the context holds."
    )
    temperature: float | None = Field(None, ge=0, le=1000, description="Default 1; 0: the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    service_tier: Literal["auto", "default", "flex"] | None = Field(
        None, description="flex: only while the machine has nothing else to do."
    )
    user: str | None = Field(None, max_length=1024, description="As safety_identifier.")
    safety_identifier: str | None = Field(
        None, max_length=1024, description="With the API key: who shares the machine fairly with others."
    )
    prompt_cache_key: str | None = Field(
        None, max_length=1024, description="Given back. Prefixes are shared among all keys anyway."
    )
    # Beyond OpenAI's, as in the other endpoints.
    seed: int | None = Field(None, ge=0, lt=SEEDS)
    top_k: int | None = Field(None, ge=-1, le=_INT32, description="0 or -1: all.")
    min_p: float | None = Field(None, ge=0, le=1)
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=1000)
    thinking_token_budget: int | None = Field(None, ge=0, le=_INT32, description="Then thinking ends.")
    priority: int | None = Field(None, ge=-(1 << 31), le=_INT32, description="Lower goes first.")
    deadline_ms: int | None = Field(
        None, ge=1, le=_INT32, description="Give up with 408 if no token came in this time."
    )
    cache_salt: str | None = Field(
        None, max_length=1024, description="Cached prefixes are shared only among requests of the same salt."
    )


class RetrieveQuery(QueryFields):
    """The query of GET /v1/responses/{id}."""

    stream: bool = False
    starting_after: Annotated[int, Field(ge=0)] | None = Field(
        None, description="Only with stream: begin after the event with this sequence_number."
    )
    include_obfuscation: Literal["false", "False"] | None = Field(None, description="Streams are not padded.")


class ItemsQuery(QueryFields):
    """The query of GET /v1/responses/{id}/input_items."""

    after: Identifier | None = None
    limit: int = Field(20, ge=1, le=MAX_LISTED)
    order: Literal["asc", "desc"] = Field("desc", description="desc: the last item first.")


# --- answers -----------------------------------------------------------------------------------------


class ResponseInputDetails(BaseModel):
    """Of the input's tokens."""

    cached_tokens: int
    cache_write_tokens: int


class ResponseOutputDetails(BaseModel):
    """Of the output's tokens."""

    reasoning_tokens: int


class ResponseUsage(BaseModel):
    """Tokens of a response."""

    input_tokens: int
    input_tokens_details: ResponseInputDetails
    output_tokens: int
    output_tokens_details: ResponseOutputDetails
    total_tokens: int


class IncompleteDetails(BaseModel):
    """Why an answer ended early."""

    reason: Literal["max_output_tokens"]


class ResponseError(BaseModel):
    """Why there is no answer."""

    code: str
    message: str


class Response(BaseModel):
    """The answer of POST /v1/responses without `stream`."""

    id: str
    object: Literal["response"]
    created_at: int
    completed_at: int | None
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    error: ResponseError | None
    incomplete_details: IncompleteDetails | None
    background: bool
    instructions: str | None
    max_output_tokens: int | None
    metadata: dict[str, str]
    model: str
    output: list[dict[str, Any]]
    parallel_tool_calls: bool
    previous_response_id: str | None
    prompt_cache_key: str | None
    reasoning: dict[str, str | None]
    safety_identifier: str | None
    seed: int | None
    service_tier: Literal["default", "flex"]
    store: bool
    temperature: float
    text: dict[str, Any]
    tool_choice: str | dict[str, Any]
    tools: list[dict[str, Any]]
    top_logprobs: int
    top_p: float
    truncation: Literal["disabled"]
    usage: ResponseUsage | None
    user: str | None
    warnings: list[str]


class ResponseDeleted(BaseModel):
    """The answer of DELETE /v1/responses/{id}."""

    id: str
    object: Literal["response"]
    deleted: Literal[True]


class ItemList(BaseModel):
    """The answer of GET /v1/responses/{id}/input_items."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class InputTokens(BaseModel):
    """The answer of POST /v1/responses/input_tokens."""

    object: Literal["response.input_tokens"]
    input_tokens: int
