"""GET and DELETE of /v1/files: the list, one file, its content, its end."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import BinaryIO
from urllib.parse import quote

from stoker.server.errors import Problem, Refusal
from stoker.server.files.objects import file_object, find_file
from stoker.server.files.schemas import FileQuery, page_object
from stoker.server.http import Header, Receive, Scope, Send, answer_json, owner, request_id
from stoker.server.query import query_of
from stoker.server.service import Service
from stoker.state.content import remove_content

_PIECE_BYTES = 256 << 10


@dataclass(frozen=True)
class ListFiles:
    """The handler of GET /v1/files."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises as `Service.opened_state`, and `RequestError`."""
        query = query_of(scope, FileQuery)
        state = await self.service.opened_state()
        files, has_more = await state.files.page(
            owner(scope),
            limit=query.limit,
            after=query.after,
            ascending=query.order == "asc",
            purpose=query.purpose,
        )
        await answer_json(scope, send, page_object([file_object(file) for file in files], has_more))


@dataclass(frozen=True)
class OneFile:
    """The handler of GET /v1/files/{id}."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal` (404)."""
        state = await self.service.opened_state()
        file = await find_file(state, scope, scope["path_params"]["file_id"])
        await answer_json(scope, send, file_object(file))


@dataclass(frozen=True)
class DeleteFile:
    """The handler of DELETE /v1/files/{id}. A batch that runs on the file has its own name for the content,
    and goes on."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal` (404)."""
        state = await self.service.opened_state()
        file = await find_file(state, scope, scope["path_params"]["file_id"])
        await state.files.delete(owner(scope), file.id)
        if file.place == state.place.id:
            await asyncio.to_thread(remove_content, state.place, file.id)
        await answer_json(scope, send, {"id": file.id, "object": "file", "deleted": True})


@dataclass(frozen=True)
class FileContent:
    """The handler of GET /v1/files/{id}/content: the bytes as they were uploaded, or written by a batch."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal` (404), also for a content that is not in this server's folder."""
        state = await self.service.opened_state()
        file = await find_file(state, scope, scope["path_params"]["file_id"])
        try:
            content = await asyncio.to_thread(open, state.place.content(file.id), "rb")
        except OSError as error:
            where = "" if file.place == state.place.id else ": it is in the folder of another server"
            raise Refusal(
                Problem(
                    404,
                    f"the content of {file.id} is not here{where or f' ({error.strerror})'}",
                    param="file_id",
                    code="content_not_found",
                )
            ) from None
        try:
            await self._send(scope, send, file.name, file.size_bytes, content)
        finally:
            await asyncio.to_thread(content.close)

    async def _send(self, scope: Scope, send: Send, name: str, size_bytes: int, content: BinaryIO) -> None:
        headers: list[Header] = [
            # Never shown by a browser: what was uploaded may be a page with a script.
            (b"content-type", b"application/octet-stream"),
            (b"x-content-type-options", b"nosniff"),
            (b"content-disposition", f"attachment; filename*=UTF-8''{quote(name, safe='')}".encode()),
            (b"content-length", str(size_bytes).encode()),
            (b"x-request-id", request_id(scope).encode()),
        ]
        data = await asyncio.to_thread(content.read, _PIECE_BYTES)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        left = size_bytes
        while left > 0 and data:
            data = data[:left]
            left -= len(data)
            await send({"type": "http.response.body", "body": data, "more_body": True})
            data = await asyncio.to_thread(content.read, _PIECE_BYTES) if left else b""
        await send({"type": "http.response.body", "body": b"", "more_body": False})
