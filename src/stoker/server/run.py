"""The server's life in its event loop: start, say so, and drain when it is told to stop."""

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
# After the drain every open request has its error, which only has to be sent.
_LAST_WORDS_S = 2
_LOOK_S = 0.05
_LONGEST_START_S = 60.0  # of a model's load; after it, works begin without one


class _Uvicorn(uvicorn.Server):
    """uvicorn's server, whose own signal handling would end the process by the signal instead of status 0."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class HttpServer:
    """Serves one application on one socket. `run` it once; `stop` it from the same event loop."""

    def __init__(self, app: Any, service: Service, listener: socket.socket) -> None:
        self._service = service
        self._listener = listener
        self._drain: asyncio.Task[None] | None = None
        options = service.options
        self._uvicorn = _Uvicorn(
            uvicorn.Config(
                app,
                http=functools.partial(LimitedProtocol, options, most_connections()),  # type: ignore[arg-type]
                loop="none",  # runs in the caller's
                ws="none",
                lifespan="off",
                log_config=None,
                access_log=False,
                server_header=False,
                proxy_headers=False,
                timeout_keep_alive=options.keep_alive_timeout_s,
                timeout_graceful_shutdown=math.ceil(options.drain_s) + _LAST_WORDS_S,
            )
        )

    async def run(self, *, on_listening: Callable[[], None]) -> None:
        """Serve until `stop`, then until every open request has ended, in time; the host is closed after."""
        started = asyncio.create_task(self._say_when_started(on_listening))
        try:
            await self._uvicorn.serve(sockets=[self._listener])
        finally:
            started.cancel()
            await self._finish()
            await self._service.unwritten.close()
            if self._service.state is not None:
                await self._service.state.close()

    def stop(self) -> None:
        """Take nothing new, let open requests finish for `drain_s`. The second call does not wait."""
        if self._drain is not None:
            self._uvicorn.force_exit = True
            # Which ends their requests, and so the drain; uvicorn waits for the last connection even now.
            for connection in list(self._uvicorn.server_state.connections):
                transport = getattr(connection, "transport", None)
                if transport is not None:
                    transport.abort()
            return
        _LOGGER.info("stopping; open requests: %d", self._service.open_requests)
        self._service.draining = True
        # The listening socket closes at once, each connection after its answer. The host ends what is open
        # after the drain with an error, which is still sent.
        self._drain = asyncio.create_task(self._close(self._service.options.drain_s))
        self._uvicorn.should_exit = True

    async def _finish(self) -> None:
        if self._drain is not None:
            await self._drain
            return
        self._service.draining = True
        await self._close(0.0)

    async def _close(self, drain_s: float) -> None:
        # Works first: what they leave is gone on with by the next life of the server, so nobody waits for it.
        for work in self._service.works:
            await work.close()
        await self._service.host.close(drain_s=drain_s)

    async def _begin_works(self) -> None:
        for work in self._service.works:
            try:
                await work.start()
            except Exception as error:
                _LOGGER.error("%s did not start", type(work).__name__, exc_info=error)

    async def _say_when_started(self, on_listening: Callable[[], None]) -> None:
        while not self._uvicorn.started:
            await asyncio.sleep(0.002)
        on_listening()
        # The first model first: what works import and ask for (a fifth of a second) would lengthen the start.
        patience_s = _LONGEST_START_S
        while not self._service.host.loaded() and patience_s > 0:
            await asyncio.sleep(_LOOK_S)
            patience_s -= _LOOK_S
        await self._begin_works()


async def run_until_signal(server: HttpServer, *, on_listening: Callable[[], None]) -> None:
    """Run `server` in the main thread's event loop until SIGTERM or SIGINT, which drain it."""
    loop = asyncio.get_running_loop()
    for number in _SIGNALS:
        loop.add_signal_handler(number, server.stop)
    try:
        await server.run(on_listening=on_listening)
    finally:
        for number in _SIGNALS:
            loop.remove_signal_handler(number)
