"""The fields of stored answers: what changes them, and what is answered."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel

from stoker.server.chat_schemas import Fields
from stoker.server.responses.schemas import Metadata


class UpdateCompletionRequest(Fields):
    """The body of POST /v1/chat/completions/{id}."""

    metadata: Metadata | None = None


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
