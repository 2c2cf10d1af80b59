"""The child process: one model, one engine, one loop. `python -m stoker.process.worker`, settings on stdin.

Standard input stays open as long as the parent lives: at its end the worker ends too. Standard output carries
heartbeats, from a thread of their own, so that a long step is told from a process that stands still; whatever
else writes to it is sent to standard error. Nothing here knows HTTP or asyncio.
"""

from __future__ import annotations

import gc
import os
import resource
import select
import signal
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import msgspec
import zmq

from stoker.api.errors import StokerError
from stoker.api.events import DoneEvent, Event, Usage
from stoker.api.request import SEEDS, Request
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.engine.text import ScoresEvent, TextEngine
from stoker.grammar.guide import Guides
from stoker.process.compiling import CompilingRequests
from stoker.process.messages import (
    PROTOCOL,
    Abort,
    Command,
    Failed,
    Fatal,
    Open,
    Ready,
    Report,
    Settings,
    Shutdown,
    Stats,
    pack_error,
    pack_events,
)

Load = Callable[[str, LoadOptions], TextEngine]

END_OF_PARENT = 0  # exit statuses, for whoever reads a log
FAILED = 3
_SAVED_AT_ONCE = 8  # blocks, each some hundred KB: a request that comes meanwhile waits a few milliseconds
_COMPILING_POLL_MS = 1  # how often an idle worker looks whether a grammar is ready
_LAST_WORDS_MS = 2000  # how long the last message may take to leave


def main(load: Load | None = None) -> int:
    """Serve until the parent goes or says so; the exit status. `load` makes the engine."""
    for number in (signal.SIGINT, signal.SIGTERM):
        # A Ctrl-C or a service's stop reaches the whole group: the parent drains, and ends this one after.
        signal.signal(number, signal.SIG_IGN)
    pulse_fd = os.dup(1)
    os.dup2(2, 1)
    line = _read_line(0)
    if not line:
        return END_OF_PARENT
    settings = msgspec.json.decode(line, type=Settings)
    steps = StepClock()
    heartbeat_s = settings.heartbeat_ms / 1000
    threading.Thread(target=_pulse, args=(steps, pulse_fd, heartbeat_s), name="pulse", daemon=True).start()
    context = zmq.Context()
    socket = context.socket(zmq.PAIR)
    socket.linger = _LAST_WORDS_MS
    try:
        socket.connect(settings.address)
        return _serve(settings, socket, steps, load or _load)
    finally:
        socket.close()
        context.term()


def _load(model: str, options: LoadOptions) -> TextEngine:
    return load_text_engine(model, options, seeds=_NoSeeds(), clock_ms=lambda: time.perf_counter() * 1000)


def _serve(settings: Settings, socket: zmq.Socket[bytes], steps: StepClock, load: Load) -> int:
    encoder = msgspec.msgpack.Encoder()
    try:
        options = msgspec.json.decode(settings.options, type=LoadOptions)
        engine = load(settings.model, options)
        # What was loaded stays: the collector need not look at it again and again between steps.
        gc.collect()
        gc.freeze()
        ready = Ready(
            PROTOCOL, settings.secret, engine.engine.context_tokens, engine.engine.vocabulary,
            resident_bytes(), options.kv_bytes, engine.pooling,
        )  # fmt: skip
        socket.send(encoder.encode(ready))
        for note in engine.notes:
            print(note, file=sys.stderr, flush=True)
        Worker(engine, socket, steps).run()
        engine.engine.close()
    except StokerError as error:
        socket.send(encoder.encode(Fatal(pack_error(error))))
        return FAILED
    return END_OF_PARENT


class Worker:
    """Takes all commands that wait, advances the engine by one step, sends what came of it; and again."""

    def __init__(self, engine: TextEngine, socket: zmq.Socket[bytes], steps: StepClock | None = None) -> None:
        self._engine = engine
        self._socket = socket
        self._steps = steps or StepClock()
        self._encode = msgspec.msgpack.Encoder().encode
        self._decode = msgspec.msgpack.Decoder(Command).decode
        # Requests with a deadline and without a token: when it passes, and what their end will say.
        self._due: dict[str, tuple[float, Open]] = {}
        self._queues = QueueTimes()
        self._compiling = CompilingRequests(engine.guides)
        self._ending = False

    def run(self) -> None:
        """Until `Shutdown`. Raises what a failed step raises: its requests go to a new worker."""
        while self._take_commands():
            if self._compiling:
                self._open_compiled()
            if self._due:
                self._abort_late()
            if self._engine.busy:
                self._step()

    def _step(self) -> None:
        started_s = self._steps.begin()
        events = self._engine.step()
        self._engine.engine.observe((self._steps.end() - started_s) * 1000)
        self._queues.leave(self._engine.engine.scheduler.admitted, started_s)
        if not events:
            return
        message = pack_events([self._queues.told(e) for e in events if not isinstance(e, ScoresEvent)])
        if self._due:
            for event in events:
                self._due.pop(event.request_id, None)
        self._send(message)

    def _take_commands(self) -> bool:
        """Carry out what waits; without work, wait for some. False at the end."""
        frame = None if self._engine.busy else self._idle()
        while not self._ending:
            if frame is None:
                try:
                    frame = self._socket.recv(zmq.NOBLOCK)
                except zmq.Again:
                    return True
            self._obey(self._decode(frame))
            frame = None
        return False

    def _idle(self) -> bytes | None:
        """Save prefixes while nothing else waits; the next command, or none once there is something to do."""
        while not self._socket.poll(0) and self._engine.engine.save_prefixes(_SAVED_AT_ONCE):
            pass
        while self._compiling and not self._socket.poll(_COMPILING_POLL_MS):
            self._open_compiled()
            if self._engine.busy:
                return None
        return self._socket.recv()

    def _obey(self, command: Command) -> None:
        if isinstance(command, Open):
            self._open(command)
        elif isinstance(command, Abort):
            self._due.pop(command.key, None)
            self._queues.forget(command.key)
            self._compiling.forget(command.key)
            self._engine.abort(command.key)
        elif isinstance(command, Shutdown):
            self._ending = True
        else:
            self._send(Stats(self._engine.engine.stats()))

    def _open_compiled(self) -> None:
        for command, guides in self._compiling.take():
            if isinstance(guides, StokerError):
                self._send(Failed(command.key, pack_error(guides)))
            else:
                self._open(command, guides)

    def _open(self, command: Open, guides: Guides | None = None) -> None:
        sampling = command.sampling
        if guides is None and (sampling.constraint is not None or sampling.thinking is not None):
            self._compiling.add(command)
            return
        request = Request(
            command.key, (), command.sampling, priority=command.priority, tenant=command.tenant,
            cache_salt=command.cache_salt, resume=command.resume, background=command.background,
            pooling=command.pooling,
        )  # fmt: skip
        due_s = None if command.deadline_ms is None else time.monotonic() + command.deadline_ms / 1000
        # The engine gets a number that grows with time, and never asks what time it is.
        deadline = None if due_s is None else int(due_s * 1000)
        try:
            self._engine.open(
                request, command.prompt_ids, deadline=deadline, guides=guides, prediction=command.prediction
            )
        except StokerError as error:
            self._send(Failed(command.key, pack_error(error)))
            return
        complete = sum(tokens is None for tokens in command.resume)
        self._queues.enter(command.key, command.sampling.n - complete)
        if due_s is not None:
            self._due[command.key] = (due_s, command)

    def _abort_late(self) -> None:
        now_s = time.monotonic()
        late = [command for due_s, command in self._due.values() if due_s <= now_s]
        for command in late:
            del self._due[command.key]
            self._queues.forget(command.key)
            self._engine.abort(command.key)
            usage = Usage(len(command.prompt_ids), 0)
            seed = command.sampling.seed or 0
            ends: list[Event] = [
                DoneEvent(command.key, choice, "abort", "deadline", (seed + choice) % SEEDS, usage)
                for choice in range(command.sampling.n)
            ]
            self._send(pack_events(ends))

    def _send(self, report: Report) -> None:
        self._socket.send(self._encode(report))


class QueueTimes:
    """How long each open request waited for its first step. Written and read by the loop."""

    def __init__(self) -> None:
        self._entered_s: dict[str, float] = {}  # until its first step
        self._waited: dict[str, tuple[float, int]] = {}  # milliseconds, and choices that have not ended

    def enter(self, key: str, choices: int) -> None:
        """A request was taken."""
        self._entered_s[key] = time.monotonic()
        self._waited[key] = 0.0, choices

    def leave(self, keys: list[str], now_s: float) -> None:
        """These are computed by the step that began now."""
        for key in keys:
            entered_s = self._entered_s.pop(key, None)
            if entered_s is not None:
                self._waited[key] = max(now_s - entered_s, 0.0) * 1000, self._waited[key][1]

    def told(self, event: Event) -> Event:
        """The event; the end of a choice with how long its request waited."""
        if not isinstance(event, DoneEvent) or event.request_id not in self._waited:
            return event
        waited_ms, choices = self._waited[event.request_id]
        if choices > 1:
            self._waited[event.request_id] = waited_ms, choices - 1
        else:
            self.forget(event.request_id)
        return replace(event, queue_ms=waited_ms)

    def forget(self, key: str) -> None:
        """A request is no longer open."""
        self._entered_s.pop(key, None)
        self._waited.pop(key, None)


class StepClock:
    """When the step under way began; written by the loop, read by the pulse."""

    def __init__(self) -> None:
        self._began_s: float | None = None

    def begin(self) -> float:
        """A step begins now; in seconds."""
        self._began_s = time.monotonic()
        return self._began_s

    def end(self) -> float:
        """It is over; in seconds."""
        self._began_s = None
        return time.monotonic()

    @property
    def elapsed_ms(self) -> int:
        """How long the step under way has taken; 0 between steps."""
        began_s = self._began_s
        return 0 if began_s is None else int((time.monotonic() - began_s) * 1000)


class _NoSeeds:
    """The parent draws every seed: a request that moves to another worker keeps its own."""

    def draw(self) -> int:
        raise AssertionError("a request came without a seed")


def _pulse(steps: StepClock, out_fd: int, interval_s: float) -> None:
    """Say now and then how long the step under way has taken; end the process when the parent is gone."""
    try:
        while True:
            os.write(out_fd, b"%d\n" % steps.elapsed_ms)
            if select.select([0], [], [], interval_s)[0] and not os.read(0, 4096):
                break
    except OSError as error:
        sys.stderr.write(f"the parent's pipe broke: {error}\n")
    # Threads of the engine may be in the middle of a step: nothing of theirs needs to be kept.
    os._exit(END_OF_PARENT)


def _read_line(fd: int) -> bytes:
    """One line, and not a byte more: the thread that watches the pipe must see what follows."""
    line = bytearray()
    while (byte := os.read(fd, 1)) and byte != b"\n":
        line += byte
    return bytes(line)


def resident_bytes() -> int:
    """Memory of this process that is in use now (where the system does not tell: at most so far)."""
    try:
        return int(Path("/proc/self/statm").read_text("ascii").split()[1]) * resource.getpagesize()
    except (OSError, ValueError, IndexError):
        most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return most if sys.platform == "darwin" else most * 1024


if __name__ == "__main__":
    # Without taking the model apart first: the system frees memory faster, and nothing of it is written.
    os._exit(main())
