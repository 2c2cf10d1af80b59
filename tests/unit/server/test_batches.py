"""/v1/batches against a real socket and a model that answers at once: lines, ends, restarts, failures."""

from __future__ import annotations

import asyncio
import json
import shutil
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.fake_host import FakeHost, FakeModel
from tests.served import Served, serve

from stoker.api.errors import EngineError, QueueFullError, UnavailableError
from stoker.api.request import Request
from stoker.server.batches import run as run_module
from stoker.server.batches.lines import seed_of
from stoker.server.options import ServerOptions
from stoker.state import StateSource, locate_state

CHAT = "/v1/chat/completions"
FINISHED = ("completed", "failed", "expired", "cancelled")


def echo(request: Request, seed: int) -> str:
    """The last message, and the seed."""
    prompt: Any = request.prompt
    messages = getattr(prompt, "messages", prompt)
    return f"{messages if isinstance(messages, str) else messages[-1].content} {seed}"


@contextmanager
def serving(folder: Path, model: FakeModel | None = None, **options: Any) -> Iterator[Served]:
    location = locate_state(str(folder / "state.db"))
    assert location is not None
    host = FakeHost(model or FakeModel(answer=echo))
    with serve(host, ServerOptions(**options), state=StateSource(location)) as running:
        yield running


def line(custom_id: Any, content: str = "hi", url: str = CHAT, **body: Any) -> dict[str, Any]:
    fields = {"messages": [{"role": "user", "content": content}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": url, "body": fields}


def text_of(lines: Iterable[Any]) -> bytes:
    return b"".join((one if isinstance(one, bytes) else json.dumps(one).encode()) + b"\n" for one in lines)


def upload(served: Served, data: bytes, purpose: str = "batch", **headers: str) -> str:
    found = httpx.post(
        served.url + "/v1/files",
        files={"file": ("in.jsonl", data)},
        data={"purpose": purpose},
        headers=headers,
        timeout=20,
    )
    assert found.status_code == 200, found.text
    return str(found.json()["id"])


def create(served: Served, file_id: str, endpoint: str = CHAT, **fields: Any) -> httpx.Response:
    headers = fields.pop("headers", {})
    body = {"input_file_id": file_id, "endpoint": endpoint, "completion_window": "24h", **fields}
    return served.post("/v1/batches", body, **headers)


def begin(served: Served, lines: Iterable[Any], **fields: Any) -> str:
    found = create(served, upload(served, text_of(lines)), **fields)
    assert found.status_code == 200, found.text
    assert found.json()["status"] == "validating"
    return str(found.json()["id"])


def wait_for(served: Served, batch_id: str, until: Callable[[Any], bool] | None = None) -> Any:
    """The batch once it is finished, or as `until` says."""
    deadline = time.monotonic() + 20
    while True:
        found = served.get(f"/v1/batches/{batch_id}")
        batch = found.json()
        if found.status_code == 200 and (until or (lambda b: b["status"] in FINISHED))(batch):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.02)


def until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def entries(served: Served, file_id: str | None) -> list[Any]:
    if file_id is None:
        return []
    found = served.get(f"/v1/files/{file_id}/content")
    assert found.status_code == 200
    assert not found.content or found.content.endswith(b"\n")
    return [json.loads(one) for one in found.text.splitlines()]


def answers(served: Served, batch: Any) -> dict[str, str]:
    """Custom id -> text, in the order of the file."""
    return {
        entry["custom_id"]: entry["response"]["body"]["choices"][0]["message"]["content"]
        for entry in entries(served, batch["output_file_id"])
    }


def no_work_is_left(served: Served) -> bool:
    assert served.service.state is not None
    return not list((served.service.state.location.folder / "batches").iterdir())


def test_every_line_is_answered_in_its_order(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        batch_id = begin(served, [line(f"c{i}", f"say {i}") for i in range(150)], metadata={"a": "b"})
        batch = wait_for(served, batch_id)
        assert batch["status"] == "completed"
        assert batch["request_counts"] == {"total": 150, "completed": 150, "failed": 0}
        assert (batch["metadata"], batch["errors"], batch["error_file_id"]) == ({"a": "b"}, None, None)
        expected = {f"c{i}": f"say {i} {seed_of(batch_id, i + 1)}" for i in range(150)}
        assert list(answers(served, batch).items()) == list(expected.items())
        order = ("created_at", "in_progress_at", "finalizing_at", "completed_at")
        times = [batch[name] for name in order]
        assert times == sorted(times)
        assert batch["expires_at"] == batch["created_at"] + 86400
        found = entries(served, batch["output_file_id"])
        used = [entry["response"]["body"]["usage"] for entry in found]
        assert batch["usage"]["input_tokens"] == sum(usage["prompt_tokens"] for usage in used)
        assert batch["usage"]["output_tokens"] == sum(usage["completion_tokens"] for usage in used)
        assert {entry["response"]["body"]["created"] for entry in found} == {batch["created_at"]}
        file = served.get(f"/v1/files/{batch['output_file_id']}").json()
        assert (file["purpose"], file["filename"]) == ("batch_output", f"{batch_id}_output.jsonl")
        assert all(request.background for request in served.host.model.requests)
        assert no_work_is_left(served)


def test_bad_lines_are_told_one_by_one_and_the_rest_runs(tmp_path: Path) -> None:
    lines: list[Any] = [
        line("good"),
        b"{no json",
        b"[]",
        b'"text"',
        line(7),
        line(""),
        line("x" * 513),
        {**line("no body"), "body": "text"},
        {**line("more"), "extra": 1},
        {key: value for key, value in line("no url").items() if key != "url"},
        {**line("get"), "method": "GET"},
        line("elsewhere", url="/v1/completions"),
        line("stream", stream=True),
        line("good"),
        b"",
        b"\xff\xfe",
        b'{"body": {"a": ' + b"[" * 60_000,
        b" " * 70_000 + json.dumps(line("long")).encode(),
        line("no such field", colour="red"),
        line("no such model", model="other"),
        line("seeded", seed=5, stream=False),
        b"\xef\xbb\xbf" + json.dumps(line("mark in the middle")).encode(),
        line("last"),
    ]
    data = b"\xef\xbb\xbf" + text_of(lines).removesuffix(b"\n").replace(b"\n", b"\r\n")
    with serving(tmp_path, max_body_bytes=65536) as served:
        batch_id = str(create(served, upload(served, data)).json()["id"])
        batch = wait_for(served, batch_id)
        assert batch["status"] == "completed"
        assert list(answers(served, batch)) == ["good", "seeded", "last"]
        assert answers(served, batch)["seeded"] == "hi 5"
        bad = entries(served, batch["error_file_id"])
        codes = [(entry["error"] or {}).get("code") or entry["response"]["status_code"] for entry in bad]
        assert codes == [
            "invalid_json_line",
            "invalid_line",
            "invalid_line",
            "invalid_line",
            "invalid_custom_id",
            "invalid_custom_id",
            "invalid_line",
            "invalid_line",
            "invalid_line",
            "invalid_method",
            "mismatched_endpoint",
            "unsupported_parameter",
            "duplicate_custom_id",
            "invalid_json_line",
            "invalid_json_line",
            "line_too_long",
            400,
            404,
            "invalid_json_line",
        ]
        assert batch["request_counts"] == {"total": 22, "completed": 3, "failed": 19}
        assert bad[-2]["response"]["body"]["error"]["param"] == "model"
        shown = batch["errors"]["data"]
        assert [error["line"] for error in shown] == [
            2,
            3,
            4,
            5,
            6,
            7,
            8,
            9,
            10,
            11,
            12,
            13,
            14,
            16,
            17,
            18,
            22,
        ]
        assert all(f"line {error['line']}" in error["message"] for error in shown)
        assert [entry["custom_id"] for entry in bad[5:8]] == [None, "no body", "more"]


@pytest.mark.parametrize(
    ("data", "code"),
    [(b"", "empty_file"), (b"\n \n\r\n", "empty_file"), (b"{}\n" * 50_001, "too_many_lines")],
)
def test_an_input_that_is_none_fails_as_a_whole(tmp_path: Path, data: bytes, code: str) -> None:
    with serving(tmp_path) as served:
        batch = wait_for(served, create(served, upload(served, data)).json()["id"])
        assert batch["status"] == "failed"
        assert [error["code"] for error in batch["errors"]["data"]] == [code]
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, None)
        assert batch["failed_at"] >= batch["created_at"]
        assert no_work_is_left(served)


@pytest.mark.parametrize(
    ("changes", "param", "status"),
    [
        ({"input_file_id": "file-unknown"}, "input_file_id", 404),
        ({"input_file_id": ""}, "input_file_id", 400),
        ({"endpoint": "/v1/files"}, "endpoint", 400),
        ({"completion_window": "1h"}, "completion_window", 400),
        ({"metadata": {str(i): "" for i in range(17)}}, "metadata", 400),
        ({"metadata": {"a": 1}}, "metadata.a", 400),
        ({"metadata": {"a": "x" * 513}}, "metadata.a", 400),
        (
            {"output_expires_after": {"anchor": "created_at", "seconds": 1}},
            "output_expires_after.seconds",
            400,
        ),
        ({"colour": "red"}, "colour", 400),
    ],
)
def test_a_wrong_batch_is_refused(tmp_path: Path, changes: dict[str, Any], param: str, status: int) -> None:
    with serving(tmp_path) as served:
        found = create(served, **{"file_id": upload(served, text_of([line("a")]))}, **changes)
        assert (found.status_code, found.json()["error"]["param"]) == (status, param)
        assert served.get("/v1/batches").json()["data"] == []
        assert no_work_is_left(served)


def test_only_files_of_batches_are_inputs(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        found = create(served, upload(served, b"x", purpose="user_data"))
        assert (found.status_code, found.json()["error"]["param"]) == (400, "input_file_id")
        batch = wait_for(served, begin(served, [line("a")]))
        found = create(served, batch["output_file_id"])
        assert found.json()["error"]["param"] == "input_file_id"


def test_batches_are_their_keys_own(tmp_path: Path) -> None:
    ann, bob = ({"authorization": f"Bearer key-of-{name}"} for name in ("ann", "bob"))
    with serving(tmp_path, api_keys=("key-of-ann", "key-of-bob")) as served:
        file_id = upload(served, text_of([line("a")]), **ann)
        assert create(served, file_id, headers=bob).status_code == 404
        batch_id = create(served, file_id, headers=ann).json()["id"]
        until(lambda: served.get(f"/v1/batches/{batch_id}", **ann).json()["status"] == "completed")
        batch = served.get(f"/v1/batches/{batch_id}", **ann).json()
        for path in (f"/v1/batches/{batch_id}", f"/v1/files/{batch['output_file_id']}/content"):
            assert served.get(path, **bob).status_code == 404
            assert served.get(path, **ann).status_code == 200
        assert served.post(f"/v1/batches/{batch_id}/cancel", {}, **bob).status_code == 404
        assert served.get("/v1/batches", **bob).json()["data"] == []
        assert served.get("/v1/batches?after=" + batch_id, **bob).status_code == 400
        assert served.host.model.requests[0].tenant == "key-1"


def test_lists_newest_first_in_pages(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        ids = [begin(served, [line("a")]) for _ in range(3)]
        first = served.get("/v1/batches?limit=2").json()
        assert [batch["id"] for batch in first["data"]] == [ids[2], ids[1]]
        assert first["has_more"]
        rest = served.get(f"/v1/batches?limit=2&after={first['last_id']}").json()
        assert ([batch["id"] for batch in rest["data"]], rest["has_more"]) == ([ids[0]], False)
        for query in ("limit=0", "limit=101", "after=batch_unknown", "order=asc"):
            assert served.get(f"/v1/batches?{query}").status_code == 400


def test_texts_too(tmp_path: Path) -> None:
    lines = [
        {"custom_id": f"t{i}", "method": "POST", "url": "/v1/completions", "body": {"prompt": f"p{i}"}}
        for i in range(3)
    ]
    with serving(tmp_path) as served:
        batch = wait_for(served, begin(served, lines, endpoint="/v1/completions"))
        found = entries(served, batch["output_file_id"])
        assert [entry["response"]["body"]["object"] for entry in found] == ["text_completion"] * 3


def test_responses_too_and_their_use_is_counted(tmp_path: Path) -> None:
    lines = [
        {"custom_id": f"r{i}", "method": "POST", "url": "/v1/responses", "body": {"input": f"p{i}"}}
        for i in range(3)
    ]
    lines.append({**lines[0], "custom_id": "back", "body": {"input": "x", "background": True}})
    with serving(tmp_path) as served:
        batch = wait_for(served, begin(served, lines, endpoint="/v1/responses"))
        found = entries(served, batch["output_file_id"])
        assert [entry["response"]["body"]["object"] for entry in found] == ["response"] * 3
        used = sum(entry["response"]["body"]["usage"]["output_tokens"] for entry in found)
        assert batch["usage"]["output_tokens"] == used > 0
        bad = entries(served, batch["error_file_id"])
        assert [entry["error"]["code"] for entry in bad] == ["unsupported_parameter"]


# --- ends ------------------------------------------------------------------------------------------------


def slow() -> FakeModel:
    return FakeModel(answer=echo, token_delay_s=0.01)


def some_done(batch: Any) -> bool:
    return bool(batch["request_counts"]["completed"] > 0)


def test_a_cancelled_batch_keeps_what_was_answered(tmp_path: Path) -> None:
    with serving(tmp_path, slow()) as served:
        batch_id = begin(served, [line(f"c{i}") for i in range(400)])
        wait_for(served, batch_id, some_done)
        cancelled = served.post(f"/v1/batches/{batch_id}/cancel", {})
        assert cancelled.json()["status"] == "cancelling"
        again = served.post(f"/v1/batches/{batch_id}/cancel", {})
        assert again.json()["status"] in ("cancelling", "cancelled") or again.status_code == 409
        batch = wait_for(served, batch_id)
        assert batch["status"] == "cancelled"
        done = answers(served, batch)
        assert 0 < len(done) == batch["request_counts"]["completed"] < 400
        assert batch["cancelled_at"] >= batch["cancelling_at"]
        late = served.post(f"/v1/batches/{batch_id}/cancel", {})
        assert (late.status_code, late.json()["error"]["code"]) == (409, "batch_not_cancellable")
        assert not served.host.model.open
        assert no_work_is_left(served)


def test_a_batch_that_expires_tells_every_line_that_did_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("stoker.server.batches.calls.WINDOW_S", 2)
    with serving(tmp_path, slow()) as served:
        batch = wait_for(served, begin(served, [line(f"c{i}") for i in range(2000)]))
        assert batch["status"] == "expired"
        done = answers(served, batch)
        late = entries(served, batch["error_file_id"])
        assert {entry["error"]["code"] for entry in late} == {"batch_expired"}
        ids = [*done, *(entry["custom_id"] for entry in late)]
        assert sorted(ids) == sorted(f"c{i}" for i in range(2000))
        assert batch["request_counts"] == {"total": 2000, "completed": len(done), "failed": len(late)}
        assert 0 < len(done) < 2000


def test_an_input_that_is_deleted_under_its_batch_changes_nothing(tmp_path: Path) -> None:
    with serving(tmp_path, slow()) as served:
        file_id = upload(served, text_of(line(f"c{i}") for i in range(100)))
        batch_id = create(served, file_id).json()["id"]
        assert httpx.delete(f"{served.url}/v1/files/{file_id}").json()["deleted"]
    with serving(tmp_path) as served:  # nor does a restart
        batch = wait_for(served, batch_id)
        assert (batch["status"], len(answers(served, batch))) == ("completed", 100)
        assert create(served, file_id).status_code == 404


def test_an_input_whose_content_is_lost_fails_its_batch_with_what_was_answered(tmp_path: Path) -> None:
    with serving(tmp_path, slow()) as served:
        batch_id = begin(served, [line(f"c{i}") for i in range(400)])
        wait_for(served, batch_id, some_done)
    (tmp_path / "state.db.files" / "batches" / batch_id / "input.jsonl").unlink()
    with serving(tmp_path) as served:
        batch = wait_for(served, batch_id)
        assert batch["status"] == "failed"
        assert [error["code"] for error in batch["errors"]["data"]] == ["input_file_missing"]
        assert len(answers(served, batch)) == batch["request_counts"]["completed"] > 0


def test_files_of_a_batch_expire_as_asked(tmp_path: Path) -> None:
    with serving(tmp_path) as served:
        after = {"anchor": "created_at", "seconds": 3600}
        batch = wait_for(served, begin(served, [line("a")], output_expires_after=after))
        file = served.get(f"/v1/files/{batch['output_file_id']}").json()
        assert file["expires_at"] == file["created_at"] + 3600


# --- what goes wrong -------------------------------------------------------------------------------------


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
    real = __import__("os").fdatasync

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
