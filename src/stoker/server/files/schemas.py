"""The fields of /v1/files: what is accepted, and what is documented."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field

from stoker.server.query import QueryFields

# What a file is for is a label to list files by; only "batch" and "batch_output" mean something here.
Purpose = Literal["batch", "user_data", "assistants", "vision", "evals"]
PURPOSES: tuple[str, ...] = get_args(Purpose)
LEAST_EXPIRY_S = 3600
MOST_EXPIRY_S = 30 * 86400
MOST_LISTED = 10_000


class UploadFields(BaseModel):
    """The body of POST /v1/files, as multipart/form-data. For `expires_after` write `expires_after[anchor]`
    and `expires_after[seconds]`."""

    file: Annotated[str, Field(json_schema_extra={"format": "binary"})]
    purpose: Purpose


class File(BaseModel):
    """A file."""

    id: str
    object: Literal["file"]
    bytes: int
    created_at: int = Field(description="Unix seconds.")
    filename: str
    purpose: Purpose | Literal["batch_output"]
    status: Literal["processed"]
    expires_at: int | None = None


class FileList(BaseModel):
    """Files, in pages."""

    object: Literal["list"]
    data: list[File]
    first_id: str | None
    last_id: str | None
    has_more: bool


class FileDeleted(BaseModel):
    """A file that is gone."""

    id: str
    object: Literal["file"]
    deleted: Literal[True]


class FileQuery(QueryFields):
    """Which files are listed."""

    purpose: str | None = Field(None, max_length=64)
    limit: int = Field(MOST_LISTED, ge=1, le=MOST_LISTED)
    order: Literal["asc", "desc"] = Field("desc", description="By the time they were made.")
    after: str | None = Field(None, max_length=128, description="The id that the page before ends with.")


def page_object(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    """OpenAI's list of objects with ids."""
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }
