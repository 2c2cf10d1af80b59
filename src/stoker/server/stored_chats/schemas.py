"""The fields of stored answers: what changes them, and what is answered."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field

from stoker.server.chat_schemas import Fields
from stoker.server.query import QueryFields
from stoker.server.responses.schemas import MAX_LISTED, Identifier, Metadata
from stoker.server.schemas import ChatCompletion


class UpdateCompletionRequest(Fields):
    """The body of POST /v1/chat/completions/{id}."""

    metadata: Metadata | None = None


class ListQuery(QueryFields):
    """The query of GET /v1/chat/completions; besides, `metadata[NAME]=TEXT` for each pair."""

    after: Identifier | None = None
    limit: int = Field(20, ge=1, le=MAX_LISTED)
    order: Literal["asc", "desc"] = "asc"
    model: Annotated[str, Field(max_length=1024)] | None = None


class MessagesQuery(QueryFields):
    """The query of GET /v1/chat/completions/{id}/messages."""

    after: Identifier | None = None
    limit: int = Field(20, ge=1, le=MAX_LISTED)
    order: Literal["asc", "desc"] = "asc"


class StoredChatCompletion(ChatCompletion):
    """A stored answer."""

    metadata: dict[str, str]


class CompletionList(BaseModel):
    """The answer of GET /v1/chat/completions."""

    object: Literal["list"]
    data: list[dict[str, Any]]
    first_id: str | None
    last_id: str | None
    has_more: bool


class CompletionDeleted(BaseModel):
    """The answer of DELETE /v1/chat/completions/{id}."""

    object: Literal["chat.completion.deleted"]
    id: str
    deleted: Literal[True]
