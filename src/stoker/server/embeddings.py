"""POST /v1/embeddings: texts or token ids in, a vector of length 1 for each out."""

from __future__ import annotations

import asyncio
import base64
import dataclasses
import struct
from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, Final, cast

from stoker.api.errors import EngineError, StokerError
from stoker.api.events import DoneEvent, EmbeddingEvent
from stoker.api.protocols import ServedModel
from stoker.api.request import Pooling, Request, SamplingParams
from stoker.server.chunks import check_end
from stoker.server.embedding_schemas import EmbeddingRequest
from stoker.server.errors import Refusal, problem_of, refuse
from stoker.server.fields import parse
from stoker.server.http import (
    Receive,
    Scope,
    Send,
    answer_json,
    read_body,
    request_id,
    tenant,
    while_connected,
)
from stoker.server.sampling import seconds_of
from stoker.server.service import Service

# Inputs of one call that are open at once: an engine's step has room for no more, and the queue is for all.
_AT_ONCE = 64
_NOTHING_SAMPLED: Final = SamplingParams(seed=0)


@dataclass(frozen=True)
class Embeddings:
    """The handler of POST /v1/embeddings."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`, `StokerError` or `ClientGone` before anything was sent."""
        service = self.service
        with service.one_more():
            body = await read_body(scope, receive, service.options, service.bodies)
            fields = parse(body, EmbeddingRequest)
            del body
            name = service.model_name(fields.model)
            async with (
                while_connected(receive),
                service.host.use(name, keep_alive_s=seconds_of(fields.keep_alive)) as model,
            ):
                name = model.card.name
                pooling = fields.pooling or model.pooling
                if pooling is None:
                    raise refuse("pooling", f"pooling is missing, and {name} has none; allowed: mean, last")
                requests = _requests(service, scope, fields, name, pooling)
                embedded = await _embed_all(model, requests, fields.dimensions)
            await answer_json(scope, send, _answer(name, embedded, fields.encoding_format == "base64"))


@dataclass(frozen=True, slots=True)
class _Embedded:
    """One input's result."""

    vector: tuple[float, ...]
    tokens: int


def _requests(
    service: Service, scope: Scope, fields: EmbeddingRequest, model: str, pooling: Pooling
) -> list[Request]:
    who = "/".join(part for part in (tenant(scope), fields.user) if part)
    return [
        Request(
            service.engine_id(request_id(scope), number),
            prompt,
            _NOTHING_SAMPLED,
            model=model,
            priority=fields.priority or 0,
            tenant=who,
            cache_salt=fields.cache_salt or "",
            background=fields.service_tier == "flex",
            pooling=pooling,
        )
        for number, prompt in enumerate(_prompts(fields))
    ]


def _prompts(fields: EmbeddingRequest) -> list[str | tuple[int, ...]]:
    given = fields.input
    if isinstance(given, str):
        return [given]
    if isinstance(given[0], int):
        return [tuple(given)]
    return [item if isinstance(item, str) else tuple(item) for item in cast("list[str | list[int]]", given)]


async def _embed_all(
    model: ServedModel, requests: Sequence[Request], dimensions: int | None
) -> list[_Embedded]:
    """All requests, some at once; the first error of one ends all, and a refusal names its input."""
    found: dict[int, _Embedded] = {}
    numbers = iter(range(len(requests)))

    async def work() -> None:
        for number in numbers:  # shared: each goes to whoever is free
            try:
                found[number] = await _embed(model, requests[number], dimensions)
            except StokerError as error:
                problem = problem_of(error)
                if problem.status != 400:
                    raise
                where = "input" if len(requests) == 1 else f"input[{number}]"
                message = f"{where}: {problem.message}"
                raise Refusal(dataclasses.replace(problem, param=where, message=message)) from error

    tasks = [asyncio.create_task(work()) for _ in range(min(_AT_ONCE, len(requests)))]
    try:
        await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return [found[number] for number in range(len(requests))]


async def _embed(model: ServedModel, request: Request, dimensions: int | None) -> _Embedded:
    vector: tuple[float, ...] | None = None
    async with aclosing(cast("Any", model.generate(request))) as events:
        async for event in events:
            if isinstance(event, EmbeddingEvent):
                vector = event.vector
                if dimensions is not None and dimensions != len(vector):
                    raise refuse(
                        "dimensions",
                        f"dimensions is {dimensions}; allowed: {len(vector)}, {model.card.name}'s width: "
                        "it is not trained to have its embeddings cut",
                    )
            elif isinstance(event, DoneEvent):
                check_end(event)
                if vector is not None:
                    return _Embedded(vector, event.usage.prompt_tokens)
    raise EngineError("the endpoint's events ended without an embedding")


def _answer(model: str, embedded: Sequence[_Embedded], as_base64: bool) -> dict[str, Any]:
    tokens = sum(one.tokens for one in embedded)
    return {
        "object": "list",
        "model": model,
        "data": [
            {
                "object": "embedding",
                "index": index,
                "embedding": _base64(one.vector) if as_base64 else one.vector,
            }
            for index, one in enumerate(embedded)
        ],
        "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
    }


def _base64(vector: tuple[float, ...]) -> str:
    return base64.b64encode(struct.pack(f"<{len(vector)}f", *vector)).decode()
