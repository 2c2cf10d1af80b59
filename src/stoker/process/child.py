"""One run of a worker: started, listened to, watched, ended. Knows nothing of requests.

Lives in the event loop that started it. The socket is read from that loop when its descriptor says so: a
message for each engine step wakes the loop once, without a thread or a future in between.
"""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import shutil
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import msgspec
import zmq

from stoker.api.errors import StokerError, UnavailableError
from stoker.process.messages import (
    PROTOCOL,
    Command,
    Fatal,
    Ready,
    Report,
    Settings,
    Shutdown,
    unpack_error,
)
from stoker.process.options import ProcessOptions

_LOG = logging.getLogger(__name__)

# -P: a folder named numpy where the server was started must not become the worker's numpy.
WORKER_COMMAND = (sys.executable, "-P", "-m", "stoker.process.worker")
_LAST_LINES = 20  # of standard error, kept for the message when a worker dies
_LINE_CHARS = 2000  # of each of them
# Packing a large model's weights may hold the interpreter for seconds, and with it the heartbeat's thread.
_LOAD_SILENCE_S = 60.0
# From Shutdown to the worker's end: the step under way, and saving prefixes where a disk keeps them.
_GOODBYE_S = 10.0
_IPC_PATH_BYTES = 100  # sun_path holds 104 to 108 with its zero


class WorkerProcess:
    """A running worker. `ready` and `ended` are futures; reports go to `on_report` as they come."""

    def __init__(
        self,
        process: Process,
        socket: zmq.Socket[bytes],
        folder: Path | None,
        secret: str,
        options: ProcessOptions,
        on_report: Callable[[Report], None],
    ) -> None:
        """Use `start`."""
        self._loop = asyncio.get_running_loop()
        self.ready: asyncio.Future[Ready] = self._loop.create_future()
        self.ended: asyncio.Future[StokerError] = self._loop.create_future()  # why; set once it is gone
        self._process = process
        self._socket = socket
        self._folder = folder  # where the socket's path lies, until the worker is there
        self._secret = secret
        self._options = options
        self._on_report = on_report
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Report).decode
        self._heard_s = self._started_s = time.monotonic()
        self._step_ms = 0  # how long the step under way had taken when the heart last beat
        self._reason: StokerError | None = None  # known before the end: what it said, or why it was killed
        self._last_lines: deque[str] = deque(maxlen=_LAST_LINES)
        self._loop.add_reader(socket.fileno(), self._drain)
        self._tasks = tuple(
            asyncio.create_task(work) for work in (self._read_pulse(), self._read_errors(), self._watch())
        )
        self._wait = asyncio.create_task(self._await_end())

    @classmethod
    async def start(
        cls,
        context: zmq.Context[zmq.Socket[bytes]],
        model: Path,
        load_options: object,
        options: ProcessOptions,
        on_report: Callable[[Report], None],
        *,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> WorkerProcess:
        """Start a worker for a model file; it loads on its own time (`ready`).

        `load_options`: a `LoadOptions`. Raises `UnavailableError` if the process cannot be started.
        """
        try:
            socket = context.socket(zmq.PAIR)
        except zmq.ZMQError as error:
            raise UnavailableError(f"the engine's process cannot be started: {error}") from error
        socket.linger = 0
        socket.set_hwm(0)  # what may be open is bounded by max_waiting; a send never waits
        try:
            address, folder = _bind(socket)
            settings = Settings(
                address, secrets.token_hex(16), str(model),
                msgspec.Raw(msgspec.json.encode(load_options)), options.heartbeat_ms,
            )  # fmt: skip
            try:
                process = await asyncio.create_subprocess_exec(
                    *command, stdin=PIPE, stdout=PIPE, stderr=PIPE,
                    env=_environment(), start_new_session=True,
                )  # fmt: skip
            except BaseException:
                _remove(folder)
                raise
        except (OSError, zmq.ZMQBaseError) as error:  # most of zmq's errors are no OSErrors
            socket.close()
            raise UnavailableError(f"the engine's process cannot be started: {error}") from error
        except BaseException:
            socket.close()
            raise
        assert process.stdin is not None
        process.stdin.write(msgspec.json.encode(settings) + b"\n")
        return cls(process, socket, folder, settings.secret, options, on_report)

    @property
    def pid(self) -> int:
        """Of the worker's process."""
        return self._process.pid

    async def started(self) -> Ready:
        """Its facts, once it has loaded. Raises why it ended, if it does so before."""
        await asyncio.wait((self.ready,))  # is cancelled at the worker's end
        if self.ended.done():
            raise self.ended.result()
        return self.ready.result()

    def send(self, command: Command) -> None:
        """Hand a command to the worker; does not wait. Raises ValueError for what msgpack cannot hold."""
        frame = self._encode(command)
        with suppress(zmq.ZMQError):  # it is gone: `ended` tells, and its requests are sent again
            self._socket.send(frame, zmq.NOBLOCK)
        # Sending may take the notice that something came in, and the descriptor does not tell twice.
        if not self._socket.closed and int(self._socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN:
            self._loop.call_soon(self._drain)

    def kill(self, reason: StokerError) -> None:
        """End it at once; `ended` follows, with this reason."""
        if self._reason is None:
            self._reason = reason
        with suppress(ProcessLookupError):
            self._process.kill()

    async def close(self) -> None:
        """Ask it to end, make it end, let go of everything."""
        if not self.ended.done():
            if self.ready.done():
                self.send(Shutdown())
                await asyncio.wait([self.ended], timeout=_GOODBYE_S)
            self.kill(UnavailableError("the engine was shut down"))
        await self._wait

    # --- from the worker ---

    def _drain(self) -> None:
        """Take all messages that are there."""
        socket, decode = self._socket, self._decode
        while not socket.closed:
            try:
                frame = socket.recv(zmq.NOBLOCK)
            except zmq.Again:
                return
            except zmq.ZMQError as error:
                self.kill(UnavailableError(f"the engine's socket failed: {error}"))
                return
            try:
                report = decode(frame)
            except (msgspec.MsgspecError, ValueError) as error:
                self.kill(UnavailableError(f"the engine sent what is not a message: {error}"))
                return
            self._take(report)

    def _take(self, report: Report) -> None:
        if isinstance(report, Fatal):
            self._reason = unpack_error(report.error)
        elif isinstance(report, Ready):
            self._welcome(report)
        elif self.ready.done():
            self._on_report(report)

    def _welcome(self, report: Ready) -> None:
        if report.protocol != PROTOCOL or not secrets.compare_digest(report.secret, self._secret):
            self.kill(
                UnavailableError(
                    f"the engine speaks version {report.protocol}; allowed: {PROTOCOL}",
                    hint="restart the server: Stoker was installed anew while it ran",
                )
            )
            return
        self._remove_folder()
        if not self.ready.done():
            self.ready.set_result(report)

    async def _read_pulse(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            self._heard_s = time.monotonic()
            with suppress(ValueError):
                self._step_ms = int(line)

    async def _read_errors(self) -> None:
        stream = self._process.stderr
        assert stream is not None
        while piece := await stream.read(1 << 16):
            for line in piece.decode("utf-8", "replace").splitlines():
                if line.strip():
                    _LOG.warning("engine %d: %s", self.pid, line[:_LINE_CHARS])
                    self._last_lines.append(line.strip()[:_LINE_CHARS])

    async def _watch(self) -> None:
        """Kill it when it stands still. What it said while this loop was busy counts."""
        options = self._options
        interval_s = options.heartbeat_ms / 1000
        while True:
            before_s = time.monotonic()
            await asyncio.sleep(interval_s)
            now_s = time.monotonic()
            if now_s - before_s > 2 * interval_s:
                continue  # this loop stood still itself: let it read what came meanwhile
            loading = not self.ready.done()
            silence_s = now_s - self._heard_s
            if silence_s > (max(_LOAD_SILENCE_S, options.silence_s) if loading else options.silence_s):
                self.kill(UnavailableError(f"the engine stood still: not a word for {silence_s:.1f} s"))
            elif self._step_ms / 1000 > options.step_limit_s:
                self.kill(UnavailableError(f"the engine stood still: a step took {self._step_ms} ms"))
            elif loading and now_s - self._started_s > options.load_limit_s:
                self.kill(UnavailableError(f"the model was not loaded after {now_s - self._started_s:.0f} s"))

    async def _await_end(self) -> None:
        status = await self._process.wait()
        pulse, errors, watch = self._tasks
        watch.cancel()
        # What it wrote last is in the pipes; a child of its own that holds them open is not waited for.
        await asyncio.wait([pulse, errors], timeout=0.5)
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        self._drain()
        self._loop.remove_reader(self._socket.fileno())
        self._remove_folder()
        self._socket.close()
        self.ended.set_result(self._reason or self._death(status))
        if not self.ready.done():
            self.ready.cancel()

    def _death(self, status: int) -> UnavailableError:
        how = f"was ended by signal {-status}" if status < 0 else f"ended with status {status}"
        lines = "; ".join(self._last_lines)[-_LINE_CHARS:]
        return UnavailableError(f"the engine's process {how}{f': {lines}' if lines else ''}")

    def _remove_folder(self) -> None:
        """Once connected, the path is not needed: nothing is left behind, whatever becomes of this process.

        The socket itself goes on listening where nobody finds it: unbinding it would cut the connection.
        """
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def _bind(socket: zmq.Socket[bytes]) -> tuple[str, Path | None]:
    """Listen where only this user can connect, if possible; the address, and the folder to be removed."""
    folder = Path(tempfile.mkdtemp(prefix="stoker-"))  # mode 0700
    address = f"ipc://{folder / 'engine'}"
    if zmq.has("ipc") and len(os.fsencode(address)) < _IPC_PATH_BYTES:
        try:
            socket.bind(address)
            return address, folder
        except zmq.ZMQError as error:
            if error.errno not in (zmq.EPROTONOSUPPORT, zmq.ENOTSUP):
                _remove(folder)
                raise
    _remove(folder)
    port = socket.bind_to_random_port("tcp://127.0.0.1")
    return f"tcp://127.0.0.1:{port}", None


def _remove(folder: Path | None) -> None:
    if folder is not None:
        shutil.rmtree(folder, ignore_errors=True)


def _environment() -> dict[str, str]:
    """The worker finds its modules where this process finds them, however that was arranged."""
    return {**os.environ, "PYTHONPATH": os.pathsep.join(entry or os.getcwd() for entry in sys.path)}
