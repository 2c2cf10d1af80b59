"""Background responses: worked on by the server itself, polled, followed and cancelled by their clients.

A run outlives the call that began it. What it was asked is in its row until it ends, so a server that is
started again goes on with it; its seed was drawn before, so by E3 the answer is the one it would have been.
"""

from __future__ import annotations

import asyncio
import base64
import contextlib
import logging
import secrets
import zlib
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from stoker.api.errors import CapacityError, EngineError, QueueFullError, StokerError, UnavailableError
from stoker.api.protocols import ServedModel
from stoker.server.errors import problem_of
from stoker.server.ready import ReadyEvents
from stoker.server.responses.answering import Answering
from stoker.server.responses.asked import Asked, understood
from stoker.server.responses.context import earlier_items, with_references
from stoker.server.responses.events import END, EventLog
from stoker.server.responses.items import items_of, messages_of, response_hex
from stoker.server.responses.records import Records, dumped
from stoker.server.responses.schemas import ResponseRequest
from stoker.server.sampling import seconds_of
from stoker.server.service import Service

if TYPE_CHECKING:
    from stoker.state.responses import StoredResponse

_LOGGER = logging.getLogger("stoker.server")
_MOST_AT_ONCE = 64  # at the engine; the others wait here, where they cost a few kilobytes
_MOST_RUNS = 4096  # in memory, each with its body
_MOST_TRIES = 12  # when there is no room, or the model does not answer: some minutes in all
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
_SWEEP_S = 6 * 3600.0  # between two looks for responses that are too old


@dataclass(frozen=True, slots=True)
class Order:
    """What a response was asked, so that it can be begun again."""

    id: str
    owner: str
    tenant: str
    model: str
    created_s: int
    fields: ResponseRequest
    seed: int | None = None  # drawn here for one that has none, where it must be known before

    def as_json(self) -> str:
        """For its row."""
        values = {
            "tenant": self.tenant,
            "model": self.model,
            "created_s": self.created_s,
            "fields": self.fields.model_dump(mode="json", by_alias=True, exclude_none=True),
            "seed": self.seed,
        }
        return msgspec.json.encode(values).decode()


def order_of(stored: StoredResponse) -> Order:
    """The order of a row that is not finished."""
    values: dict[str, Any] = msgspec.json.decode(stored.request or "{}")
    fields = ResponseRequest.model_validate(values.pop("fields"))
    return Order(stored.id, stored.owner, fields=fields, **values)


async def asked_of(service: Service, records: Records, order: Order, model: ServedModel) -> Asked:
    """What an order means for a model. Raises `Refusal` for what it cannot do, or is not there any more."""
    fields = order.fields
    own = items_of(fields.input, response_hex(order.id))
    before = await earlier_items(records, order.owner, fields.previous_response_id)
    own = await with_references(records, order.owner, own, before)
    return understood(
        fields,
        model,
        response_id=order.id,
        items=own,
        messages=messages_of(fields.instructions, before, own),
        engine_id=service.engine_id(order.id, 0),
        tenant=order.tenant,
        created_s=order.created_s,
        stores=stores(service, fields),
        seed=order.seed,
    )


def stores(service: Service, fields: ResponseRequest) -> bool:
    """Whether the response is kept: if nothing is said, wherever it can be."""
    return service.state is not None if fields.store is None else fields.store


@dataclass(eq=False)
class Run:
    """One background response while it is worked on. Its task is the only writer."""

    order: Order
    answering: Answering
    stored: StoredResponse
    log: bytearray = field(default_factory=bytearray)  # its stream so far
    ended: bool = False  # nothing is added to the log any more
    cancelled: bool = False
    grown: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Task[None] | None = None

    def publish(self) -> None:
        """Show the events that were written."""
        assert self.answering.events is not None
        self.log += self.answering.events.take()
        self.grown.set()
        self.grown = asyncio.Event()

    async def follow(self, after: int | None) -> AsyncIterator[bytes]:
        """Its stream, after the event with this number, up to its end."""
        place, skips = 0, 0 if after is None else after + 1
        while True:
            while skips and (end := self.log.find(END, place)) >= 0:
                place, skips = end + len(END), skips - 1
            if not skips and place < len(self.log):
                piece = bytes(self.log[place:])
                place = len(self.log)
                yield piece
            elif self.ended:
                return
            else:
                await self.grown.wait()


class BackgroundRuns:
    """All runs of a server. `start` it once; `close` it before the state closes."""

    def __init__(self, service: Service, records: Records) -> None:
        self._service = service
        self._records = records
        self._runs: dict[str, Run] = {}
        self._room = asyncio.Semaphore(_MOST_AT_ONCE)
        self._house: asyncio.Task[None] | None = None

    def find(self, owner: str, response_id: str) -> Run | None:
        """The owner's run that is worked on here."""
        run = self._runs.get(response_id)
        return run if run is not None and run.order.owner == owner else None

    async def begin(self, order: Order, asked: Asked) -> Run:
        """Store a response that is to be worked on, and begin.

        Raises `UnavailableError` if it cannot be stored, `QueueFullError` if there are too many.
        """
        if len(self._runs) >= _MOST_RUNS:
            raise QueueFullError(
                f"{len(self._runs)} background responses are open; allowed: at most {_MOST_RUNS}",
                retry_after_s=10.0,
            )
        answering = Answering(asked.head, asked.items, EventLog())
        answering.queued()
        table = await self._records.table()
        stored = table.new(
            order.owner,
            order.id,
            previous_id=order.fields.previous_response_id,
            status="queued",
            body=dumped(answering.response),
            items=dumped(asked.items),
            request=order.as_json(),
        )
        await table.add(stored)
        return self._begin(Run(order, answering, stored))

    def _begin(self, run: Run) -> Run:
        run.publish()
        self._runs[run.order.id] = run
        run.task = asyncio.create_task(self._work(run))
        return run

    async def cancel(self, run: Run) -> None:
        """End a run; when this returns it is stored as cancelled, or had ended before."""
        assert run.task is not None
        if not run.answering.ended:  # else it is being stored
            run.cancelled = True
            run.task.cancel()
        await asyncio.wait({run.task})

    # --- working -------------------------------------------------------------------------------------

    async def _work(self, run: Run) -> None:
        try:
            with self._records.open(run.order.owner, run.answering):
                await self._answer_or_end(run)
                if not run.answering.ended:
                    return  # the server stops: it is gone on with when it starts again
                await self._keep(run)
        finally:
            run.ended = True
            run.publish()
            del self._runs[run.order.id]

    async def _answer_or_end(self, run: Run) -> None:
        try:
            async with self._room:
                await self._answer_when_possible(run)
        except asyncio.CancelledError:
            if not run.cancelled:
                return
            run.answering.end("cancelled")
        except Exception as error:
            if self._service.draining:
                return
            problem = problem_of(error)
            if problem.is_ours:
                fields = {"response_id": run.order.id}
                _LOGGER.error("a background response failed", exc_info=error, extra={"fields": fields})
            run.answering.end("failed", problem)

    async def _answer_when_possible(self, run: Run) -> None:
        pause_s = _FIRST_PAUSE_S
        for _ in range(_MOST_TRIES):
            with contextlib.suppress(CapacityError, UnavailableError):
                if not self._service.draining:
                    return await self._answer(run)
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        await self._answer(run)

    async def _answer(self, run: Run) -> None:
        """Raises `CapacityError` and `UnavailableError` only while nothing was answered."""
        order, keep_alive_s = run.order, seconds_of(run.order.fields.keep_alive)
        async with self._service.host.use(order.model, keep_alive_s=keep_alive_s) as model:
            asked = await asked_of(self._service, self._records, order, model)
            ready = ReadyEvents(model.generate(asked.request))
            try:
                bunch = await ready.take()
                answering = run.answering
                answering.begin(asked, model.token_bytes)
                while bunch and not answering.take(bunch):
                    run.publish()
                    bunch = await ready.take()
                if not bunch:
                    raise EngineError("the endpoint's events ended before the answer did")
            except (CapacityError, UnavailableError) as error:
                if not run.answering.has_begun:
                    raise
                raise EngineError(f"the answer broke off: {error}") from error
            finally:
                await ready.close()
        run.answering.finish(self._service.now_s())

    async def _keep(self, run: Run) -> None:
        """Store what became of a run, its whole stream with it; then show the end to those who follow."""
        answering = run.answering
        answering.last_event()
        assert answering.events is not None
        last = answering.events.take()
        events = await asyncio.to_thread(_packed, bytes(run.log) + last)
        response = answering.response
        body = dumped(response)
        await self._records.keep(
            replace(run.stored, status=response["status"], body=body, events=events, request=None)
        )
        run.log += last

    # --- the server's life ---------------------------------------------------------------------------

    async def start(self) -> None:
        """Go on with what another life of this server has left, and from now on forget what is too old."""
        if self._service.state is not None and self._house is None:
            # A database that is not there yet holds nothing to go on with.
            self._house = asyncio.create_task(self._keep_house(goes_on=self._has_state()))

    def _has_state(self) -> bool:
        """False before the first who needs a state made its database: nobody else shall."""
        assert self._service.state is not None
        file = self._service.state.location.sqlite_file
        return file is None or file.exists()

    async def _keep_house(self, *, goes_on: bool) -> None:
        while True:
            pause_s = _SWEEP_S
            try:
                if goes_on:
                    await self._go_on()
                    goes_on = False
                if self._has_state():
                    while await (await self._records.table()).drop_old():
                        continue
            except StokerError as error:
                _LOGGER.warning("background and old responses wait: %s", error)
                pause_s = _LONGEST_PAUSE_S
            await asyncio.sleep(pause_s)

    async def _go_on(self) -> None:
        table = await self._records.table()
        for stored in await table.unfinished():
            if stored.id in self._runs:
                continue
            try:
                run = self._resumed(stored)
            except Exception as error:  # a row that this version cannot read: the rest goes on
                _LOGGER.error("%s cannot be gone on with", stored.id, exc_info=error)
                why = {"code": "server_error", "message": "another version of the server began this response"}
                body = {**msgspec.json.decode(stored.body), "status": "failed", "error": why}
                await table.change(stored.id, follows=[stored.status], status="failed", body=dumped(body))
                continue
            self._begin(run)

    def _resumed(self, stored: StoredResponse) -> Run:
        order = order_of(stored)
        answering = Answering(msgspec.json.decode(stored.body), msgspec.json.decode(stored.items), EventLog())
        answering.queued()
        return Run(order, answering, stored)

    async def close(self) -> None:
        """Stop working; what is not finished stays in the database as it is."""
        tasks = [run.task for run in self._runs.values() if run.task is not None]
        if self._house is not None:
            tasks.append(self._house)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def drawn_seed(fields: ResponseRequest) -> int | None:
    """A seed for a response that must be repeatable and has none."""
    return secrets.randbits(63) if fields.seed is None else None


def _packed(events: bytes) -> str:
    return base64.b64encode(zlib.compress(events, 6)).decode()


def unpacked(events: str) -> bytes:
    """A stream as it was stored."""
    return zlib.decompress(base64.b64decode(events))
