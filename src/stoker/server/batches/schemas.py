"""The fields of /v1/batches: what is accepted, and what is documented."""

from __future__ import annotations

from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field

from stoker.server.files.schemas import LEAST_EXPIRY_S, MOST_EXPIRY_S
from stoker.server.query import QueryFields
from stoker.server.schemas import Fields

Endpoint = Literal["/v1/chat/completions", "/v1/completions", "/v1/embeddings", "/v1/responses"]
ENDPOINTS: tuple[str, ...] = get_args(Endpoint)
WINDOW_S = 86400
MOST_LINES = 50_000  # OpenAI's, as is the size
MOST_INPUT_BYTES = 200_000_000
MOST_LISTED = 100

MetadataKey = Annotated[str, Field(max_length=64)]
MetadataValue = Annotated[str, Field(max_length=512)]


class ExpiresAfter(Fields):
    """When the files that a batch writes are deleted."""

    anchor: Literal["created_at"]
    seconds: int = Field(ge=LEAST_EXPIRY_S, le=MOST_EXPIRY_S)


class BatchRequest(Fields):
    """The body of POST /v1/batches."""

    input_file_id: str = Field(
        min_length=1,
        max_length=128,
        description='A file of purpose "batch": JSON Lines with `custom_id`, `method`, `url` and `body`.',
    )
    endpoint: Endpoint = Field(description="The `url` of every line.")
    completion_window: Literal["24h"] = Field(description="Lines that have not run by then are given up.")
    metadata: dict[MetadataKey, MetadataValue] | None = Field(None, max_length=16)
    output_expires_after: ExpiresAfter | None = None


class RequestCounts(BaseModel):
    """Lines."""

    total: int
    completed: int = Field(description="Answered with status 200.")
    failed: int


class BatchError(BaseModel):
    """Why a batch, or one of its lines, could not run."""

    code: str
    message: str
    line: int | None
    param: str | None


class BatchErrors(BaseModel):
    """The first of them; the error file has all."""

    object: Literal["list"]
    data: list[BatchError]


class Batch(BaseModel):
    """A batch."""

    id: str
    object: Literal["batch"]
    endpoint: str
    errors: BatchErrors | None
    input_file_id: str
    completion_window: str
    status: Literal[
        "validating",
        "failed",
        "in_progress",
        "finalizing",
        "completed",
        "expired",
        "cancelling",
        "cancelled",
    ]
    output_file_id: str | None = Field(description="Answers, in the order of the input.")
    error_file_id: str | None = Field(description="What became of the lines that were not answered.")
    created_at: int
    in_progress_at: int | None
    expires_at: int
    finalizing_at: int | None
    completed_at: int | None
    failed_at: int | None
    expired_at: int | None
    cancelling_at: int | None
    cancelled_at: int | None
    request_counts: RequestCounts
    metadata: dict[str, str] | None
    usage: dict[str, Any] | None = Field(description="Tokens of all answers.")


class BatchList(BaseModel):
    """Batches, newest first, in pages."""

    object: Literal["list"]
    data: list[Batch]
    first_id: str | None
    last_id: str | None
    has_more: bool


class BatchQuery(QueryFields):
    """Which batches are listed."""

    limit: int = Field(20, ge=1, le=MOST_LISTED)
    after: str | None = Field(None, max_length=128, description="The id that the page before ends with.")
