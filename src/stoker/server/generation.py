"""The way of an answering call, the same for chats and texts: body, fields, model, events, bytes.

The status is decided by the first event: whatever an endpoint refuses, it refuses before that. What goes
wrong later ends a stream with an error in place of the rest.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import msgspec

from stoker.api.errors import EngineError, PromptTooLongError, QueueFullError, RequestError
from stoker.api.events import DoneEvent, Event
from stoker.api.protocols import ServedModel
from stoker.server.asked import Asked
from stoker.server.chunks import ChunkWriter, error_piece
from stoker.server.errors import ClientGone, problem_of, refuse
from stoker.server.fields import parse
from stoker.server.http import (
    Header,
    Receive,
    Scope,
    Send,
    answer_bytes,
    read_body,
    request_id,
    while_connected,
)
from stoker.server.merged import merged
from stoker.server.ready import ReadyEvents
from stoker.server.sampling import seconds_of
from stoker.server.schemas import GenerationFields
from stoker.server.service import Service
from stoker.server.shapes import Shape
from stoker.server.whole import WholeAnswer

_LOGGER = logging.getLogger("stoker.server")
_STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the pieces
)

# Only the engine knows what it can enforce; its message says so in these words.
_OF_CONSTRAINTS = re.compile(r"constraint|schema|regex|grammar|lark|choice|tags", re.IGNORECASE)

F = TypeVar("F", bound=GenerationFields)


@dataclass(frozen=True)
class Generation(Generic[F]):
    """An endpoint that answers. `fields` is the body's schema, `understand` makes requests of it."""

    service: Service
    shape: Shape
    fields: type[F]
    check: Callable[[F], None]  # what can be refused without the model
    understand: Callable[[Service, Scope, F, ServedModel], Awaitable[Asked]]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`, `StokerError` or `ClientGone` before anything was sent."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, self.fields)
            del body  # may be large, and the answer may take minutes
            self.check(fields)
            name = service.model_name(fields.model)
            stream = _Stream(scope, send)
            try:
                async with (
                    while_connected(receive),
                    service.host.use(name, keep_alive_s=seconds_of(fields.keep_alive)) as model,
                ):
                    asked = await self.understand(service, scope, fields, model)
                    last = await self._run(scope, asked, model, stream)
            except Exception as error:
                if not stream.started or isinstance(error, ClientGone):
                    raise
                last = _failed(scope, error)
            # The last bytes are sent outside of `while_connected`: once they are, `receive` says that the
            # client has gone, though it has not.
            if fields.stream:
                await stream.end(last)
            else:
                await answer_bytes(scope, send, 200, last)

    async def _run(self, scope: Scope, asked: Asked, model: ServedModel, stream: _Stream) -> bytes:
        """Answer; returns the bytes that are still to be sent: a stream's last ones, or the whole answer."""
        card = model.card
        head: dict[str, Any] = {
            "id": asked.answer_id or self.shape.id_prefix + request_id(scope),
            "created": self.service.now_s(),
            "model": card.name,
            "system_fingerprint": None if card.digest is None else f"fp_{card.digest[:16]}",
        }
        if asked.service_tier is not None:
            head["service_tier"] = asked.service_tier
        events = (
            model.generate(asked.requests[0]) if len(asked.requests) == 1 else merged(model, asked.requests)
        )
        ready = ReadyEvents(events)
        try:
            if not asked.stream:
                return await self._gather(asked, model, head, ready)
            writer = ChunkWriter(self.shape, asked, head=head, token_bytes=model.token_bytes)
            whole = None if asked.keep is None else WholeAnswer(self.shape, asked)
            bunch = _checked(await ready.take())
            pending = writer.opening() + writer.pieces(bunch)
            open_choices = asked.choices - _ended(bunch)
            if whole is not None:
                whole.add(bunch)
            while open_choices:
                if pending:
                    await stream.write(pending)
                bunch = _checked(await ready.take())
                open_choices -= _ended(bunch)
                pending = writer.pieces(bunch)
                if whole is not None:
                    whole.add(bunch)
            if whole is not None and asked.keep is not None:
                await asked.keep(whole.as_dict(head, model.token_bytes))
            return pending + writer.closing()
        except RequestError as error:
            raise _blamed(error, asked) from error
        finally:
            await ready.close()

    async def _gather(
        self, asked: Asked, model: ServedModel, head: dict[str, Any], ready: ReadyEvents
    ) -> bytes:
        answer = WholeAnswer(self.shape, asked)
        open_choices = asked.choices
        while open_choices:
            bunch = _checked(await ready.take())
            answer.add(bunch)
            open_choices -= _ended(bunch)
        value = answer.as_dict(head, model.token_bytes)
        if asked.keep is not None:
            await asked.keep(value)
        return msgspec.json.encode(value)


class _Stream:
    """The response of a stream: its header goes out with the first bytes."""

    __slots__ = ("_scope", "_send", "started")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.started = False

    async def write(self, data: bytes) -> None:
        """Send bytes; waits while the client reads more slowly than it is answered."""
        if not self.started:
            await self._start()
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data: bytes) -> None:
        """Send the last bytes, which may be the first."""
        if not self.started:
            await self._start()
        await self._send({"type": "http.response.body", "body": data, "more_body": False})

    async def _start(self) -> None:
        self.started = True
        headers = [*_STREAM_HEADERS, (b"x-request-id", request_id(self._scope).encode())]
        await self._send({"type": "http.response.start", "status": 200, "headers": headers})


def _ended(events: list[Event]) -> int:
    # Done events are rare, so the last one of a bunch is looked at first.
    return sum(isinstance(event, DoneEvent) for event in events)


def _checked(events: list[Event]) -> list[Event]:
    if not events:
        raise EngineError("the endpoint's events ended before every choice did")
    return events


def _blamed(error: RequestError, asked: Asked) -> Exception:
    """`error`, with the name of the field, if it is about what the answer must be."""
    if asked.field_to_blame is None or asked.requests[0].sampling.constraint is None:
        return error
    if isinstance(error, PromptTooLongError | QueueFullError) or not _OF_CONSTRAINTS.search(error.message):
        return error
    return refuse(asked.field_to_blame(error.message), str(error), code="invalid_value")


def _failed(scope: Scope, error: Exception) -> bytes:
    problem = problem_of(error)
    if problem.is_ours:
        _LOGGER.error("a stream failed", exc_info=error, extra={"fields": {"request_id": request_id(scope)}})
    return error_piece(problem)
