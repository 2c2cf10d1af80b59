"""/v1/batches against a real socket and a model that answers at once: lines, refusals, ends."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import httpx
import pytest
from tests.batching import (
    answers,
    begin,
    create,
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

from stoker.server.batches.lines import seed_of


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


def test_what_a_line_stores_has_the_lines_own_id(tmp_path: Path) -> None:
    """A line that is asked again after a crash is stored once."""
    with serving(tmp_path) as served:
        batch_id = begin(served, [line(f"c{i}", f"say {i}", store=True) for i in range(3)])
        found = entries(served, wait_for(served, batch_id)["output_file_id"])
        ids = [entry["response"]["body"]["id"] for entry in found]
        expected = [hashlib.sha256(f"/{batch_id}-{i}".encode()).hexdigest()[:32] for i in (1, 2, 3)]
        assert ids == [f"chatcmpl-{one}" for one in expected]
        stored = served.get("/v1/chat/completions").json()["data"]
        assert sorted(one["id"] for one in stored) == sorted(ids)
