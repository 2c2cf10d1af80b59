"""Batches when things go wrong: errors, restarts, two servers, a database and a disk that go away."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.batching import (
    answers,
    begin,
    create,
    echo,
    entries,
    line,
    no_work_is_left,
    serving,
    slow,
    some_done,
    text_of,
    until,
    upload,
    wait_for,
)
from tests.fake_host import FakeHost, FakeModel
from tests.served import serve

from stoker.api.errors import EngineError, QueueFullError, UnavailableError
from stoker.api.request import Request
from stoker.server.batches import run as run_module
from stoker.server.batches.lines import seed_of
from stoker.state import StateSource, locate_state


class Failing(FakeModel):
    """Raises the errors it was given, one for each request, before it answers."""

    def __init__(self, errors: list[Exception]) -> None:
        super().__init__(answer=echo)
        self.errors = errors

    async def generate(self, request: Request) -> Any:
        if self.errors:
            raise self.errors.pop(0)
        async for event in super().generate(request):
            yield event


@pytest.mark.parametrize(
    "errors",
    [
        [QueueFullError("full") for _ in range(70)],
        [UnavailableError("restarts") for _ in range(40)],
        [EngineError("broke") for _ in range(2)],
    ],
)
def test_what_may_pass_is_tried_again(
    tmp_path: Path, errors: list[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_LONGEST_PAUSE_S", 0.01)
    monkeypatch.setattr(run_module, "_FIRST_PAUSE_S", 0.01)
    with serving(tmp_path, Failing(errors)) as served:
        batch = wait_for(served, begin(served, [line(f"c{i}") for i in range(50)]))
        assert batch["request_counts"] == {"total": 50, "completed": 50, "failed": 0}
        assert not errors


def test_a_line_that_always_fails_is_told_and_the_rest_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_FIRST_PAUSE_S", 0.01)

    def answer(request: Request, seed: int) -> str:
        text = echo(request, seed)
        if text.startswith("bad"):
            raise ValueError("a bug")
        return text

    with serving(tmp_path, FakeModel(answer=answer)) as served:
        batch = wait_for(served, begin(served, [line("a"), line("b", "bad"), line("c")]))
        assert batch["request_counts"] == {"total": 3, "completed": 2, "failed": 1}
        (entry,) = entries(served, batch["error_file_id"])
        assert (entry["custom_id"], entry["response"]["status_code"]) == ("b", 500)
        assert "a bug" not in json.dumps(entry)


@pytest.mark.parametrize("stops", [1, 4])
def test_a_restart_loses_and_repeats_nothing(tmp_path: Path, stops: int) -> None:
    """The same bytes, however often the server was stopped."""
    lines = [line(f"c{i}", f"say {i}") for i in range(600)]
    lines[7] = line("c3")
    with serving(tmp_path, slow()) as served:
        batch_id = begin(served, lines)
        wait_for(served, batch_id, some_done)
    for _ in range(stops - 1):
        with serving(tmp_path, slow()) as served:
            before = served.get(f"/v1/batches/{batch_id}").json()["request_counts"]["completed"]
            more = lambda b, n=before: b["request_counts"]["completed"] > n or b["completed_at"]  # noqa: E731
            wait_for(served, batch_id, more)
    with serving(tmp_path) as served:
        batch = wait_for(served, batch_id)
        expected = {f"c{i}": f"say {i} {seed_of(batch_id, i + 1)}" for i in range(600) if i != 7}
        assert list(answers(served, batch).items()) == list(expected.items())
        assert batch["request_counts"] == {"total": 600, "completed": 599, "failed": 1}
        assert len(served.host.model.requests) < 599  # what was answered is not asked again
        used = [entry["response"]["body"]["usage"] for entry in entries(served, batch["output_file_id"])]
        assert batch["usage"]["total_tokens"] == sum(usage["total_tokens"] for usage in used)


def test_two_servers_on_one_state_run_a_batch_once(tmp_path: Path) -> None:
    with serving(tmp_path, slow()) as first, serving(tmp_path, slow()) as second:
        batch_id = begin(first, [line(f"c{i}") for i in range(200)])
        begin(second, [line("other")])
        batch = wait_for(second, batch_id)
        assert batch["request_counts"] == {"total": 200, "completed": 200, "failed": 0}
        assert len(answers(second, batch)) == 200
        requests = first.host.model.requests + second.host.model.requests
        assert len(requests) == 201
        asked = [request.request_id.partition("#")[0] for request in requests]
        assert len(set(asked)) == 201


def test_a_batch_that_another_server_runs_is_looked_at_now_and_then(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tries: list[str] = []
    real = run_module.Journal

    def counted(folder: Path, batch_id: str) -> Any:
        tries.append(batch_id)
        return real(folder, batch_id)

    with serving(tmp_path, slow()) as first:
        batch_id = begin(first, [line(f"c{i}") for i in range(400)])
        wait_for(first, batch_id, some_done)
        monkeypatch.setattr(run_module, "Journal", counted)
        with serving(tmp_path) as second:
            other = wait_for(second, begin(second, [line("other")]))
            time.sleep(0.5)
        assert tries.count(other["id"]) == 1
        assert tries.count(batch_id) <= 2


def test_a_batch_that_waits_for_its_turn_can_be_cancelled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.server.batches.runner._BATCHES_AT_ONCE", 1)
    with serving(tmp_path, slow()) as served:
        long = begin(served, [line(f"c{i}") for i in range(2000)])
        wait_for(served, long, some_done)
        waits = begin(served, [line("a")])
        assert served.post(f"/v1/batches/{waits}/cancel", {}).status_code == 200
        batch = wait_for(served, waits)
        assert (batch["status"], batch["request_counts"]["completed"]) == ("cancelled", 0)
        assert served.get(f"/v1/batches/{long}").json()["status"] == "in_progress"


def test_lines_wait_for_calls_of_other_models(tmp_path: Path) -> None:
    location = locate_state(str(tmp_path / "state.db"))
    assert location is not None
    asked, other = FakeModel("asked", answer=echo), FakeModel("other", answer=echo, first_delay_s=1.0)
    with serve(FakeHost(asked, other), state=StateSource(location)) as served:
        file_id = upload(served, text_of([line("a"), line("b")]))
        with ThreadPoolExecutor(1) as threads:
            call = threads.submit(served.chat, "hello", model="other")
            until(lambda: other.open == 1)
            batch_id = create(served, file_id).json()["id"]
            wait_for(served, batch_id, lambda b: b["status"] == "in_progress")
            time.sleep(0.2)
            assert asked.requests == []
            assert call.result(20).status_code == 200
        assert wait_for(served, batch_id)["request_counts"]["completed"] == 2


@pytest.mark.parametrize(("failures", "status"), [(2, "completed"), (3, "failed")])
def test_a_bug_of_ours_is_tried_again_and_then_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, failures: int, status: str
) -> None:
    monkeypatch.setattr("stoker.server.batches.runner._LOOK_S", 0.05)
    real = run_module.body_bytes
    left = failures

    def broken(line: Any, batch_id: str, endpoint: str) -> bytes:
        nonlocal left
        if line.number == 60 and left:
            left -= 1
            raise ZeroDivisionError
        return real(line, batch_id, endpoint)

    monkeypatch.setattr(run_module, "body_bytes", broken)
    with serving(tmp_path) as served:
        batch = wait_for(served, begin(served, [line(f"c{i}") for i in range(100)]))
        assert batch["status"] == status
        assert len(answers(served, batch)) == batch["request_counts"]["completed"] > 0
        assert (batch["errors"] is None) == (status == "completed")
        assert no_work_is_left(served)


def test_the_database_goes_away_under_a_batch_and_comes_back(tmp_path: Path) -> None:
    path, away = tmp_path / "state.db", tmp_path / "away.db"
    with serving(tmp_path, slow()) as served:
        batch_id = begin(served, [line(f"c{i}") for i in range(1200)])
        wait_for(served, batch_id, some_done)
        shutil.move(path, away)
        gone = served.get(f"/v1/batches/{batch_id}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (503, "unavailable")
        assert "retry-after" in gone.headers
        asked = len(served.host.model.requests)
        until(lambda: len(served.host.model.requests) == 1200)  # it runs on
        assert asked < 1200
        time.sleep(0.3)
        shutil.move(away, path)
        batch = wait_for(served, batch_id)
        assert batch["request_counts"] == {"total": 1200, "completed": 1200, "failed": 0}
        assert len(served.host.model.requests) == 1200


def test_a_full_disk_holds_a_batch_up_and_loses_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run_module, "_RETRY_DISK_S", 0.05)
    full = 5
    real = os.fdatasync

    def sync(descriptor: int) -> None:
        nonlocal full
        if full:
            full -= 1
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr("stoker.server.batches.journal.os.fdatasync", sync)
    with serving(tmp_path) as served:
        batch_id = begin(served, [line(f"c{i}") for i in range(100)])
        batch = wait_for(served, batch_id)
        assert not full
        assert list(answers(served, batch)) == [f"c{i}" for i in range(100)]
        assert len(served.host.model.requests) == 100


def test_a_stop_does_not_wait_for_a_batch(tmp_path: Path) -> None:
    model = FakeModel(answer=echo, first_delay_s=60)
    with serving(tmp_path, model) as served:
        batch_id = begin(served, [line("a")])
        wait_for(served, batch_id, lambda b: b["status"] == "in_progress")
        until(lambda: bool(model.open))
        started = time.monotonic()
    assert time.monotonic() - started < 5
    assert not model.open
    with serving(tmp_path) as served:
        assert wait_for(served, batch_id)["request_counts"]["completed"] == 1


def test_lines_take_nobodys_place(tmp_path: Path) -> None:
    """Calls of clients are let in while as many lines run as can."""
    model = FakeModel(answer=echo, token_delay_s=0.02)
    with serving(tmp_path, model, max_open_requests=2) as served:
        batch_id = begin(served, [line(f"c{i}") for i in range(100)])
        until(lambda: model.open >= 10)
        assert served.service.open_requests == 0
        assert served.chat("x", max_tokens=1).status_code == 200
        assert [request.background for request in model.requests].count(False) == 1
        served.post(f"/v1/batches/{batch_id}/cancel", {})
        wait_for(served, batch_id)


def test_batches_take_turns(tmp_path: Path) -> None:
    with serving(tmp_path, slow()) as served:
        long = begin(served, [line(f"c{i}") for i in range(2000)])
        wait_for(served, long, some_done)
        short = wait_for(served, begin(served, [line(f"s{i}") for i in range(20)]))
        assert short["status"] == "completed"
        assert served.get(f"/v1/batches/{long}").json()["status"] == "in_progress"


def test_a_start_without_a_database_makes_none(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        assert served.chat().status_code == 200
        asyncio.run(asyncio.sleep(0.2))
    assert list(tmp_path.iterdir()) == []
