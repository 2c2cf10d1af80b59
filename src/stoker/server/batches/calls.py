"""The calls of /v1/batches: make one, look at it, cancel it, list them. None of them runs anything."""

from __future__ import annotations

import asyncio
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from stoker.server.batches.objects import batch_object, find_batch
from stoker.server.batches.runner import BatchRunner
from stoker.server.batches.schemas import MOST_INPUT_BYTES, WINDOW_S, BatchQuery, BatchRequest
from stoker.server.errors import refuse
from stoker.server.fields import parse
from stoker.server.files.objects import find_file
from stoker.server.files.schemas import page_object
from stoker.server.http import Receive, Scope, Send, answer_json, owner, read_body, tenant
from stoker.server.query import query_of
from stoker.server.service import Service
from stoker.state.content import share

if TYPE_CHECKING:
    from stoker.state import State, StoredBatch, StoredFile


@dataclass(frozen=True)
class CreateBatch:
    """The handler of POST /v1/batches."""

    service: Service
    runner: BatchRunner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`, and as `Service.opened_state`."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, BatchRequest)
            self.runner.check_endpoint(fields.endpoint)
            state = await service.opened_state()
            file = await find_file(state, scope, fields.input_file_id, param="input_file_id")
            _check_input(state, file)
            batch = state.batches.new(
                owner(scope),
                tenant=tenant(scope),
                endpoint=fields.endpoint,
                input_file_id=file.id,
                window_s=WINDOW_S,
                completion_window=fields.completion_window,
                output_expires_s=fields.output_expires_after.seconds if fields.output_expires_after else None,
                metadata=fields.metadata,
            )
            await _add(state, batch)
        self.runner.wake()
        await answer_json(scope, send, batch_object(batch))


def _check_input(state: State, file: StoredFile) -> None:
    if file.purpose != "batch":
        raise refuse("input_file_id", f'{file.id} is a file of purpose "{file.purpose}"; allowed: "batch"')
    if file.size_bytes > MOST_INPUT_BYTES:
        message = f"{file.id} has {file.size_bytes} bytes; allowed: at most {MOST_INPUT_BYTES}"
        raise refuse("input_file_id", message)
    if file.place != state.place.id:
        raise refuse(
            "input_file_id", f"the content of {file.id} is in the folder of another server", status=404
        )


async def _add(state: State, batch: StoredBatch) -> None:
    """The batch's own name for its input first, so that no deletion takes it away; then the row."""
    work = state.place.work(batch.id)
    source = state.place.content(batch.input_file_id)
    try:
        await asyncio.to_thread(_share_input, source, work)
    except FileNotFoundError:
        message = f"the content of {batch.input_file_id} is gone"
        raise refuse("input_file_id", message, code="content_not_found", status=404) from None
    try:
        await state.batches.add(batch)
    except BaseException:
        await asyncio.to_thread(shutil.rmtree, work, ignore_errors=True)
        raise


def _share_input(source: Path, work: Path) -> None:
    try:
        work.mkdir(mode=0o700)
        share(source, work / "input.jsonl")
    except FileNotFoundError:
        shutil.rmtree(work, ignore_errors=True)
        raise


@dataclass(frozen=True)
class OneBatch:
    """The handler of GET /v1/batches/{id}."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal` (404)."""
        state = await self.service.opened_state()
        await answer_json(scope, send, batch_object(await find_batch(state, scope)))


@dataclass(frozen=True)
class CancelBatch:
    """The handler of POST /v1/batches/{id}/cancel. What was answered by then is kept."""

    service: Service
    runner: BatchRunner

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`: 404, or 409 for a batch that is finished."""
        state = await self.service.opened_state()
        batch = await find_batch(state, scope)
        changed = await state.batches.change(
            batch.id, follows=("validating", "in_progress"), status="cancelling"
        )
        batch = changed or batch
        if batch.status != "cancelling":
            message = f"{batch.id} is {batch.status}; allowed: one that is validating or in progress"
            raise refuse("batch_id", message, code="batch_not_cancellable", status=409)
        self.runner.wake()
        self.runner.look(batch.id)
        await answer_json(scope, send, batch_object(batch))


@dataclass(frozen=True)
class ListBatches:
    """The handler of GET /v1/batches."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `RequestError` for a page that begins nowhere."""
        query = query_of(scope, BatchQuery)
        state = await self.service.opened_state()
        batches, has_more = await state.batches.page(owner(scope), limit=query.limit, after=query.after)
        await answer_json(scope, send, page_object([batch_object(batch) for batch in batches], has_more))
