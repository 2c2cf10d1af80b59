"""A real server on a real socket around any host, for tests: its own thread, its own event loop."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import uvloop

from stoker.server import ServerOptions, loopback_names, open_socket
from stoker.server.app import build_app
from stoker.server.run import HttpServer
from stoker.server.service import Service, Views
from stoker.state import StateSource


@dataclass
class Served:
    """A server that runs. Its fields may be read from the test's thread."""

    host: Any
    service: Service
    port: int
    loop: asyncio.AbstractEventLoop
    server: HttpServer
    thread: threading.Thread

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def post(self, path: str, body: Any, **headers: str) -> httpx.Response:
        """POST JSON; `body` may be bytes that are sent as they are."""
        content = body if isinstance(body, bytes) else json.dumps(body).encode()
        return httpx.post(
            self.url + path,
            content=content,
            headers={"content-type": "application/json", **headers},
            timeout=20,
            verify=False,  # nothing is encrypted here, and reading certificates takes 0.1 s
        )

    def get(self, path: str, **headers: str) -> httpx.Response:
        return httpx.get(self.url + path, headers=headers, timeout=20, verify=False)

    def chat(self, content: str = "hi", **fields: Any) -> httpx.Response:
        return self.post(
            "/v1/chat/completions", {"messages": [{"role": "user", "content": content}], **fields}
        )

    def complete(self, prompt: Any = "hi", **fields: Any) -> httpx.Response:
        return self.post("/v1/completions", {"prompt": prompt, **fields})

    def stop(self) -> None:
        self.loop.call_soon_threadsafe(self.server.stop)

    def connect(self) -> socket.socket:
        """A bare connection, for clients that misbehave."""
        connection = socket.create_connection(("127.0.0.1", self.port), timeout=20)
        connection.settimeout(20)
        return connection


@contextmanager
def serve(
    host: Any,
    options: ServerOptions | None = None,
    views: Views | None = None,
    state: StateSource | None = None,
) -> Iterator[Served]:
    """Serve `host` for the time of the block. The server has ended, without an error, after it."""
    ready = threading.Event()
    found: list[Served] = []
    errors: list[BaseException] = []

    async def run() -> None:
        listener = open_socket("127.0.0.1", 0)
        app, service = build_app(
            host,
            options or ServerOptions(allowed_hosts=loopback_names("127.0.0.1")),
            views=views,
            state=state,
        )
        server = HttpServer(app, service, listener)
        port = listener.getsockname()[1]
        found.append(
            Served(host, service, port, asyncio.get_running_loop(), server, threading.current_thread())
        )
        await server.run(on_listening=ready.set)

    def work() -> None:
        try:
            uvloop.run(run())
        except BaseException as error:  # told to the test below
            errors.append(error)
        finally:
            ready.set()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    assert ready.wait(20)
    if errors:
        raise errors[0]
    served = found[0]
    try:
        yield served
    finally:
        if thread.is_alive():
            served.stop()
        thread.join(40)
        assert not thread.is_alive(), "the server did not stop"
        assert not errors, errors


def events_of(text: str) -> list[Any]:
    """The JSON objects of a stream of server-sent events; its last one is "[DONE]"."""
    assert text.endswith("\n\n")
    lines = text.removesuffix("\n\n").split("\n\n")
    assert all(line.startswith("data: ") for line in lines)
    found = [line.removeprefix("data: ") for line in lines]
    return [json.loads(line) if line != "[DONE]" else line for line in found]
