"""A small OpenAI endpoint that answers as it is told, over real sockets; and adversarial ones."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any


@dataclass
class FakeEndpoint:
    """Answers /v1/models, /tokenize and streamed completions; a word is a token, and so is each id."""

    token_s: float = 0.0  # between two tokens
    refuses: frozenset[str] = frozenset()  # fields that are answered with 400
    takes_ids: bool = True
    has_tokenize: bool = True
    overhead_tokens: int = 0
    tokens_an_event: int = 1
    tells_usage: bool = True
    fail: Callable[[int], str | None] = lambda number: None  # request number -> how it goes wrong
    asked: list[dict[str, Any]] = field(default_factory=list)  # the bodies of generations, in order

    async def answer(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until it ends."""
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while True:
                head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
                lengths = [
                    int(line.split(":")[1]) for line in head if line.lower().startswith("content-length")
                ]
                body = await reader.readexactly(lengths[0]) if lengths else b""
                await self._route(head[0].split()[1], body, writer)
                await writer.drain()
                if writer.is_closing():
                    return
        writer.close()

    async def _route(self, path: str, body: bytes, writer: asyncio.StreamWriter) -> None:
        if path == "/v1/models":
            return _whole(writer, 200, {"data": [{"id": "fake"}]})
        if path == "/tokenize" and self.has_tokenize:
            words = json.loads(body)["prompt"].split()
            return _whole(writer, 200, {"tokens": [1, *(100 + hash_of(word) for word in words)]})
        if path not in ("/v1/completions", "/v1/chat/completions"):
            return _whole(writer, 404, {"error": {"message": "no such path"}})
        fields = json.loads(body)
        for name in self.refuses & set(fields):
            return _whole(writer, 400, {"error": {"message": f"{name} is not known"}})
        prompt = fields["messages"][0]["content"] if "chat" in path else fields["prompt"]
        if isinstance(prompt, list) and not self.takes_ids:
            return _whole(writer, 400, {"error": {"message": "a prompt is text"}})
        tokens = len(prompt) if isinstance(prompt, list) else len(prompt.split()) + self.overhead_tokens
        usage = {"prompt_tokens": tokens, "completion_tokens": fields.get("max_tokens", 1)}
        if not fields.get("stream"):
            return _whole(writer, 200, {"choices": [{"text": "a"}], "usage": usage})
        self.asked.append(fields)
        await self._stream("chat" in path, fields, usage, writer, self.fail(len(self.asked)))
        return None

    async def _stream(
        self,
        is_chat: bool,
        fields: dict[str, Any],
        usage: dict[str, int],
        writer: asyncio.StreamWriter,
        failure: str | None,
    ) -> None:
        if failure == "busy":
            return _whole(writer, 429, {"error": {"message": "the queue is full"}})
        if failure == "drop":
            writer.close()
            return None
        writer.write(
            b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"
        )
        left = fields["max_tokens"]
        while left:
            await asyncio.sleep(self.token_s)
            count = min(left, self.tokens_an_event)
            left -= count
            text = {"delta": {"content": "a " * count}} if is_chat else {"text": "a " * count}
            if fields.get("return_token_ids"):
                text["token_ids"] = [7] * count
            _event(writer, {"choices": [{"index": 0, "finish_reason": None if left else "length", **text}]})
            if failure == "error":
                _event(writer, {"error": {"message": "the engine died", "code": 500}})
                break
            if failure == "hang":
                await asyncio.sleep(60)
            if failure == "cut":
                writer.close()
                return None
        if self.tells_usage and fields.get("stream_options", {}).get("include_usage"):
            _event(writer, {"choices": [], "usage": usage})
        if failure != "no done":
            _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")
        return None


def hash_of(word: str) -> int:
    """A stable number for a word."""
    return int.from_bytes(word.encode(), "big") % 100_003


def _whole(writer: asyncio.StreamWriter, status: int, value: dict[str, Any]) -> None:
    body = json.dumps(value).encode()
    writer.write(b"HTTP/1.1 %d Said\r\nContent-Length: %d\r\n\r\n%b" % (status, len(body), body))


def _event(writer: asyncio.StreamWriter, value: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(value).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, data: bytes) -> None:
    writer.write(b"%x\r\n%b\r\n" % (len(data), data))


Answer = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]


@contextlib.asynccontextmanager
async def listening(answer: Answer) -> AsyncIterator[str]:
    """A server on a free port of this machine; its URL."""
    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
