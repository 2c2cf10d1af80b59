"""Restarts that cannot be: an open request ends in an error, not in silence, nor in another model's words."""

from __future__ import annotations

import asyncio
import errno
import os
import signal
import sys
from pathlib import Path

import pytest
import zmq
from tests.unit.process.serving import Answered, ask, read, run, start_fake, until, write_model

from stoker.api.errors import UnavailableError
from stoker.process import child

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals of Unix")


@pytest.mark.parametrize("at", ["socket", "bind", "unforeseen"])
def test_a_restart_that_the_system_refuses_ends_in_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str
) -> None:
    """Without descriptors for a socket (ZMQError is no OSError), and whatever else: nobody waits for ever."""

    def refuse(*_: object, **__: object) -> None:
        raise ValueError("a mistake") if at == "unforeseen" else zmq.ZMQError(errno.EMFILE)

    async def work() -> None:
        path = write_model(tmp_path, step_ms=5)
        async with await start_fake(path, max_restarts=1) as endpoint:
            reading = asyncio.create_task(read(endpoint, ask("a", max_tokens=900)))
            await until(lambda: endpoint.open_requests == 1)
            assert endpoint.worker_pid is not None
            if at == "socket":
                monkeypatch.setattr(endpoint._context, "socket", refuse)
            elif at == "bind":
                monkeypatch.setattr(child, "_bind", refuse)
            else:
                monkeypatch.setattr(child, "_environment", refuse)
            os.kill(endpoint.worker_pid, signal.SIGKILL)
            says = "a mistake" if at == "unforeseen" else "Too many open files"
            with pytest.raises(UnavailableError, match=says):
                await asyncio.wait_for(reading, 20)
            assert endpoint.is_down

    run(work)


def test_another_file_does_not_go_on_with_an_answer(tmp_path: Path) -> None:
    async def work() -> None:
        path = write_model(tmp_path, step_ms=5)
        async with await start_fake(path) as endpoint:
            answered = Answered()
            reading = asyncio.create_task(read(endpoint, ask("a", max_tokens=900), answered))
            await until(lambda: answered.tokens > 0)
            assert endpoint.worker_pid is not None
            (tmp_path / "new").write_text(path.read_text() + " ")
            (tmp_path / "new").replace(path)
            os.kill(endpoint.worker_pid, signal.SIGKILL)
            with pytest.raises(UnavailableError, match="was changed while it was served"):
                await reading
            assert endpoint.is_down  # the shelf loads it anew

    run(work)
