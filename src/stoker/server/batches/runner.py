"""Runs all batches of this server's folder: the oldest first, several at once, line by line in turns."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from stoker.api.errors import StokerError
from stoker.server.batches.answers import Answers
from stoker.server.batches.background import BackgroundHost
from stoker.server.batches.run import BatchRun, Means
from stoker.server.batches.schemas import ENDPOINTS
from stoker.server.errors import refuse
from stoker.server.http import Handler
from stoker.server.service import Service, Work
from stoker.state.content import remove_content, remove_stale_uploads

if TYPE_CHECKING:
    from stoker.state import State, StoredBatch

_LOGGER = logging.getLogger("stoker.server")
# As many sequences as an engine takes into a step; more would only wait there.
_LINES_AT_ONCE = 64
_BATCHES_AT_ONCE = 8
_LOOK_S = 5.0  # for batches that another process has left behind, and for a database that is back
_CLEAN_S = 3600.0
_STALE_S = 30 * 86400.0
_NAMES_AT_ONCE = 500
_MOST_FAILURES = 3  # of our own making; the batch fails after them

HandlersOf = Callable[[Service], Mapping[str, Handler]]


class BatchRunner:
    """Owns the runs. `start` it once the server runs, `close` it before the models go."""

    def __init__(self, service: Service, paths: Iterable[str], handlers_of: HandlersOf) -> None:
        """`handlers_of` gives the handlers of a service, by path; `paths` are those of `service` itself."""
        self._service = service
        self._paths = frozenset(paths)
        self._handlers_of = handlers_of
        self._runs: dict[str, tuple[BatchRun, asyncio.Task[None]]] = {}
        self._failures: dict[str, int] = {}
        self._woken = asyncio.Event()
        self._main: asyncio.Task[None] | None = None
        self._slots = asyncio.Semaphore(_LINES_AT_ONCE)
        self._resting: dict[str, float] = {}  # batch -> when it is looked at again, by the monotonic clock
        self._clean_at_s = 0.0
        self._complained = False

    def check_endpoint(self, endpoint: str) -> None:
        """Raise `Refusal` for a path that this server does not answer."""
        known = [path for path in ENDPOINTS if path in self._paths]
        if endpoint not in known:
            raise refuse("endpoint", f"endpoint is {endpoint!r:.80}; allowed: {', '.join(known)}")

    async def start(self) -> None:
        """Begin; nothing on a server that keeps nothing."""
        if self._service.state is not None and self._main is None:
            self._main = asyncio.create_task(self._run_all())

    async def close(self) -> None:
        """End every run where it is; the next server goes on with it."""
        tasks = [task for _, task in self._runs.values()]
        if self._main is not None:
            tasks.append(self._main)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def wake(self) -> None:
        """There is a new batch."""
        self._woken.set()

    def look(self, batch_id: str) -> None:
        """A batch was cancelled."""
        if batch_id in self._runs:
            self._runs[batch_id][0].look()

    async def _run_all(self) -> None:
        while True:
            self._woken.clear()
            try:
                if self._may_hold_batches():
                    await self._begin_runs(await self._service.opened_state())
                self._complained = False
            except StokerError as error:
                if not self._complained:
                    _LOGGER.warning("batches wait for the state database: %s", error)
                self._complained = True
            except Exception:
                _LOGGER.exception("looking for batches failed")
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(_LOOK_S):
                    await self._woken.wait()

    def _may_hold_batches(self) -> bool:
        # A database that is not there yet is left to the first who needs it: a start makes no files.
        source = self._service.state
        assert source is not None
        return source.location.sqlite_file is None or source.location.sqlite_file.exists()

    async def _begin_runs(self, state: State) -> None:
        now_s = time.monotonic()
        self._resting = {batch_id: end_s for batch_id, end_s in self._resting.items() if end_s > now_s}
        for batch in await state.batches.unfinished():
            # One that only has to end takes nobody's place, and waits for none.
            ends = batch.status == "cancelling" or time.time() >= batch.expires_s
            is_free = batch.id not in self._runs and batch.id not in self._resting
            if is_free and (ends or len(self._runs) < _BATCHES_AT_ONCE):
                self._begin(state, batch)
        if now_s >= self._clean_at_s:
            self._clean_at_s = now_s + _CLEAN_S
            await _clean(state)

    def _begin(self, state: State, batch: StoredBatch) -> None:
        # `created` of every answer is the batch's, so that one that is asked again has the same bytes.
        host = BackgroundHost(self._service.host, lambda: self._service.open_requests > 0)
        service = self._service.in_background(host, batch.created_s)
        means = Means(state, self._slots, self._service.options.max_body_bytes)
        run = BatchRun(batch, means, Answers(self._handlers_of(service)))
        task = asyncio.create_task(self._run(batch, run, service.works))
        self._runs[batch.id] = (run, task)

    async def _run(self, batch: StoredBatch, run: BatchRun, works: Sequence[Work]) -> None:
        is_over = False
        try:
            is_over = await run.run()
        except StokerError as error:
            _LOGGER.warning("%s waits: %s", batch.id, error)
        except Exception:
            _LOGGER.exception("%s failed", batch.id)
            await self._note_failure(batch, run)
        finally:
            del self._runs[batch.id]
            for work in works:
                await work.close()
        if is_over:
            self._failures.pop(batch.id, None)
        else:  # another process has it, or what it needs is away
            self._resting[batch.id] = time.monotonic() + _LOOK_S
        self.wake()  # there is room for another

    async def _note_failure(self, batch: StoredBatch, run: BatchRun) -> None:
        self._failures[batch.id] = self._failures.get(batch.id, 0) + 1
        if self._failures[batch.id] < _MOST_FAILURES:
            return
        try:
            await run.fail()
        except Exception:  # its work stays where it is, and is tried again
            _LOGGER.exception("%s cannot be ended", batch.id)


async def _clean(state: State) -> None:
    """Remove what nobody can reach any more: expired files, work of batches that ended, broken uploads."""
    for file_id in await state.files.drop_expired():
        await asyncio.to_thread(remove_content, state.place, file_id)
    await asyncio.to_thread(remove_stale_uploads, state.place)
    # Without a row it may belong to a database that is put back some day.
    old = [
        name for name, age_s in await asyncio.to_thread(_ages, state.place.content("")) if age_s > _STALE_S
    ]
    for start in range(0, len(old), _NAMES_AT_ONCE):
        some = old[start : start + _NAMES_AT_ONCE]
        known = await state.files.known(some)
        for file_id in some:
            if file_id not in known:
                await asyncio.to_thread(remove_content, state.place, file_id)
    for batch_id, age_s in await asyncio.to_thread(_ages, state.place.work("")):
        batch = await state.batches.refreshed(batch_id)
        if batch is None and age_s < _STALE_S:
            continue
        if batch is None or batch.is_finished:
            await asyncio.to_thread(shutil.rmtree, state.place.work(batch_id), ignore_errors=True)


def _ages(folder: Path) -> list[tuple[str, float]]:
    """What is in a folder, and for how many seconds."""
    now_s = time.time()
    found = []
    with contextlib.suppress(OSError):  # it is tried again in an hour
        for path in folder.iterdir():
            found.append((path.name, now_s - path.stat().st_mtime))
    return found
