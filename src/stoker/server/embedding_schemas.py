"""The fields of POST /v1/embeddings: what is accepted, and what is answered."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, Field

from stoker.server.schemas import Fields, KeepAlive, TokenId

MAX_INPUTS = 2048  # of one call, as OpenAI has it
_INT32 = (1 << 31) - 1

InputText = Annotated[str, Field(min_length=1)]
InputIds = Annotated[list[TokenId], Field(min_length=1)]


class EmbeddingRequest(Fields):
    """The body of POST /v1/embeddings."""

    input: (
        InputText
        | Annotated[list[InputText], Field(min_length=1, max_length=MAX_INPUTS)]
        | InputIds
        | Annotated[list[InputIds], Field(min_length=1, max_length=MAX_INPUTS)]
    )
    model: str | None = Field(None, max_length=1024, description="Default: the first model of the server.")
    encoding_format: Literal["float", "base64"] | None = Field(
        None, description="Default float; base64 is of little-endian 32-bit floats."
    )
    dimensions: int | None = Field(
        None, ge=1, le=_INT32, description="Only the model's width: these models are not trained to be cut."
    )
    pooling: Literal["mean", "last"] | None = Field(
        None, description="Of all tokens' hidden states, or the last one's. Default: the model's, else mean."
    )
    user: str | None = Field(
        None, max_length=1024, description="With the API key: who shares the machine fairly with others."
    )
    priority: int | None = Field(None, ge=-(1 << 31), le=_INT32, description="Lower goes first.")
    cache_salt: str | None = Field(
        None, max_length=1024, description="Cached prefixes are shared only among requests of the same salt."
    )
    service_tier: Literal["auto", "default", "flex"] | None = Field(
        None, description="flex: only what no other request needs of the machine."
    )
    keep_alive: float | KeepAlive | None = Field(
        None, description="How long the model stays loaded: seconds, or 5m, 1h; negative: for ever."
    )


class Embedding(BaseModel):
    """One input's vector, of length 1."""

    object: Literal["embedding"]
    index: int
    embedding: list[float] | str


class EmbeddingUsage(BaseModel):
    """Tokens of all inputs."""

    prompt_tokens: int
    total_tokens: int


class EmbeddingList(BaseModel):
    """The answer of POST /v1/embeddings, in the order of the inputs."""

    object: Literal["list"]
    model: str
    data: list[Embedding]
    usage: EmbeddingUsage
