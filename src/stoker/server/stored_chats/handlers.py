"""GET /v1/chat/completions, and GET, POST, DELETE of one. Each key sees its own only."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qsl, urlencode

from starlette.routing import BaseRoute, Route

from stoker.server.errors import Refusal, refuse
from stoker.server.fields import parse
from stoker.server.http import Handler, Receive, Scope, Send, answer_json, owner, read_body
from stoker.server.methods import Methods
from stoker.server.query import query_of
from stoker.server.service import Service
from stoker.server.stored_chats.keep import ChatStore, messages_of, object_of
from stoker.server.stored_chats.schemas import ListQuery, MessagesQuery, UpdateCompletionRequest

_PAIR = re.compile(r"metadata\[(.{1,64})\]", re.DOTALL)


@dataclass(frozen=True)
class ListCompletions:
    """GET: the stored answers, by model and metadata."""

    store: ChatStore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        plain, metadata = _without_pairs(scope)
        query = query_of(plain, ListQuery)
        table = await self.store.table()
        found, has_more = await table.page(
            owner(scope),
            limit=query.limit,
            after=query.after,
            ascending=query.order == "asc",
            model=query.model,
            metadata=metadata,
        )
        await answer_json(scope, send, _list([object_of(stored) for stored in found], has_more))


def _without_pairs(scope: Scope) -> tuple[Scope, dict[str, str]]:
    """The call without the pairs of metadata in its query, and these."""
    text = scope.get("query_string", b"").decode("latin-1")
    try:
        fields = parse_qsl(text, keep_blank_values=True, max_num_fields=64, errors="replace")
    except ValueError:
        raise refuse(None, "the query has more than 64 fields; allowed: at most that") from None
    metadata: dict[str, str] = {}
    rest: list[tuple[str, str]] = []
    for name, value in fields:
        pair = _PAIR.fullmatch(name)
        if pair is None:
            rest.append((name, value))
        elif pair.group(1) in metadata:
            raise refuse(name, f"{name!r:.80} is in the query twice; allowed: once")
        else:
            metadata[pair.group(1)] = value
    return {**scope, "query_string": urlencode(rest).encode()}, metadata


@dataclass(frozen=True)
class OneCompletion:
    """GET: one stored answer."""

    store: ChatStore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        stored = await self.store.find(owner(scope), _id(scope))
        if stored is None:
            raise _unknown(scope)
        await answer_json(scope, send, object_of(stored))


@dataclass(frozen=True)
class UpdateCompletion:
    """POST: give a stored answer other metadata."""

    service: Service
    store: ChatStore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        body = await read_body(scope, receive, self.service.options, self.service.bodies)
        fields = parse(body, UpdateCompletionRequest)
        table = await self.store.table()
        stored = await table.set_metadata(owner(scope), _id(scope), fields.metadata or {})
        if stored is None:
            raise _unknown(scope)
        await answer_json(scope, send, object_of(stored))


@dataclass(frozen=True)
class DeleteCompletion:
    """DELETE: forget a stored answer."""

    store: ChatStore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        if not await self.store.delete(owner(scope), _id(scope)):
            raise _unknown(scope)
        answer = {"object": "chat.completion.deleted", "id": _id(scope), "deleted": True}
        await answer_json(scope, send, answer)


@dataclass(frozen=True)
class CompletionMessages:
    """GET .../messages: what a stored answer answered."""

    store: ChatStore

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        query = query_of(scope, MessagesQuery)
        stored = await self.store.find(owner(scope), _id(scope))
        if stored is None:
            raise _unknown(scope)
        messages = messages_of(stored)
        ordered = messages if query.order == "asc" else messages[::-1]
        first = 0
        if query.after is not None:
            place = next((i for i, message in enumerate(ordered) if message["id"] == query.after), None)
            if place is None:
                raise refuse("after", f"after is {query.after!r:.100}, which is no message of this answer")
            first = place + 1
        page = ordered[first : first + query.limit]
        await answer_json(scope, send, _list(page, first + query.limit < len(ordered)))


def _list(data: list[dict[str, Any]], has_more: bool) -> dict[str, Any]:
    return {
        "object": "list",
        "data": data,
        "first_id": data[0]["id"] if data else None,
        "last_id": data[-1]["id"] if data else None,
        "has_more": has_more,
    }


def _id(scope: Scope) -> str:
    return str(scope["path_params"]["completion_id"])


def _unknown(scope: Scope) -> Refusal:
    return refuse(
        None,
        f"there is no stored answer {_id(scope)!r:.100} here; allowed: one that was made with store true",
        code="not_found",
        status=404,
    )


def stored_chat_routes(service: Service, store: ChatStore, create: Handler) -> Sequence[BaseRoute]:
    """The routes of /v1/chat/completions. `create`: what answers a chat, and may hand it to `store`."""
    every = Methods(GET=ListCompletions(store), POST=create)
    one = Methods(
        GET=OneCompletion(store), POST=UpdateCompletion(service, store), DELETE=DeleteCompletion(store)
    )
    path = "/v1/chat/completions/{completion_id}"
    return (
        Route("/v1/chat/completions", every, methods=every.names),
        Route(path, one, methods=one.names),
        Route(f"{path}/messages", CompletionMessages(store), methods=["GET"]),
    )
