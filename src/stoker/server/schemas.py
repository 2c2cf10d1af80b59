"""The fields of requests and answers, as pydantic models: what is accepted, and what is documented.

Only bodies of requests are validated with these, once each. Answers are written by hand (`chunks`, `chat`,
`completions`) and described by the response models, which tests compare with what is sent.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from stoker.api.request import MAX_CHOICES, MAX_STOP_STRINGS, MAX_TOP_LOGPROBS, SEEDS
from stoker.server.first_mistake import stopping_at_first, with_one_unknown

_INT32 = (1 << 31) - 1
MAX_PROMPTS = 128  # of one completions request; each is a request of its own to the engine
DEFAULT_COMPLETION_TOKENS = 16  # OpenAI's

TokenId = Annotated[int, Field(ge=0, le=_INT32)]
Bias = Annotated[float, Field(ge=-100, le=100)]
TokenIdText = Annotated[str, Field(pattern=r"^[0-9]{1,10}$")]
StopText = Annotated[str, Field(min_length=1, max_length=4096)]
KeepAlive = Annotated[str, Field(pattern=r"^-?[0-9]{1,9}(\.[0-9]{1,9})?(ms|s|m|h)?$")]


class Fields(BaseModel):
    """A request body. Nothing is converted, and what is not known is refused."""

    model_config = ConfigDict(extra="forbid", strict=True)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: Any) -> Any:
        """Called by pydantic when the class is made."""
        return stopping_at_first(handler(source))

    @model_validator(mode="before")
    @classmethod
    def _one_unknown(cls, given: Any) -> Any:
        return with_one_unknown(given, cls.model_fields)


class StreamOptions(Fields):
    """What a stream tells besides text."""

    include_usage: bool | None = Field(None, description="A last chunk with `usage` and no choices.")
    continuous_usage_stats: bool | None = Field(None, description="`usage` so far in every chunk.")


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


class TextPart(Fields):
    """A part of a message."""

    type: Literal["text"]
    text: str


class ChatMessage(Fields):
    """One turn."""

    role: Literal["system", "developer", "user", "assistant"] = Field(description="developer means system.")
    content: str | Annotated[list[TextPart], Field(min_length=1)]


class ChatCompletionRequest(GenerationFields):
    """The body of POST /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1)
    max_completion_tokens: int | None = Field(
        None, ge=1, le=_INT32, description="As max_tokens. Default: what the context holds."
    )
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MAX_TOP_LOGPROBS, description="Only with `logprobs`.")


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
    echo: bool | None = Field(None, description="The prompt before the answer; not with logprobs.")
    best_of: int | None = Field(None, ge=1, le=MAX_CHOICES, description="Only as much as n.")


class TokenizeRequest(Fields):
    """The body of POST /tokenize: a prompt or messages."""

    model: str | None = Field(None, max_length=1024)
    prompt: str | None = None
    messages: list[ChatMessage] | None = Field(None, min_length=1)
    add_generation_prompt: bool | None = Field(None, description="Default true; for messages.")
    return_token_strs: bool | None = None


class DetokenizeRequest(Fields):
    """The body of POST /detokenize."""

    model: str | None = Field(None, max_length=1024)
    tokens: list[TokenId]


# --- answers -----------------------------------------------------------------------------------------


class PromptTokensDetails(BaseModel):
    """Of a prompt's tokens."""

    cached_tokens: int


class Usage(BaseModel):
    """Tokens of all choices; each prompt's count once."""

    prompt_tokens: int
    completion_tokens: int
    total_tokens: int
    prompt_tokens_details: PromptTokensDetails | None = None


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
    token_logprobs: list[float]
    top_logprobs: list[dict[str, float]] | None
    text_offset: list[int]


class AnswerMessage(BaseModel):
    """What the model said."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChoiceEnd(BaseModel):
    """How a choice ended."""

    index: int
    finish_reason: Literal["stop", "length"]
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


class ChatCompletion(BaseModel):
    """The answer of POST /v1/chat/completions without `stream`."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[ChatChoice]
    usage: Usage
    prompt_token_ids: list[int] | None = None


class Completion(BaseModel):
    """The answer of POST /v1/completions without `stream`."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str | None
    choices: list[CompletionChoice]
    usage: Usage


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
