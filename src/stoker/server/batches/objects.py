"""A stored batch as clients see it, and where one is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stoker.server.errors import Problem, Refusal
from stoker.server.http import Scope, owner

if TYPE_CHECKING:
    from stoker.state import State, StoredBatch


def batch_object(batch: StoredBatch) -> dict[str, Any]:
    """OpenAI's object of a batch."""
    times = batch.times or {}
    return {
        "id": batch.id,
        "object": "batch",
        "endpoint": batch.endpoint,
        "errors": None if batch.errors is None else {"object": "list", "data": batch.errors},
        "input_file_id": batch.input_file_id,
        "completion_window": batch.completion_window,
        "status": batch.status,
        "output_file_id": batch.output_file_id,
        "error_file_id": batch.error_file_id,
        "created_at": batch.created_s,
        "in_progress_at": times.get("in_progress"),
        "expires_at": batch.expires_s,
        "finalizing_at": times.get("finalizing"),
        "completed_at": times.get("completed"),
        "failed_at": times.get("failed"),
        "expired_at": times.get("expired"),
        "cancelling_at": times.get("cancelling"),
        "cancelled_at": times.get("cancelled"),
        "request_counts": {"total": batch.total, "completed": batch.completed, "failed": batch.failed},
        "metadata": batch.metadata,
        "usage": batch.token_usage,
    }


async def find_batch(state: State, scope: Scope) -> StoredBatch:
    """The batch that the path names, if it is the asking key's. Raises `Refusal` (404)."""
    batch_id = scope["path_params"]["batch_id"]
    batch = await state.batches.find(owner(scope), batch_id)
    if batch is None:
        raise Refusal(
            Problem(404, f"there is no batch {batch_id!r:.100}", param="batch_id", code="batch_not_found")
        )
    return batch
