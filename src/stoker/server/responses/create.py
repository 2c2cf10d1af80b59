"""POST /v1/responses and /v1/responses/input_tokens."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from dataclasses import dataclass

import msgspec

from stoker.api.errors import EngineError, RequestError
from stoker.api.protocols import ServedModel
from stoker.api.request import SamplingParams
from stoker.server.conversation import prepare
from stoker.server.errors import problem_of
from stoker.server.http import (
    Receive,
    Scope,
    Send,
    answer_bytes,
    answer_json,
    owner,
    read_body,
    request_id,
    tenant,
    while_connected,
)
from stoker.server.ready import ReadyEvents
from stoker.server.responses.answering import Answering
from stoker.server.responses.asked import Asked, blamed, check, check_input, conversation_of
from stoker.server.responses.context import earlier_items, with_references
from stoker.server.responses.events import EventLog
from stoker.server.responses.fields import parse
from stoker.server.responses.items import items_of, messages_of
from stoker.server.responses.records import Records, dumped
from stoker.server.responses.runs import BackgroundRuns, Order, Run, asked_of, drawn_seed, stores
from stoker.server.responses.schemas import InputTokensRequest, ResponseRequest
from stoker.server.responses.stream import EventStream
from stoker.server.sampling import seconds_of
from stoker.server.service import Service

_LOGGER = logging.getLogger("stoker.server")


@dataclass(frozen=True)
class CreateResponse:
    """Items in, a response out: whole, streamed, or made in the background."""

    service: Service
    records: Records
    runs: BackgroundRuns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`, `StokerError` or `ClientGone` before anything was sent."""
        service = self.service
        with contextlib.ExitStack() as counted:
            counted.enter_context(service.one_more())
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, ResponseRequest)
            del body  # may be large, and the answer may take minutes
            check(fields)
            order = self._order(scope, fields)
            if stores(service, fields):
                await self.records.check()
            if fields.background:
                await self._background(scope, receive, send, order)
                return
            stream = EventStream(scope, send)
            async with (
                while_connected(receive),
                service.host.use(order.model, keep_alive_s=seconds_of(fields.keep_alive)) as model,
            ):
                asked = await asked_of(service, self.records, order, model)
                last = await self._answer(order, asked, model, stream if fields.stream else None)
            # The last bytes are sent outside of `while_connected`: once they are, `receive` says that the
            # client has gone, though it has not.
            if fields.stream:
                await stream.end(last)
            else:
                await answer_bytes(scope, send, 200, last)

    def _order(self, scope: Scope, fields: ResponseRequest) -> Order:
        service = self.service
        return Order(
            f"resp_{service.stored_hex(owner(scope), request_id(scope))}",
            owner(scope),
            tenant(scope),
            service.model_name(fields.model),
            service.now_s(),
            fields,
            drawn_seed(fields) if fields.background else None,
        )

    async def _answer(
        self, order: Order, asked: Asked, model: ServedModel, stream: EventStream | None
    ) -> bytes:
        """Answer; returns the bytes that are still to be sent: a stream's last ones, or the whole answer."""
        answering = Answering(asked.head, asked.items, None if stream is None else EventLog())
        kept = stores(self.service, order.fields)
        with self.records.open(order.owner, answering) if kept else contextlib.nullcontext():
            try:
                await self._generate(answering, asked, model, stream)
            except asyncio.CancelledError:
                if kept and stream is not None and stream.started:  # the client knows its id
                    answering.end("cancelled")
                    await self._keep(order, answering)
                raise
            except Exception as error:
                if stream is None or not stream.started:
                    raise
                problem = problem_of(error)
                if problem.is_ours:
                    about = {"response_id": order.id}
                    _LOGGER.error("a stream failed", exc_info=error, extra={"fields": about})
                answering.end("failed", problem)
            if kept:
                # To its end, even if the client leaves now.
                await asyncio.shield(self._keep(order, answering))
        if answering.events is None:
            return msgspec.json.encode(answering.response)
        answering.last_event()
        return answering.events.take()

    async def _generate(
        self, answering: Answering, asked: Asked, model: ServedModel, stream: EventStream | None
    ) -> None:
        ready = ReadyEvents(model.generate(asked.request))
        try:
            bunch = await ready.take()
            answering.begin(asked, model.token_bytes)
            while bunch and not answering.take(bunch):
                if stream is not None and answering.events is not None:
                    pending = answering.events.take()
                    if pending:
                        await stream.write(pending)
                bunch = await ready.take()
            if not bunch:
                raise EngineError("the endpoint's events ended before the answer did")
        except RequestError as error:
            raise blamed(error, asked.request) from error
        finally:
            await ready.close()
        answering.finish(self.service.now_s())

    async def _keep(self, order: Order, answering: Answering) -> None:
        response = answering.response
        table = await self.records.table()
        await self.records.keep(
            table.new(
                order.owner,
                order.id,
                previous_id=order.fields.previous_response_id,
                status=response["status"],
                body=dumped(response),
                items=dumped(answering.items),
            )
        )

    async def _background(self, scope: Scope, receive: Receive, send: Send, order: Order) -> None:
        """Begin a run and answer at once, or with its stream, whose reader may leave."""
        await self.records.table()  # refuses on a server that keeps nothing
        fields = order.fields
        keep_alive_s = seconds_of(fields.keep_alive)
        async with self.service.host.use(order.model, keep_alive_s=keep_alive_s) as model:
            asked = await asked_of(self.service, self.records, order, model)
        run = await self.runs.begin(order, asked)
        if fields.stream:
            await send_followed(scope, receive, send, run, None)
        else:
            await answer_json(scope, send, run.answering.response)


async def send_followed(scope: Scope, receive: Receive, send: Send, run: Run, after: int | None) -> None:
    """Send a run's stream, after the event with this number."""
    stream = EventStream(scope, send)
    pieces: AsyncIterator[bytes] = run.follow(after)
    async with while_connected(receive):
        async for piece in pieces:
            await stream.write(piece)
    await stream.end(b"")


@dataclass(frozen=True)
class CountInputTokens:
    """How many tokens the input of a response would have."""

    service: Service
    records: Records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, InputTokensRequest)
            check_input(fields)
            name = service.model_name(fields.model)
            before = await earlier_items(self.records, owner(scope), fields.previous_response_id)
            items = items_of(fields.input, request_id(scope))
            items = await with_references(self.records, owner(scope), items, before)
            messages = messages_of(fields.instructions, before, items)
            async with service.host.use(name, keep_alive_s=seconds_of(fields.keep_alive)) as model:
                prepared = prepare(model, conversation_of(fields, messages, None), SamplingParams())
                count = len(await model.encode(prepared.chat))
        await answer_json(scope, send, {"object": "response.input_tokens", "input_tokens": count})
