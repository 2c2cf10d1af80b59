"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect, answered by the models here.

The way of a call is that of the other dialects: body, fields, model, events, bytes. The status is decided by
the first event; what goes wrong later ends a stream with an error event.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec

from stoker.api.chat import Chat
from stoker.api.events import DoneEvent
from stoker.api.protocols import ServedModel
from stoker.api.request import Request, SamplingParams
from stoker.server.continuation import open_prompt
from stoker.server.conversation import Prepared, prepare
from stoker.server.errors import ClientGone, Refusal, problem_of, refuse
from stoker.server.http import (
    JSON,
    Header,
    Receive,
    Scope,
    Send,
    answer_bytes,
    read_body,
    request_id,
    tenant,
    while_connected,
)
from stoker.server.messages.errors import error_body, request_id_header
from stoker.server.messages.events import EventWriter, error_event
from stoker.server.messages.fields import parse
from stoker.server.messages.schemas import CountTokensRequest, MessagesRequest
from stoker.server.messages.turns import conversation_of
from stoker.server.messages.whole import Ask, WholeMessage
from stoker.server.parts import AnswerPart, LogprobsPart, parts_of
from stoker.server.sampling import seconds_of
from stoker.server.service import Service
from stoker.tools.parts import Part

_LOGGER = logging.getLogger("stoker.server")
_STREAM_HEADERS: tuple[Header, ...] = (
    (b"content-type", b"text/event-stream; charset=utf-8"),
    (b"cache-control", b"no-cache"),
    (b"x-accel-buffering", b"no"),  # nginx would gather the pieces
)


@dataclass(frozen=True)
class Messages:
    """Messages in, a message out."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`, `StokerError` or `ClientGone` before anything was sent."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, MessagesRequest)
            del body  # may be large, and the answer may take minutes
            conversation, sampling = conversation_of(fields), _sampling(fields)
            name = service.model_name(fields.model)
            stream = _Stream(scope, send)
            try:
                async with (
                    while_connected(receive),
                    service.host.use(name, keep_alive_s=seconds_of(fields.keep_alive)) as model,
                ):
                    prepared = prepare(model, conversation, sampling)
                    last = await self._answer(scope, fields, prepared, model, stream)
            except Exception as error:
                if not stream.started or isinstance(error, ClientGone):
                    raise
                last = _failed(scope, error)
            # Outside of `while_connected`: once the last bytes are sent, `receive` says that the client left.
            if fields.stream:
                await stream.end(last)
            else:
                await answer_bytes(scope, send, 200, last, [JSON, request_id_header(scope)])

    async def _answer(
        self, scope: Scope, fields: MessagesRequest, prepared: Prepared, model: ServedModel, stream: _Stream
    ) -> bytes:
        """Answer; returns the bytes that are still to be sent: a stream's last ones, or the whole message."""
        # Encoded here, so that a stream can begin with the prompt's size; the engine would do the same.
        prompt_ids = await _encoded(model, prepared.chat)
        request = self._request(scope, fields, prepared, model, prompt_ids)
        thinking = fields.thinking
        ask = Ask(
            f"msg_{request_id(scope)}",
            model.card.name,
            fields.max_tokens,
            stop_sequences=tuple(fields.stop_sequences or ()),
            omits_thinking=thinking is not None and thinking.display == "omitted",
        )
        # The engine's id is new each time, a client's may come again; two calls must not share one.
        bunches = parts_of(model.generate(request), prepared.parser, call_seed=request.request_id)
        whole, writer = WholeMessage(ask), EventWriter(ask)
        pending, done = writer.opening(len(prompt_ids)), None
        try:
            async for bunch in bunches:
                parts, done = _split(bunch)
                if not fields.stream:
                    whole.add(parts)
                    continue
                pending += writer.parts(parts)
                if pending and done is None:
                    await stream.write(pending)
                    pending = b""
        finally:
            await bunches.aclose()
        assert done is not None  # else `parts_of` has raised
        return pending + writer.closing(done) if fields.stream else msgspec.json.encode(whole.as_dict(done))

    def _request(
        self,
        scope: Scope,
        fields: MessagesRequest,
        prepared: Prepared,
        model: ServedModel,
        prompt_ids: tuple[int, ...],
    ) -> Request:
        user_id = None if fields.metadata is None else fields.metadata.user_id
        return Request(
            self.service.engine_id(request_id(scope), 0),
            prompt_ids,
            prepared.sampling,
            model=model.card.name,
            priority=fields.priority or 0,
            tenant="/".join(part for part in (tenant(scope), user_id) if part),
            cache_salt=fields.cache_salt or "",
            deadline_ms=fields.deadline_ms,
        )


@dataclass(frozen=True)
class CountTokens:
    """How many tokens a conversation has for the model that is asked."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, CountTokensRequest)
            conversation = conversation_of(fields)
            name = service.model_name(fields.model)
            async with (
                while_connected(receive),
                service.host.use(name, keep_alive_s=seconds_of(fields.keep_alive)) as model,
            ):
                prepared = prepare(model, conversation, SamplingParams())
                count = len(await _encoded(model, prepared.chat))
        answer = msgspec.json.encode({"input_tokens": count})
        await answer_bytes(scope, send, 200, answer, [JSON, request_id_header(scope)])


async def _encoded(model: ServedModel, chat: Chat) -> tuple[int, ...]:
    """The prompt's token ids. A last turn of the assistant's is left open."""
    if chat.add_generation_prompt:
        return tuple(await model.encode(chat))
    try:
        return await open_prompt(model, chat)
    except Refusal as error:
        raise refuse(
            "messages",
            f"messages end with a turn of the assistant, whose text {model.card.name}'s chat template does "
            "not leave at the end; allowed: a turn of the user after it",
        ) from error


def _sampling(fields: MessagesRequest) -> SamplingParams:
    """How tokens are chosen; what is left out takes the defaults, which are Anthropic's too."""
    names = ("temperature", "top_p", "top_k", "seed")
    given = {name: value for name in names if (value := getattr(fields, name)) is not None}
    # Caching a prompt takes computing it, after which one token costs nothing more.
    return SamplingParams(
        **given, stop=tuple(fields.stop_sequences or ()), max_tokens=max(fields.max_tokens, 1)
    )


def _split(bunch: Sequence[tuple[int, AnswerPart]]) -> tuple[list[Part], DoneEvent | None]:
    """The parts of the one choice, and its end if it is among them."""
    parts: list[Part] = []
    for _, part in bunch:
        if isinstance(part, DoneEvent):
            return parts, part
        if not isinstance(part, LogprobsPart):
            parts.append(part)
    return parts, None


def _failed(scope: Scope, error: Exception) -> bytes:
    problem = problem_of(error)
    if problem.is_ours:
        _LOGGER.error("a stream failed", exc_info=error, extra={"fields": {"request_id": request_id(scope)}})
    return error_event(error_body(scope, problem))


class _Stream:
    """The response of a stream: its header goes out with the first bytes."""

    __slots__ = ("_scope", "_send", "started")

    def __init__(self, scope: Scope, send: Send) -> None:
        self._scope = scope
        self._send = send
        self.started = False

    async def write(self, data: bytes, *, more: bool = True) -> None:
        """Send bytes; waits while the client reads more slowly than it is answered."""
        if not self.started:
            self.started = True
            x_request_id = (b"x-request-id", request_id(self._scope).encode())
            headers = [*_STREAM_HEADERS, request_id_header(self._scope), x_request_id]
            await self._send({"type": "http.response.start", "status": 200, "headers": headers})
        await self._send({"type": "http.response.body", "body": data, "more_body": more})

    async def end(self, data: bytes) -> None:
        """Send the last bytes, which may be the first."""
        await self.write(data, more=False)
