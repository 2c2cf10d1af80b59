"""The server's life in its event loop: start, say so, and drain when a signal comes."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import logging
import math
import signal
import socket
from collections.abc import Callable, Iterator
from typing import Any

import uvicorn

from stoker.server.limits import LimitedProtocol
from stoker.server.listen import most_connections
from stoker.server.service import Service

_LOGGER = logging.getLogger("stoker.server")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
# After the drain every open request has had an error, which only has to be sent.
_LAST_WORDS_S = 2


class _Server(uvicorn.Server):
    """uvicorn's server, whose own signal handling would end the process by the signal instead of status 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


async def run_server(
    app: Any, service: Service, listener: socket.socket, *, on_listening: Callable[[], None]
) -> None:
    """Serve until SIGTERM or SIGINT, then drain: refuse what is new, let open requests finish in time, close
    the host. A second signal does not wait. Runs in the main thread's event loop."""
    server = _Server(
        uvicorn.Config(
            app,
            http=functools.partial(LimitedProtocol, service.options, most_connections()),  # type: ignore[arg-type]
            loop="none",  # runs in ours
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_keep_alive=service.options.keep_alive_timeout_s,
            timeout_graceful_shutdown=math.ceil(service.options.drain_s) + _LAST_WORDS_S,
        )
    )
    stop = _Stop(server, service)
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, stop.on_signal)
    started = asyncio.create_task(_call_when_started(server, on_listening))
    try:
        await server.serve(sockets=[listener])
    finally:
        started.cancel()
        await stop.finish()
        for number in _SIGNALS:
            loop.remove_signal_handler(number)


async def _call_when_started(server: uvicorn.Server, on_listening: Callable[[], None]) -> None:
    while not server.started:
        await asyncio.sleep(0.002)
    on_listening()


class _Stop:
    """What signals do. Owns the drain, which is started at most once."""

    def __init__(self, server: uvicorn.Server, service: Service) -> None:
        self._server = server
        self._service = service
        self._drain: asyncio.Task[None] | None = None

    def on_signal(self) -> None:
        """The first one drains, the second one ends."""
        if self._drain is None:
            _LOGGER.info("stopping: %d requests are open", self._service.open_requests)
            self._service.draining = True
            # The listening socket closes at once, each connection after its answer. The host ends what is
            # open after the drain, with an error that is still sent.
            self._drain = asyncio.create_task(self._service.host.close(drain_s=self._service.options.drain_s))
            self._server.should_exit = True
        else:
            self._server.force_exit = True

    async def finish(self) -> None:
        """Wait for the host to be closed, whatever ended the server."""
        if self._drain is None:
            self._service.draining = True
            await self._service.host.close(drain_s=0.0)
        elif self._server.force_exit:
            self._drain.cancel()
            await self._service.host.close(drain_s=0.0)
        else:
            await self._drain
