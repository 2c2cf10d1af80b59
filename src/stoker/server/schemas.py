"""The fields of requests and answers, as pydantic models: what is accepted, and what is documented.

Only bodies of requests are validated with these, once each. Answers are written by hand (`chunks`, `chat`,
`completions`) and described by the response models, which tests compare with what is sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from stoker.api.request import MAX_CHOICES, MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, SEEDS
from stoker.server.chat_schemas import ChatMessage, FunctionTool, Prediction, ToolChoiceField
from stoker.server.chat_schemas import Fields as Fields
from stoker.server.output_schemas import ResponseFormat, StructuredOutputs
from stoker.server.tool_checks import MAX_TOOLS

_INT32 = (1 << 31) - 1
MAX_PROMPTS = 128  # of one completions request; each is a request of its own to the engine
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's

TokenId = Annotated[int, Field(ge=0, le=_INT32)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
StopText = Annotated[str, Field(min_length=1, max_length=4096)]
# PostgreSQL keeps no NUL in a text.
MetadataKey = Annotated[str, Field(max_length=64, pattern=r"^[^\x00]*$")]
MetadataValue = Annotated[str, Field(max_length=512, pattern=r"^[^\x00]*$")]
KeepAlive = Annotated[str, Field(pattern=r"^-?[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)?$")]


class StreamOptions(Fields):
    """What a stream tells besides text."""

    include_usage: bool | None = Field(None, description="A last chunk with `usage` and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="`usage` so far in every chunk.")
    include_obfuscation: Literal[False] | None = Field(None, description="Chunks are not padded.")


class GenerationFields(Fields):
    """What chat and text completions have in common."""

    model: str | None = Field(None, max_length=1024, description="Default: the first model of the server.")
    max_tokens: int | None = Field(None, ge=1, le=_INT32)
    min_tokens: int | None = Field(None, ge=0, le=_INT32, description="No end before this many tokens.")
    temperature: float | None = Field(None, ge=0, le=1000, description="Default 1; 0: the likeliest token.")
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=_INT32, description="0 or -1: all.")
    min_p: float | None = Field(None, ge=0, le=1)
    typical_p: float | None = Field(None, gt=0, le=1)
    n: int | None = Field(None, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(None, ge=0, lt=SEEDS, description="Choice i is what seed + i gives alone.")
    stop: StopText | Annotated[list[StopText], Field(max_length=MAX_STOP_STRINGS)] | None = None
    stop_token_ids: list[TokenId] | None = Field(None, max_length=1024)
    include_stop_str_in_output: bool | None = None
    ignore_eos: bool | None = None
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    repetition_penalty: float | None = Field(None, gt=0, le=1000)
    logit_bias: dict[TokenIdText, Bias] | None = Field(None, description="Token id -> added to its logit.")
    stream: bool | None = None
    stream_options: StreamOptions | None = Field(None, description="Only with `stream`.")
    return_token_ids: bool | None = Field(None, description="`token_ids` and `prompt_token_ids` as well.")
    priority: int | None = Field(None, ge=-(1 << 31), le=_INT32, description="Lower goes first.")
    deadline_ms: int | None = Field(
        None, ge=1, le=_INT32, description="Give up with 408 if no token came in this time."
    )
    cache_salt: str | None = Field(
        None, max_length=1024, description="Cached prefixes are shared only among requests of the same salt."
    )
    user: str | None = Field(
        None, max_length=1024, description="With the API key: who shares the machine fairly with others."
    )
    keep_alive: float | KeepAlive | None = Field(
        None, description="How long the model stays loaded: seconds, or 5m, 1h; negative: for ever."
    )
    response_format: ResponseFormat | None = None
    structured_outputs: StructuredOutputs | None = Field(None, description="Or response_format.")
    guided_json: dict[str, Any] | str | None = Field(None, description="As structured_outputs.json.")
    guided_regex: str | None = Field(None, min_length=1, description="As structured_outputs.regex.")
    guided_choice: Annotated[list[str], Field(min_length=1)] | None = Field(
        None, description="As structured_outputs.choice."
    )
    guided_grammar: str | None = Field(None, min_length=1, description="As structured_outputs.grammar.")
    prompt_logprobs: int | None = Field(
        None,
        ge=0,
        le=MAX_TOP_LOGPROBS,
        description="Log-probabilities of the prompt's tokens, and of so many of the likeliest.",
    )
    skip_special_tokens: bool | None = Field(
        None, description="Default true: control tokens are no part of the text."
    )
    service_tier: Literal["auto", "default", "flex"] | None = Field(
        None, description="flex: only what no other request needs of the machine."
    )
    safety_identifier: str | None = Field(None, max_length=1024, description="As user.")


class ChatCompletionRequest(GenerationFields):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_INT32, description="As max_tokens. Default: what the context holds."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Only with `logprobs`.")
    tools: list[FunctionTool] | None = Field(None, description=f"At most {MAX_TOOLS}.")
    tool_choice: ToolChoiceField | None = Field(None, description="Default auto. none: tools are not shown.")
    parallel_tool_calls: bool | None = Field(None, description="Default true; false: one call at most.")
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = Field(
        None, description="How long a model that thinks aloud may do so."
    )
    thinking_token_budget: int | None = Field(
        None, ge=0, le=_INT32, description="Tokens of thoughts after which they are brought to an end."
    )
    chat_template_kwargs: dict[str, Any] | None = Field(
        None, description="Variables of the model's template, like enable_thinking."
    )
    add_generation_prompt: bool | None = Field(
        None, description="Default true: the prompt ends where an assistant's turn begins."
    )
    continue_final_message: bool | None = Field(
        None, description="The answer goes on with the last message, which is left open."
    )
    prompt_cache_key: str | None = Field(
        None, max_length=1024, description="Not needed: every prompt is found by its tokens."
    )
    prediction: Prediction | None = Field(
        None, description="What the answer may be like: it comes sooner where it is, and is the same anyway."
    )
    store: bool | None = Field(None, description="Keep the answer, to be had from this path by its id.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(
        None, max_length=16, description="Kept with a stored answer."
    )


class CompletionRequest(GenerationFields):
    """The body of POST /v1/completions."""

    prompt: (
        str
        | Annotated[list[str], Field(min_length=1, max_length=MAX_PROMPTS)]
        | Annotated[list[TokenId], Field(min_length=1)]
        | Annotated[
            list[Annotated[list[TokenId], Field(min_length=1)]], Field(min_length=1, max_length=MAX_PROMPTS)
        ]
    )
    max_tokens: int | None = Field(
        None, ge=1, le=_INT32, description=f"Default {DEFAULT_COMPLETION_TOKENS}, as OpenAI has it."
    )
    logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS)
    echo: bool | None = Field(
        None, description="The prompt before the answer; with logprobs also its tokens' log-probabilities."
    )
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Only as much as n.")


class TokenizeRequest(Fields):
    """The body of POST /tokenize: a prompt or messages."""

    model: str | None = Field(None, max_length=1024)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_generation_prompt: bool | None = Field(None, description="Default true; for messages.")
    tools: list[FunctionTool] | None = Field(None, description="For messages.")
    chat_template_kwargs: dict[str, Any] | None = Field(None, description="For messages.")
    return_token_strs: bool | None = None


class DetokenizeRequest(Fields):
    """The body of POST /detokenize."""

    model: str | None = Field(None, max_length=1024)
    tokens: list[TokenId]


# --- answers -----------------------------------------------------------------------------------------


class PromptTokensDetails(BaseModel):
    """Of a prompt's tokens."""

    cached_tokens: int


class CompletionTokensDetails(BaseModel):
    """Of the answers' tokens."""

    reasoning_tokens: int
    accepted_prediction_tokens: int = Field(description="Drafted tokens that became part of the answer.")
    rejected_prediction_tokens: int = Field(description="Others: work, and no part of `completion_tokens`.")


class Usage(BaseModel):
    """Tokens of all choices; each prompt's count once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails
    completion_tokens_details: CompletionTokensDetails


class TopLogprob(BaseModel):
    """One of the likeliest tokens at a position."""

    token: str
    logprob: float
    bytes: list[int] | None


class TokenLogprobs(TopLogprob):
    """A token of the answer."""

    top_logprobs: list[TopLogprob]


class ChatLogprobs(BaseModel):
    """Log-probabilities of a chat's answer."""

    content: list[TokenLogprobs]
    refusal: None


class CompletionLogprobs(BaseModel):
    """Log-probabilities of a text's continuation."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class PromptLogprob(BaseModel):
    """Of a token in its place of the prompt."""

    logprob: float
    rank: int | None
    decoded_token: str


PromptLogprobs = list[dict[str, PromptLogprob] | None]


class FunctionCall(BaseModel):
    """What is called."""

    name: str
    arguments: str


class MessageToolCall(BaseModel):
    """A call."""

    id: str
    type: Literal["function"]
    function: FunctionCall


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str | None
    refusal: None
    reasoning_content: str | None = None
    tool_calls: list[MessageToolCall] | None = None


class ChoiceEnd(BaseModel):
    """How a choice ended."""

    index: int
    finish_reason: Literal["stop", "length", "tool_calls"]
    stop_reason: str | int | None
    seed: int
    token_ids: list[int] | None = None


class ChatChoice(ChoiceEnd):
    """One answer of a chat."""

    message: AnswerMessage
    logprobs: ChatLogprobs | None


class CompletionChoice(ChoiceEnd):
    """One continuation."""

    text: str
    logprobs: CompletionLogprobs | None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None


class ChatCompletion(BaseModel):
    """The answer of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    service_tier: Literal["default", "flex"] | None = None
    prompt_token_ids: list[int] | None = None
    prompt_logprobs: PromptLogprobs | None = None
    warnings: list[str] | None = Field(None, description="What of a constraint is enforced in another way.")


class Completion(BaseModel):
    """The answer of POST /v1/completions without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage
    service_tier: Literal["default", "flex"] | None = None
    warnings: list[str] | None = Field(None, description="What of a constraint is enforced in another way.")


class Model(BaseModel):
    """A model on offer."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str
    root: str
    max_model_len: int | None
    loaded: bool
    digest: str | None


class ModelList(BaseModel):
    """The answer of GET /v1/models."""

    object: Literal["list"]
    data: list[Model]


class Tokens(BaseModel):
    """The answer of POST /tokenize."""

    count: int
    max_model_len: int | None
    tokens: list[int]
    token_strs: list[str] | None


class Text(BaseModel):
    """The answer of POST /detokenize."""

    prompt: str


class ModelHealth(BaseModel):
    """Of one loaded model."""

    name: str
    ready: bool


class Health(BaseModel):
    """The answer of GET /health."""

    status: Literal["ok", "unavailable"]
    models: list[ModelHealth]


class Version(BaseModel):
    """The answer of GET /version."""

    version: str


class ErrorDetails(BaseModel):
    """OpenAI's shape."""

    message: str
    type: str
    param: str | None
    code: str | None


class ErrorAnswer(BaseModel):
    """Every answer that is not a 2xx."""

    error: ErrorDetails


class Stats(BaseModel):
    """The answer of GET /stats; see the guide."""

    time_s: float
    models: list[dict[str, Any]]
