"""A model in a process of its own, as a `ServedModel`. The worker may die; its readers see a pause.

Everything here runs in one event loop, the one that `start` was called in. What the worker gave is kept per
choice, so that a new worker goes on at the next token: the same tokens come, because nothing but prompt,
parameters, seed and position decides them.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import zmq

from stoker.api.errors import EngineError, QueueFullError, RequestError, StokerError, UnavailableError
from stoker.api.events import DoneEvent, EmbeddingEvent, Event, PromptEvent, TokensEvent
from stoker.api.protocols import ModelCard, SeedSource
from stoker.api.request import Pooling, Prompt, Request
from stoker.api.stats import EngineStats
from stoker.process.answer import Answer
from stoker.process.child import WORKER_COMMAND, WorkerProcess
from stoker.process.messages import (
    Abort,
    Events,
    Failed,
    Ready,
    Report,
    Stats,
    StatsQuery,
    unpack_done,
    unpack_error,
    unpack_logprobs,
    unpack_scored,
)
from stoker.process.options import ProcessOptions
from stoker.process.prompts import PromptEncoder, open_tokenizer
from stoker.tokenizer import Tokenizer
from stoker.weights.digest import model_digest

_LOG = logging.getLogger(__name__)

# Workers die for reasons of their own more often than for a request's: only what was there each time, and of
# which nothing came, is held to be the cause. From the second time on such requests are tried one by one.
_SUSPECT_STRIKES = 2
_MOST_STRIKES = 3
# Before restart 1, 2, ... in a row; the last for all after it. The first costs a reader only the loading.
_BACKOFF_S = (0.0, 0.5, 1.0, 2.0, 4.0)
_STEADY_S = 30.0  # a worker that lived so long did not fail at its start: the row begins anew
_QUEUE_AGAIN_S = 0.2
_STATS_WAIT_S = 1.0  # a long step is not waited for: the last known numbers do


class ProcessEndpoint:
    """One model's worker, supervised. Get one from `start`; `close` it, or use it in `async with`."""

    def __init__(
        self,
        path: Path,
        load_options: object,
        options: ProcessOptions,
        *,
        seeds: SeedSource,
        name: str,
        tokenizer: Tokenizer,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> None:
        """Use `start`. `command`: what runs as the worker, for tests."""
        self.path = path
        self.name = name
        self.tokenizer = tokenizer
        self._load_options = load_options
        self._options = options
        self._seeds = seeds
        self._command = command
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._created_s = int(path.stat().st_mtime) if path.exists() else 0
        self._version = _version_of(path)
        self._digest: str | None = None  # of the model's files
        self._facts: Ready | None = None  # of the last worker that was ready
        self._prompts = PromptEncoder(tokenizer, name=name, context_tokens=1)
        self._worker: WorkerProcess | None = None  # takes requests
        self._last_worker: WorkerProcess | None = None  # also one that is starting
        self._supervisor: asyncio.Task[None] | None = None
        self._answers: dict[str, Answer] = {}  # open ones by key, in the order of arrival
        self._request_ids: set[str] = set()  # theirs
        self._unsent: deque[Answer] = deque()
        self._trial: Answer | None = None  # the suspect that the worker has to itself until something comes
        self._any_progress = False  # any token from the worker that runs
        self._waiting = 0  # answers without a token
        self._first_tokens_s: deque[float] = deque(maxlen=32)  # when the last ones got theirs
        self._keys = 0
        self._draining = False
        self._down: StokerError | None = None  # why no worker will come any more
        self._idle = asyncio.Event()
        self._idle.set()
        self._stats = EngineStats()
        self._stats_reply: asyncio.Future[None] | None = None
        self.restarts = 0

    @classmethod
    async def start(
        cls,
        path: Path,
        load_options: object,
        options: ProcessOptions | None = None,
        *,
        seeds: SeedSource,
        name: str | None = None,
        tokenizer: Tokenizer | None = None,
        command: Sequence[str] = WORKER_COMMAND,
    ) -> ProcessEndpoint:
        """Start a worker for the model file at `path` and wait until it has loaded it.

        `load_options`: an `engine.load.LoadOptions`. `name`: in cards and messages (none: the file's stem).
        Raises what loading raises (`ModelFormatError`, `CapacityError`, `RequestError`), or
        `UnavailableError` if the worker dies at its start.
        """
        starting = cls(
            path, load_options, options or ProcessOptions(), seeds=seeds, name=name or path.stem,
            tokenizer=tokenizer or open_tokenizer(path), command=command,
        )  # fmt: skip
        # While the worker reads the file, too: what answers are traced to is known before the first of them.
        hashing = asyncio.create_task(starting._learn_digest())
        try:
            worker = await starting._launch()
            await hashing
        except BaseException:
            hashing.cancel()
            await starting.close(drain_s=0)
            raise
        starting._supervisor = asyncio.create_task(starting._supervise(worker))
        return starting

    async def _learn_digest(self) -> None:
        with suppress(OSError, StokerError):  # the worker says why, if it is the file
            self._digest = await asyncio.to_thread(model_digest, self.path)

    async def __aenter__(self) -> ProcessEndpoint:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close(drain_s=0)

    # --- what it says of itself ---

    @property
    def card(self) -> ModelCard:
        """Name, context, digest and age of the file."""
        context_tokens = None if self._facts is None else self._facts.context_tokens
        return ModelCard(self.name, self._down is None, context_tokens, self._digest, self._created_s)

    @property
    def ready(self) -> bool:
        """True while a worker runs that can produce a token."""
        return self._worker is not None and not self._draining

    @property
    def is_down(self) -> bool:
        """True once it was given up or closed: only a new endpoint can serve the model."""
        return self._down is not None

    @property
    def has_chat_template(self) -> bool:
        """False for a base model."""
        return self._prompts.has_chat_template

    @property
    def pooling(self) -> Pooling | None:
        """How its embeddings are made unless a request says otherwise; none: every request must."""
        return None if self._facts is None else self._facts.pooling

    @property
    def chat_template(self) -> str | None:
        """The source of the model's template; none for a base model."""
        return self.tokenizer.chat_template or None

    @property
    def open_requests(self) -> int:
        """Requests that are not complete."""
        return len(self._answers)

    @property
    def memory_bytes(self) -> int:
        """What the worker takes at most: resident after loading, and the whole KV cache it may fill."""
        return 0 if self._facts is None else self._facts.resident_bytes + self._facts.kv_bytes

    @property
    def worker_pid(self) -> int | None:
        """The worker's process; none between two workers."""
        return None if self._worker is None else self._worker.pid

    async def stats(self) -> EngineStats:
        """The engine's counters; the last known ones while it restarts or a long step runs."""
        if self._worker is not None:
            if self._stats_reply is None:
                self._stats_reply = asyncio.get_running_loop().create_future()
                self._worker.send(StatsQuery())
            await asyncio.wait([self._stats_reply], timeout=_STATS_WAIT_S)
        return self._stats

    async def encode(self, prompt: Prompt, *, add_generation_prompt: bool = True) -> list[int]:
        """Token ids of a prompt, as `generate` would use them. Raises `RequestError`, `TemplateError`."""
        return await self._prompts.encode(prompt, add_generation_prompt=add_generation_prompt)

    def decode(self, token_ids: list[int]) -> str:
        """The text of token ids, special tokens included. Raises `RequestError` for an unknown id."""
        return self.tokenizer.decode(token_ids, skip_special=False)

    def token_bytes(self, token_id: int) -> bytes:
        """What one token stands for. Raises `RequestError` for an unknown id."""
        return self.tokenizer.token_bytes(token_id)

    # --- requests ---

    async def generate(self, request: Request) -> AsyncIterator[Event]:
        """Answer `request`; see `stoker.api.protocols.Endpoint`. While the worker restarts, it waits.

        Raises also `QueueFullError`, and `UnavailableError` once the model is given up or closed.
        """
        self._refuse_if_unavailable()
        prompt_ids = await self._prompts.encode(request.prompt)
        prediction = await self._prompts.encode_prediction(request.prediction)
        answer = self._admit(request, prompt_ids, prediction)
        try:
            open_choices = answer.open_choices
            while open_choices:
                for item in await answer.take():
                    if isinstance(item, Exception):
                        raise item
                    if isinstance(item, DoneEvent):
                        open_choices -= 1
                    yield item
        finally:
            if not answer.closed:
                self._abort(answer)

    async def close(self, *, drain_s: float) -> None:
        """Take nothing new, let what is open finish for at most `drain_s`, end the worker."""
        self._draining = True
        if self._answers and drain_s > 0:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._idle.wait(), drain_s)
        self._give_up(UnavailableError(f"{self.name} was shut down"))
        if self._supervisor is not None:
            self._supervisor.cancel()
            await asyncio.wait([self._supervisor])
        if self._last_worker is not None:
            await self._last_worker.close()
        self._context.destroy(linger=0)

    def _refuse_if_unavailable(self) -> None:
        if self._down is not None:
            raise UnavailableError(self._down.message, hint=self._down.hint)
        if self._draining:
            raise UnavailableError(f"{self.name} is shutting down; it takes no new requests")

    def _admit(self, request: Request, prompt_ids: list[int], prediction: tuple[int, ...]) -> Answer:
        self._refuse_if_unavailable()
        if request.request_id in self._request_ids:
            raise RequestError(
                f"request id {request.request_id!r:.80} is open already; allowed: one that is not"
            )
        if self._waiting >= self._options.max_waiting:
            raise QueueFullError(
                f"{self._waiting} requests wait for {self.name}; allowed: {self._options.max_waiting}",
                retry_after_s=self._retry_after_s(),
            )
        if request.resume and all(tokens is None for tokens in request.resume):
            raise RequestError("resume has only complete choices; allowed: at least one that goes on")
        self._keys += 1
        seed = self._seeds.draw() if request.sampling.seed is None else request.sampling.seed
        answer = Answer(str(self._keys), request, prompt_ids, seed, prediction)
        self._answers[answer.key] = answer
        self._request_ids.add(request.request_id)
        self._waiting += answer.waiting
        self._idle.clear()
        self._unsent.append(answer)
        self._send_waiting()
        return answer

    def _abort(self, answer: Answer) -> None:
        answer.closed = True
        if answer.sent and self._worker is not None:
            self._worker.send(Abort(answer.key))
        self._forget(answer)

    def _forget(self, answer: Answer) -> None:
        answer.closed = True
        if self._answers.pop(answer.key, None) is None:
            return
        self._request_ids.discard(answer.request.request_id)
        self._waiting -= answer.waiting
        if not self._answers:
            self._idle.set()
        if answer is self._trial:
            self._trial = None
            self._send_waiting()

    def _retry_after_s(self) -> float:
        """When a place is likely to be free: as long as the last requests took to get their first token."""
        times = self._first_tokens_s
        if len(times) < 2:
            return 1.0
        return min(max((times[-1] - times[0]) / (len(times) - 1), 1.0), 60.0)

    def _send_waiting(self) -> None:
        """Send what the worker has not heard of; behind a suspect everything waits until it is cleared."""
        worker = self._worker
        while worker is not None and self._trial is None and self._unsent:
            answer = self._unsent.popleft()
            if answer.closed:
                continue
            try:
                worker.send(answer.message())
            except (ValueError, OverflowError) as error:  # a lone surrogate, a number past 64 bits
                answer.fail(RequestError(f"the request cannot be passed on: {error}"))
                self._forget(answer)
                continue
            answer.sent, answer.progressed = True, False
            if answer.strikes >= _SUSPECT_STRIKES:
                self._trial = answer

    # --- from the worker ---

    def _on_report(self, report: Report) -> None:
        if isinstance(report, Events):
            self._on_events(report)
        elif isinstance(report, Failed):
            self._on_refusal(report)
        elif isinstance(report, Stats):
            self._stats = replace(report.stats, restarts=self.restarts)
            if self._stats_reply is not None:
                self._stats_reply.set_result(None)
                self._stats_reply = None

    def _on_refusal(self, report: Failed) -> None:
        answer = self._answers.get(report.key)
        if answer is None:
            return
        error = unpack_error(report.error)
        if isinstance(error, QueueFullError) and answer.resent:
            # It had its place: those that ran beside the queue are all in the new worker's queue now.
            answer.sent = False
            self._unsent.append(answer)
            asyncio.get_running_loop().call_later(_QUEUE_AGAIN_S, self._send_waiting)
            return
        answer.fail(error)
        self._forget(answer)

    def _on_events(self, report: Events) -> None:
        answers = self._answers
        if report.prompts or report.embeddings:
            self._on_prompts(report)
        for key, choice, token_ids, text in report.rows:
            answer = answers.get(key)
            if answer is None or (given := answer.given[choice]) is None:
                continue  # dropped while this was on its way
            given += token_ids
            if not answer.progressed:
                self._on_progress(answer)
            answer.put(TokensEvent(answer.request.request_id, choice, token_ids, text))
        for scored in report.scored:
            answer = answers.get(scored[0])
            if answer is None or (given := answer.given[scored[1]]) is None:
                continue
            given += scored[2]
            if not answer.progressed:
                self._on_progress(answer)
            answer.put(unpack_scored(answer.request.request_id, scored))
        for row in report.done:
            answer = answers.get(row[0])
            if answer is not None and answer.complete(unpack_done(answer.request.request_id, row)):
                self._forget(answer)

    def _on_prompts(self, report: Events) -> None:
        """What is said of prompts, and not of a choice."""
        for key, logprobs in report.prompts:
            answer = self._answers.get(key)
            if answer is not None and not answer.scored:  # a worker that starts again scores again
                answer.scored = True
                answer.put(PromptEvent(answer.request.request_id, unpack_logprobs(logprobs)))
        for key, vector in report.embeddings:
            answer = self._answers.get(key)
            if answer is not None:
                self._on_progress(answer)
                answer.put(EmbeddingEvent(answer.request.request_id, vector))

    def _on_progress(self, answer: Answer) -> None:
        """The first that came of it since it was sent."""
        answer.progressed = self._any_progress = True
        answer.strikes = 0
        if answer.waiting:
            answer.waiting = False
            self._waiting -= 1
            self._first_tokens_s.append(time.monotonic())
        if answer is self._trial:
            self._trial = None
            self._send_waiting()

    # --- supervision ---

    async def _launch(self) -> WorkerProcess:
        """A worker that is ready. Raises why it could not be had."""
        worker = await WorkerProcess.start(
            self._context, self.path, self._load_options, self._options, self._on_report,
            command=self._command,
        )  # fmt: skip
        self._last_worker = worker
        facts = await worker.started()
        if facts.vocabulary != self.tokenizer.vocab_size:
            worker.kill(self._was_changed())
            raise await worker.ended
        self._facts = facts
        self._prompts.context_tokens = facts.context_tokens
        self._worker = worker
        self._any_progress = False
        return worker

    async def _supervise(self, worker: WorkerProcess) -> None:
        try:
            await self._keep_running(worker)
        except Exception as error:  # a fault of ours: readers must not wait for what nobody brings
            _LOG.exception("%s: its supervisor failed", self.name)
            self._give_up(UnavailableError(f"{self.name} cannot be started again: {error}"))

    async def _keep_running(self, worker: WorkerProcess) -> None:
        failures = 0
        while True:
            started_s = time.monotonic()
            reason = await asyncio.shield(worker.ended)
            self._worker = None
            lived = self._any_progress or time.monotonic() - started_s > _STEADY_S
            failures = 1 if lived else failures + 1
            if self._take_back():
                failures = 1  # the cause was found
            _LOG.warning("%s: %s; %d open requests wait", self.name, reason.message, len(self._answers))
            replacement: WorkerProcess | None = None
            while replacement is None:
                if _version_of(self.path) not in (self._version, None):
                    # Another file's tokens must not follow those that were given.
                    self._give_up(self._was_changed())
                    return
                if failures > self._options.max_restarts:
                    self._give_up(reason)
                    return
                await asyncio.sleep(_BACKOFF_S[min(failures, len(_BACKOFF_S)) - 1])
                try:
                    replacement = await self._launch()
                except StokerError as error:
                    reason = error
                    failures += 1
                    _LOG.warning("%s: restart %d failed: %s", self.name, failures - 1, error.message)
            worker = replacement
            self.restarts += 1
            self._send_waiting()

    def _was_changed(self) -> UnavailableError:
        return UnavailableError(
            f"{self.path} was changed while it was served", hint="ask again: it is loaded anew"
        )

    def _take_back(self) -> bool:
        """After a worker's death: whom to send again, suspects first. True if one was found guilty."""
        self._trial = None
        guilty = False
        for answer in tuple(self._answers.values()):
            if answer.sent and not answer.progressed:
                answer.strikes += 1
            answer.resent |= answer.sent
            answer.sent = answer.progressed = False
            if answer.strikes >= _MOST_STRIKES:
                guilty = True
                answer.fail(
                    EngineError(
                        f"{self.name} died {answer.strikes} times in a row on this request; it is given up",
                        hint="this is a fault of Stoker or of the machine's memory: please report it",
                    )
                )
                self._forget(answer)
        # sorted() keeps the order of arrival among equals.
        self._unsent = deque(sorted(self._answers.values(), key=lambda answer: -answer.strikes))
        if self._stats_reply is not None:
            self._stats_reply.set_result(None)
            self._stats_reply = None
        return guilty

    def _give_up(self, reason: StokerError) -> None:
        if self._down is None:
            self._down = (
                reason
                if isinstance(reason, UnavailableError)
                else UnavailableError(
                    f"{self.name} cannot be started again: {reason.message}", hint=reason.hint
                )
            )
        self._worker = None
        for answer in tuple(self._answers.values()):
            answer.fail(UnavailableError(self._down.message, hint=self._down.hint))
            self._forget(answer)


def _version_of(path: Path) -> tuple[int, int, int] | None:
    """What tells a file from one that took its place; none if there is no file now."""
    try:
        status = path.stat()
    except OSError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns
