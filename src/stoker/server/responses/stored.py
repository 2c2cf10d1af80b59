"""/v1/responses/{id}: retrieve, follow, cancel, delete, list its input items. Each key sees its own only."""

from __future__ import annotations

from dataclasses import dataclass

import msgspec

from stoker.server.errors import Refusal, refuse
from stoker.server.http import Receive, Scope, Send, answer_bytes, answer_json, owner
from stoker.server.query import query_of
from stoker.server.responses.create import send_followed
from stoker.server.responses.events import after as events_after
from stoker.server.responses.items import Item
from stoker.server.responses.records import Records, dumped, is_background
from stoker.server.responses.runs import BackgroundRuns, unpacked
from stoker.server.responses.schemas import ItemsQuery, RetrieveQuery
from stoker.server.responses.stream import EventStream


@dataclass(frozen=True)
class OneResponse:
    """GET: the response as it stands, or its stream."""

    records: Records
    runs: BackgroundRuns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        query = query_of(scope, RetrieveQuery)
        if query.starting_after is not None and not query.stream:
            raise refuse("starting_after", "starting_after is given, but stream is not true")
        response_id = _id(scope)
        if query.stream:
            await self._stream(scope, receive, send, response_id, query.starting_after)
            return
        answering = self.records.answering(owner(scope), response_id)
        if answering is not None:
            await answer_json(scope, send, answering.response)
            return
        stored = await self.records.find(owner(scope), response_id)
        if stored is None:
            raise _unknown(response_id)
        await answer_bytes(scope, send, 200, stored.body.encode())

    async def _stream(
        self, scope: Scope, receive: Receive, send: Send, response_id: str, after: int | None
    ) -> None:
        run = self.runs.find(owner(scope), response_id)
        if run is not None:
            await send_followed(scope, receive, send, run, after)
            return
        stored = await self.records.find(owner(scope), response_id)
        if stored is None:
            raise _unknown(response_id)
        if stored.events is None:
            why = (
                "is worked on by another server"
                if not stored.is_finished
                else "was not made in the background"
            )
            raise refuse(
                "stream",
                f"the response {response_id} {why}, so there is no stream of it; allowed: stream false",
            )
        events = unpacked(stored.events)
        await EventStream(scope, send).end(events if after is None else events_after(events, after))


@dataclass(frozen=True)
class DeleteResponse:
    """DELETE: forget the response."""

    records: Records
    runs: BackgroundRuns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        response_id = _id(scope)
        run = self.runs.find(owner(scope), response_id)
        if run is not None:
            await self.runs.cancel(run)
        elif self.records.answering(owner(scope), response_id) is not None:
            raise refuse(
                None,
                f"the response {response_id} is still being answered; close its connection first",
                code="not_finished",
                status=409,
            )
        if not await self.records.delete(owner(scope), response_id):
            raise _unknown(response_id)
        await answer_json(scope, send, {"id": response_id, "object": "response", "deleted": True})


@dataclass(frozen=True)
class CancelResponse:
    """POST .../cancel: end a background response; one that has ended stays as it is."""

    records: Records
    runs: BackgroundRuns

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        response_id = _id(scope)
        run = self.runs.find(owner(scope), response_id)
        if run is not None:
            await self.runs.cancel(run)
            await answer_json(scope, send, run.answering.response)
            return
        stored = await self.records.find(owner(scope), response_id)
        if stored is None and self.records.answering(owner(scope), response_id) is None:
            raise _unknown(response_id)
        if stored is None or not is_background(stored.body):
            raise refuse(
                None,
                f"the response {response_id} was not made in the background; closing its connection ends it",
                code="not_in_background",
            )
        if not stored.is_finished:  # another server works on it, which will find that it is too late
            body = {**msgspec.json.decode(stored.body), "status": "cancelled"}
            table = await self.records.table()
            stored = (
                await table.change(stored.id, follows=[stored.status], status="cancelled", body=dumped(body))
                or stored
            )
        await answer_bytes(scope, send, 200, stored.body.encode())


@dataclass(frozen=True)
class InputItems:
    """GET .../input_items: what the response was given, without what it goes on from."""

    records: Records

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        query = query_of(scope, ItemsQuery)
        response_id = _id(scope)
        answering = self.records.answering(owner(scope), response_id)
        items: list[Item]
        if answering is not None:
            items = answering.items
        else:
            stored = await self.records.find(owner(scope), response_id)
            if stored is None:
                raise _unknown(response_id)
            items = msgspec.json.decode(stored.items)
        await answer_json(scope, send, _page(items, query))


def _page(items: list[Item], query: ItemsQuery) -> dict[str, object]:
    ordered = items if query.order == "asc" else items[::-1]
    first = 0
    if query.after is not None:
        place = next((i for i, item in enumerate(ordered) if item["id"] == query.after), None)
        if place is None:
            raise refuse("after", f"after is {query.after!r:.100}, which is no item of this response")
        first = place + 1
    page = ordered[first : first + query.limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else None,
        "last_id": page[-1]["id"] if page else None,
        "has_more": first + query.limit < len(ordered),
    }


def _id(scope: Scope) -> str:
    return str(scope["path_params"]["response_id"])


def _unknown(response_id: str) -> Refusal:
    return refuse(None, f"there is no response {response_id!r:.100} here", code="not_found", status=404)
