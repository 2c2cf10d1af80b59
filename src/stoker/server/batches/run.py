"""One batch, from its survey to its files. After a crash, another run goes on where the journal ends.

The database may go away meanwhile: it only hears how far the batch is, and at the end what came of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import itertools
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, ParamSpec, TypeVar

from stoker.api.errors import StokerError, UnavailableError
from stoker.server.batches.answers import Answered, Answers, Caller
from stoker.server.batches.journal import Entry, Journal
from stoker.server.batches.lines import Line, LineProblem, Survey, body_bytes, read_lines, repeated, survey
from stoker.server.batches.schemas import MOST_LINES

if TYPE_CHECKING:
    from stoker.state import State, StoredBatch, StoredFile

_PROGRESS_S = 1.0  # how often the database hears of it, and is asked whether somebody cancelled
_RETRY_DATABASE_S = 1.0
_RETRY_DISK_S = 5.0
_LINES_READ = 16  # at once
_BYTES_READ = 1 << 20  # after which no further line is; one may have as many as a body
# A queue that is full, an engine that restarts: asked again, ever more slowly.
_FIRST_PAUSE_S = 0.5
_LONGEST_PAUSE_S = 30.0
# About half an hour: after it a line fails that the others may not wait for any longer.
_MOST_ATTEMPTS: Mapping[int, int] = MappingProxyType({429: 1_000, 503: 64, 500: 3})
_MOST_ERRORS_SHOWN = 20

Reason = Literal["done", "cancelled", "expired", "gone"]
P = ParamSpec("P")
T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Means:
    """What the runs of a server share."""

    state: State
    slots: asyncio.Semaphore  # lines that are asked at once; runs take turns
    most_line_bytes: int


class BatchRun:
    """Runs one batch. `run` it once; `look` makes it ask at once whether it was cancelled."""

    def __init__(self, batch: StoredBatch, means: Means, answers: Answers) -> None:
        self._batch = batch
        self._state = means.state
        self._means = means
        self._answers = answers
        self._work = means.state.place.work(batch.id)
        self._input = self._work / "input.jsonl"
        self._looks = asyncio.Event()
        self._waiting: list[Entry] = []
        self._writing = asyncio.Lock()

    def look(self) -> None:
        """Something may have changed."""
        self._looks.set()

    async def run(self) -> bool:
        """Until the batch is finished; False: another process has it. Raises `StokerError`: it may pass."""
        try:
            journal = await _opened(lambda: Journal(self._work, self._batch.id))
        except BlockingIOError:
            return False
        try:
            current = await self._state.batches.refreshed(self._batch.id)
            if current is not None and not current.is_finished:
                await self._run(current, journal)
            await asyncio.to_thread(journal.remove)
            return True
        finally:
            journal.close()

    async def fail(self) -> None:
        """End the batch because running it fails for no fault of its own; what was answered is kept."""
        message = "the server failed while running this batch; its log has the reason"
        journal = await _opened(lambda: Journal(self._work, self._batch.id))
        try:
            problem = LineProblem("internal_error", message)
            await self._finish(journal, "failed", errors=[_error(None, problem)])
            await asyncio.to_thread(journal.remove)
        finally:
            journal.close()

    async def _run(self, batch: StoredBatch, journal: Journal) -> None:
        wrong: LineProblem | None
        known: Survey | None = None
        try:
            known = await asyncio.to_thread(
                survey,
                self._input,
                batch.endpoint,
                most_line_bytes=self._means.most_line_bytes,
                most_lines=MOST_LINES,
                most_shown=_MOST_ERRORS_SHOWN,
            )
        except FileNotFoundError:
            wrong = LineProblem(
                "input_file_missing", "the content of the input file was removed from the disk"
            )
        else:
            wrong = _wrong_whole(known)
        if known is None or wrong is not None:
            assert wrong is not None
            await self._finish(journal, "failed", errors=[_error(None, wrong)])
            return
        started = await self._persistently(
            lambda: self._state.batches.change(
                batch.id,
                follows=("validating",),
                status="in_progress",
                total=known.total,
                errors=[_error(number, problem) for number, problem in known.problems] or None,
            )
        )
        await self._conclude(started, journal, known)

    async def _conclude(self, batch: StoredBatch | None, journal: Journal, known: Survey) -> None:
        reason: Reason
        if batch is None or batch.is_finished:
            reason = "gone"
        elif batch.status == "cancelling":
            reason = "cancelled"
        elif batch.status == "finalizing":
            reason = "done"
        elif time.time() >= batch.expires_s:
            reason = "expired"
        else:
            reason = await self._answer_lines(journal, known)
        if reason == "done":
            final = await self._persistently(
                lambda: self._state.batches.change(
                    self._batch.id, follows=("in_progress",), status="finalizing"
                )
            )
            if final is not None and final.status == "cancelling":
                reason = "cancelled"
        if reason == "expired":
            await self._give_up(journal, known)
        if reason != "gone":
            await self._finish(journal, "completed" if reason == "done" else reason)

    # --- lines ---------------------------------------------------------------------------------------

    async def _answer_lines(self, journal: Journal, known: Survey) -> Reason:
        feeder = asyncio.create_task(self._feed(journal, known))
        watcher = asyncio.create_task(self._watch(journal))
        try:
            await asyncio.wait({feeder, watcher}, return_when=asyncio.FIRST_COMPLETED)
            if feeder.done():
                feeder.result()
                return "done"
            return watcher.result()
        finally:
            feeder.cancel()
            watcher.cancel()
            await asyncio.gather(feeder, watcher, return_exceptions=True)

    async def _feed(self, journal: Journal, known: Survey) -> None:
        """Ask every line that is not done, as slots become free; returns when all are written."""
        try:
            async with asyncio.TaskGroup() as group:
                async for lines in self._lines():
                    wrong = []
                    for line in lines:
                        if line.number in journal:
                            continue
                        if line.number in known.repeats:
                            line = repeated(line, known.repeats[line.number])
                        if line.problem is not None:
                            wrong.append(_not_asked(line, line.problem))
                            continue
                        await self._means.slots.acquire()
                        group.create_task(self._answer_line(journal, line))
                    await self._record(journal, wrong)
        except ExceptionGroup as failed:
            raise failed.exceptions[0] from failed

    async def _lines(self) -> AsyncIterator[list[Line]]:
        source = read_lines(self._input, self._batch.endpoint, self._means.most_line_bytes)
        while lines := await asyncio.to_thread(_some, source):
            yield lines

    async def _answer_line(self, journal: Journal, line: Line) -> None:
        try:
            body = body_bytes(line, self._batch.id, self._batch.endpoint)
            answered = await self._ask(line, body)
            entry = Entry(
                line.number, line.custom_id, answered.status, answered.request_id, body=answered.body
            )
            await self._record(journal, [entry])
        finally:
            self._means.slots.release()

    async def _ask(self, line: Line, body: bytes) -> Answered:
        caller = Caller(self._batch.owner, self._batch.tenant)
        request_id = f"{self._batch.id}-{line.number}"
        pause_s = _FIRST_PAUSE_S
        for attempt in itertools.count(1):
            answered = await self._answers.answer(
                self._batch.endpoint, body, request_id=request_id, caller=caller
            )
            if attempt >= _MOST_ATTEMPTS.get(answered.status, 1):
                return answered
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)
        raise AssertionError

    async def _record(self, journal: Journal, entries: Sequence[Entry]) -> None:
        """Returns once the entries are on the disk; those of lines that end together go together."""
        self._waiting += entries
        async with self._writing:
            while self._waiting:
                taken, self._waiting = self._waiting, []
                try:
                    await _to_its_end(journal.add, taken)
                except StokerError:
                    # Nothing new is asked meanwhile: a line keeps its slot until it is written.
                    self._waiting = taken + self._waiting
                    await asyncio.sleep(_RETRY_DISK_S)

    async def _watch(self, journal: Journal) -> Reason:
        """Tell the database how far it is. Returns why the batch must end before its last line."""
        told = (-1, -1)
        while True:
            left_s = self._batch.expires_s - time.time()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(max(0.0, min(_PROGRESS_S, left_s))):
                    await self._looks.wait()
            self._looks.clear()
            if time.time() >= self._batch.expires_s:
                return "expired"
            counts = (journal.completed, journal.failed)
            with contextlib.suppress(StokerError):  # it is told the next time
                if counts == told:
                    current = await self._state.batches.refreshed(self._batch.id)
                else:
                    current = await self._state.batches.change(
                        self._batch.id,
                        follows=("in_progress",),
                        completed=counts[0],
                        failed=counts[1],
                        token_usage=journal.usage.as_dict(),
                    )
                told = counts
                if current is None or current.is_finished:
                    return "gone"
                if current.status == "cancelling":
                    return "cancelled"

    # --- the end -------------------------------------------------------------------------------------

    async def _give_up(self, journal: Journal, known: Survey) -> None:
        message = "the completion window ended before this line was asked"
        async for lines in self._lines():
            late = [line for line in lines if line.number not in journal]
            await self._record(
                journal, [_not_asked(line, LineProblem("batch_expired", message)) for line in late]
            )

    async def _finish(
        self,
        journal: Journal,
        status: Literal["completed", "failed", "expired", "cancelled"],
        *,
        errors: Sequence[dict[str, object]] | None = None,
    ) -> None:
        """Make files of what was written, and say so: their rows and the batch's last status, at once."""
        good = await self._publish(journal, good=True)
        bad = await self._publish(journal, good=False)
        values: dict[str, object] = {} if errors is None else {"errors": errors}
        await self._persistently(
            lambda: self._state.batches.change(
                self._batch.id,
                follows=("validating", "in_progress", "finalizing", "cancelling"),
                status=status,
                files=[file for file in (good, bad) if file is not None],
                completed=journal.completed,
                failed=journal.failed,
                token_usage=journal.usage.as_dict(),
                output_file_id=None if good is None else good.id,
                error_file_id=None if bad is None else bad.id,
                **values,
            )
        )

    async def _publish(self, journal: Journal, *, good: bool) -> StoredFile | None:
        batch = self._batch
        kind = "output" if good else "errors"
        # Told by the batch, so that doing this again after a crash makes the same file.
        file_id = f"file-{hashlib.sha256(f'{batch.id} {kind}'.encode()).hexdigest()[:24]}"
        target = self._state.place.content(file_id)
        size_bytes = await _to_its_end(lambda: journal.publish(target, good=good))
        if not size_bytes:
            return None
        return self._state.files.new(
            batch.owner,
            name=f"{batch.id}_{kind}.jsonl",
            purpose="batch_output",
            size_bytes=size_bytes,
            expires_after_s=batch.output_expires_s,
            file_id=file_id,
        )

    async def _persistently(self, change: Callable[[], Awaitable[StoredBatch | None]]) -> StoredBatch | None:
        """What `change` returns, however long the database is away."""
        while True:
            try:
                return await change()
            except UnavailableError:
                await asyncio.sleep(_RETRY_DATABASE_S)


async def _opened(make: Callable[[], Journal]) -> Journal:
    """A journal, opened in a thread; closed again if nobody waits for it any more."""
    opening = asyncio.ensure_future(asyncio.to_thread(make))
    try:
        return await asyncio.shield(opening)
    except asyncio.CancelledError:
        await asyncio.wait({opening})
        if opening.exception() is None:
            opening.result().close()
        raise


async def _to_its_end(function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """`function` in a thread. A caller that is cancelled waits for its end: what it uses is not free yet."""
    running = asyncio.ensure_future(asyncio.to_thread(function, *args, **kwargs))
    try:
        return await asyncio.shield(running)
    except asyncio.CancelledError:
        await asyncio.wait({running})
        raise


def _some(source: Iterator[Line]) -> list[Line]:
    found: list[Line] = []
    size_bytes = 0
    for line in source:
        found.append(line)
        size_bytes += 0 if line.body is None else len(line.body)
        if len(found) >= _LINES_READ or size_bytes >= _BYTES_READ:
            break
    return found


def _not_asked(line: Line, problem: LineProblem) -> Entry:
    error = {"code": problem.code, "message": problem.message, "line": line.number}
    return Entry(line.number, line.custom_id, None, error=error)


def _error(number: int | None, problem: LineProblem) -> dict[str, object]:
    return {"code": problem.code, "message": problem.message, "line": number, "param": None}


def _wrong_whole(known: Survey) -> LineProblem | None:
    if not known.total:
        return LineProblem("empty_file", "the input file has no line")
    if known.total > MOST_LINES:
        return LineProblem(
            "too_many_lines", f"the input file has more than {MOST_LINES} lines; allowed: that"
        )
    return None
