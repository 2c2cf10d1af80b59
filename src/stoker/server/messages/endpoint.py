"""POST /v1/messages and /v1/messages/count_tokens: Anthropic's dialect, answered by the models here.

The way of a call is that of the other dialects: body, fields, model, events, bytes. The status is decided by
the first event; what goes wrong later ends a stream with an error event.
"""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace

import msgspec

from stoker.api.chat import Chat
from stoker.api.errors import EngineError
from stoker.api.events import DoneEvent
from stoker.api.protocols import ServedModel
from stoker.api.request import Request, SamplingParams
from stoker.server.continuation import open_prompt
from stoker.server.conversation import Conversation, Prepared, prepare
from stoker.server.errors import ClientGone, Refusal, problem_of, refuse
from stoker.server.http import (
    JSON,
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
from stoker.server.messages.stream import SILENCE_S, EventStream
from stoker.server.messages.turns import conversation_of
from stoker.server.messages.whole import Ask, WholeMessage
from stoker.server.parts import AnswerPart, LogprobsPart, parts_of
from stoker.server.sampling import seconds_of
from stoker.server.service import Service
from stoker.tools import chat_format
from stoker.tools.parts import Part

_LOGGER = logging.getLogger("stoker.server")
Bunches = AsyncGenerator[list[tuple[int, AnswerPart]], None]


@dataclass(frozen=True)
class Messages:
    """Messages in, a message out."""

    service: Service
    silence_s: float = SILENCE_S  # after which a stream says that it is alive

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`, `StokerError` or `ClientGone` before anything was sent."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, MessagesRequest)
            del body  # may be large, and the answer may take minutes
            conversation, sampling = conversation_of(fields), _sampling(fields)
            name = service.model_name(fields.model)
            stream = EventStream(scope, send)
            try:
                async with (
                    while_connected(receive),
                    service.host.use(name, keep_alive_s=seconds_of(fields.keep_alive)) as model,
                ):
                    conversation, warnings = _obeyed(conversation, model)
                    prepared = prepare(model, conversation, sampling)
                    ask = _ask(scope, fields, model, warnings)
                    prompt_ids = await _encoded(model, prepared.chat)
                    request = self._request(scope, fields, prepared, model, prompt_ids)
                    bunches = parts_of(model.generate(request), prepared.parser, call_seed=request.request_id)
                    if fields.stream:
                        last = await self._stream(ask, len(prompt_ids), bunches, stream)
                    else:
                        last = await _whole(ask, bunches)
            except Exception as error:
                if not stream.started or isinstance(error, ClientGone):
                    raise
                last = _failed(scope, error)
            # Outside of `while_connected`: once the last bytes are sent, `receive` says that the client left.
            if fields.stream:
                await stream.end(last)
            else:
                await answer_bytes(scope, send, 200, last, [JSON, request_id_header(scope)])

    async def _stream(self, ask: Ask, prompt_tokens: int, bunches: Bunches, stream: EventStream) -> bytes:
        """Send events as they come; returns the last ones."""
        writer = EventWriter(ask)
        stream.opening = writer.opening(prompt_tokens)
        async with contextlib.aclosing(bunches), stream.pinged(self.silence_s):
            async for bunch in bunches:
                parts, done = _split(bunch)
                pending = writer.parts(parts)
                if done is not None:
                    return pending + writer.closing(done)
                if pending:
                    await stream.write(pending)
        raise EngineError("an answer ended without its end")

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
                prepared = prepare(model, _obeyed(conversation, model)[0], SamplingParams())
                count = len(await _encoded(model, prepared.chat))
        answer = msgspec.json.encode({"input_tokens": count})
        await answer_bytes(scope, send, 200, answer, [JSON, request_id_header(scope)])


def _obeyed(conversation: Conversation, model: ServedModel) -> tuple[Conversation, tuple[str, ...]]:
    """The conversation without what says nothing to this model, and warnings of that.

    An effort is a signal, not a limit, and clients send it to every model; a budget is a limit.
    """
    effort = conversation.reasoning_effort
    if effort in (None, "none") or chat_format(model.chat_template).thinking is not None:
        return conversation, ()
    warning = f"output_config.effort is {effort}, but {model.card.name} does not think aloud: no effect"
    return replace(conversation, reasoning_effort=None), (warning,)


def _ask(scope: Scope, fields: MessagesRequest, model: ServedModel, warnings: tuple[str, ...]) -> Ask:
    thinking = fields.thinking
    return Ask(
        f"msg_{request_id(scope)}",
        model.card.name,
        fields.max_tokens,
        stop_sequences=tuple(fields.stop_sequences or ()),
        omits_thinking=thinking is not None and thinking.display == "omitted",
        warnings=warnings,
    )


async def _encoded(model: ServedModel, chat: Chat) -> tuple[int, ...]:
    """The prompt's token ids, made here so that a stream can begin with their number. A last turn of the
    assistant's is left open."""
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


async def _whole(ask: Ask, bunches: Bunches) -> bytes:
    """The whole message."""
    whole = WholeMessage(ask)
    async with contextlib.aclosing(bunches):
        async for bunch in bunches:
            parts, done = _split(bunch)
            whole.add(parts)
            if done is not None:
                return msgspec.json.encode(whole.as_dict(done))
    raise EngineError("an answer ended without its end")


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
