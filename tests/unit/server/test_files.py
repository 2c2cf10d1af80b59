"""/v1/files against a real socket: uploads of every form, pages, contents, owners, refusals."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.fake_host import FakeHost
from tests.served import Served, serve

from stoker.server.errors import Refusal
from stoker.server.files.form import UploadForm
from stoker.server.options import ServerOptions
from stoker.state import StateSource, locate_state

KEYS = ("key-of-ann", "key-of-bob")


def state_at(folder: Path) -> StateSource:
    location = locate_state(str(folder / "state.db"))
    assert location is not None
    return StateSource(location)


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    options = ServerOptions(api_keys=KEYS, max_file_bytes=3 << 20, body_timeout_s=1.0)
    with serve(FakeHost(), options, state=state_at(tmp_path_factory.mktemp("files"))) as running:
        yield running


def contents(served: Served) -> set[str]:
    assert served.service.state is not None
    return {path.name for path in (served.service.state.location.folder / "contents").iterdir()}


def uploads(served: Served) -> list[Path]:
    assert served.service.state is not None
    return list((served.service.state.location.folder / "uploads").iterdir())


def call(served: Served, method: str, path: str, key: str = KEYS[0], **more: Any) -> httpx.Response:
    headers = {"authorization": f"Bearer {key}", **more.pop("headers", {})}
    return httpx.request(method, served.url + path, headers=headers, timeout=20, **more)


def upload(served: Served, data: bytes, *, name: str = "in.jsonl", **more: Any) -> httpx.Response:
    fields = more.pop("fields", {"purpose": "batch"})
    return call(served, "POST", "/v1/files", files={"file": (name, data)}, data=fields, **more)


@pytest.mark.parametrize("size", [0, 1, (1 << 20) - 1, 1 << 20, (1 << 20) + 1, 3 << 20])
def test_what_was_uploaded_comes_back(served: Served, size: int) -> None:
    data = os.urandom(size)
    made = upload(served, data).json()
    assert made == {
        "id": made["id"],
        "object": "file",
        "bytes": size,
        "created_at": made["created_at"],
        "filename": "in.jsonl",
        "purpose": "batch",
        "status": "processed",
        "expires_at": None,
    }
    assert abs(made["created_at"] - time.time()) < 60
    assert call(served, "GET", f"/v1/files/{made['id']}").json() == made
    found = call(served, "GET", f"/v1/files/{made['id']}/content")
    assert found.content == data
    assert found.headers["content-type"] == "application/octet-stream"
    assert found.headers["x-content-type-options"] == "nosniff"
    deleted = call(served, "DELETE", f"/v1/files/{made['id']}").json()
    assert deleted == {"id": made["id"], "object": "file", "deleted": True}
    assert made["id"] not in contents(served)
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        gone = call(served, method, f"/v1/files/{made['id']}{path}")
        assert (gone.status_code, gone.json()["error"]["code"]) == (404, "file_not_found")


def test_files_are_their_keys_own(served: Served) -> None:
    made = upload(served, b"secret").json()
    path = f"/v1/files/{made['id']}"
    for method, of_file in (("GET", path), ("GET", f"{path}/content"), ("DELETE", path)):
        assert call(served, method, of_file, KEYS[1]).status_code == 404
    assert call(served, "GET", "/v1/files", KEYS[1]).json()["data"] == []
    assert call(served, "GET", path, "no key").status_code == 401
    assert call(served, "GET", f"{path}/content").content == b"secret"
    call(served, "DELETE", path)


def test_owners_stay_when_keys_are_added_before_theirs(tmp_path: Path) -> None:
    options = ServerOptions(api_keys=KEYS[:1])
    with serve(FakeHost(), options, state=state_at(tmp_path)) as running:
        made = upload(running, b"x").json()
    options = ServerOptions(api_keys=("another", *reversed(KEYS)))
    with serve(FakeHost(), options, state=state_at(tmp_path)) as running:
        assert call(running, "GET", f"/v1/files/{made['id']}").json() == made
        assert call(running, "GET", f"/v1/files/{made['id']}", "another").status_code == 404


def test_lists_in_pages(tmp_path: Path) -> None:
    with serve(FakeHost(), state=state_at(tmp_path)) as running:
        purposes = ["batch", "user_data", "batch"]
        ids = [upload(running, b"x", fields={"purpose": purpose}).json()["id"] for purpose in purposes]
        whole = running.get("/v1/files").json()
        assert [file["id"] for file in whole["data"]] == ids[::-1]
        assert (whole["first_id"], whole["last_id"], whole["has_more"]) == (ids[2], ids[0], False)
        first = running.get("/v1/files?order=asc&limit=1&purpose=batch").json()
        assert ([file["id"] for file in first["data"]], first["has_more"]) == ([ids[0]], True)
        second = running.get(f"/v1/files?order=asc&limit=1&purpose=batch&after={ids[0]}").json()
        assert ([file["id"] for file in second["data"]], second["has_more"]) == ([ids[2]], False)


@pytest.mark.parametrize(
    ("query", "param"),
    [
        ("limit=0", "limit"),
        ("limit=x", "limit"),
        ("limit=10001", "limit"),
        ("order=up", "order"),
        ("after=file-unknown", None),
        ("colour=red", "colour"),
        ("limit=1&limit=2", "limit"),
        ("&".join(f"a{i}=1" for i in range(40)), None),
    ],
)
def test_a_wrong_query_is_refused(served: Served, query: str, param: str | None) -> None:
    found = call(served, "GET", f"/v1/files?{query}")
    assert (found.status_code, found.json()["error"]["param"]) == (400, param)


def test_expiry(served: Served) -> None:
    fields = {"purpose": "user_data", "expires_after[anchor]": "created_at", "expires_after[seconds]": "3600"}
    made = upload(served, b"x", fields=fields).json()
    assert made["expires_at"] == made["created_at"] + 3600
    for seconds in ("3599", "2592001", "x", "-1", "1e9", ""):
        wrong = upload(served, b"x", fields={**fields, "expires_after[seconds]": seconds})
        assert wrong.json()["error"]["param"] == "expires_after[seconds]"
    wrong = upload(served, b"x", fields={"purpose": "batch", "expires_after[seconds]": "3600"})
    assert wrong.json()["error"]["param"] == "expires_after[anchor]"


def _form(*parts: bytes, end: bytes = b"--B--\r\n") -> bytes:
    return b"".join(b"--B\r\n" + part + b"\r\n" for part in parts) + end


FILE = b'Content-Disposition: form-data; name="file"; filename="a"\r\n\r\nx'
PURPOSE = b'Content-Disposition: form-data; name="purpose"\r\n\r\nbatch'


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (_form(FILE), "purpose is missing"),
        (_form(PURPOSE), "file is missing"),
        (_form(FILE, PURPOSE, FILE), "twice"),
        (_form(PURPOSE, PURPOSE), "twice"),
        (_form(FILE, PURPOSE, b'Content-Disposition: form-data; name="x"\r\n\r\n1'), "not a field"),
        (_form(PURPOSE.replace(b"batch", b"fine-tune"), FILE), "purpose is 'fine-tune'; allowed: batch"),
        (_form(PURPOSE.replace(b"batch", b"b" * 5000)), "more than 4096 bytes"),
        (_form(b"Content-Disposition: form-data\r\n\r\nx"), "has no name"),
        (_form(b"X-A: " + b"a" * 9000 + b"\r\n\r\nx"), "no form"),
        (_form(*(b'Content-Disposition: form-data; name="f%d"\r\n\r\n' % i for i in range(20))), "fields"),
        (_form(PURPOSE, FILE, end=b"--B"), "ends in the middle"),
        (_form(PURPOSE, FILE)[:-40], "ends in the middle"),
        (b"no form at all", "no form"),
        (b"", "ends in the middle"),
    ],
)
def test_a_wrong_form_is_refused(served: Served, body: bytes, says: str) -> None:
    before = contents(served)
    kind = {"content-type": "multipart/form-data; boundary=B"}
    found = call(served, "POST", "/v1/files", content=body, headers=kind)
    assert found.status_code == 400, found.text
    assert says in found.json()["error"]["message"]
    assert contents(served) == before
    assert uploads(served) == []


@pytest.mark.parametrize(
    "kind", ["application/json", "multipart/form-data", "multipart/form-data; boundary=" + "b" * 300, ""]
)
def test_another_type_of_body_is_refused(served: Served, kind: str) -> None:
    found = call(served, "POST", "/v1/files", content=_form(PURPOSE, FILE), headers={"content-type": kind})
    assert found.status_code in (400, 415)
    assert found.json()["error"]["code"] in ("content_type", "invalid_form")


@pytest.mark.parametrize("tells_length", [True, False])
def test_a_file_that_is_too_large_is_refused(served: Served, tells_length: bool) -> None:
    before = contents(served)
    data = _form(PURPOSE, FILE + b"x" * (3 << 20))

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(data), 1 << 16):
            yield data[start : start + (1 << 16)]

    found = call(
        served,
        "POST",
        "/v1/files",
        content=data if tells_length else pieces(),
        headers={"content-type": "multipart/form-data; boundary=B"},
    )
    assert (found.status_code, found.json()["error"]["code"]) == (413, "request_too_large")
    assert contents(served) == before
    assert uploads(served) == []


def _until(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("leaves", [True, False])
def test_an_upload_that_stops_leaves_nothing(served: Served, leaves: bool) -> None:
    before = contents(served)
    connection = served.connect()
    head = f"POST /v1/files HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {KEYS[0]}\r\n"
    head += "Content-Type: multipart/form-data; boundary=B\r\nContent-Length: 2000000\r\n\r\n"
    connection.sendall(head.encode() + _form(PURPOSE, FILE + b"x" * 1_500_000, end=b""))
    _until(lambda: bool(uploads(served)))
    if leaves:
        connection.close()
    else:
        answer = connection.recv(4096)  # after the time for a piece, which is a second here
        assert b" 408 " in answer.split(b"\r\n")[0]
        assert b"body_timeout" in answer
        connection.close()
    _until(lambda: not uploads(served))
    assert contents(served) == before


def test_web_pages_of_other_places_may_not_upload(served: Served) -> None:
    refused = upload(served, b"x", headers={"origin": "https://evil.example"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (403, "origin_not_allowed")
    own = upload(served, b"x", headers={"origin": served.url})
    assert own.status_code == 200


def test_a_server_without_state_says_so() -> None:
    with serve(FakeHost()) as running:
        for path in ("/v1/files", "/v1/files/file-1", "/v1/batches", "/v1/batches/batch_1"):
            found = running.get(path)
            assert (found.status_code, found.json()["error"]["code"]) == (501, "state_disabled")
        assert running.chat().status_code == 200


def test_stored_bytes_are_limited_together(tmp_path: Path) -> None:
    with serve(FakeHost(), ServerOptions(max_stored_bytes=10), state=state_at(tmp_path)) as running:
        assert upload(running, b"0123456789").status_code == 200
        full = upload(running, b"x")
        assert (full.status_code, full.json()["error"]["code"]) == (413, "storage_full")
        assert "delete some" in full.json()["error"]["message"]


def test_a_full_disk_is_a_503(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    with serve(FakeHost(), state=state_at(tmp_path)) as running:
        with monkeypatch.context() as patch:
            patch.setattr("stoker.state.content.os.fsync", full)
            found = upload(running, b"x")
            assert (found.status_code, found.json()["error"]["code"]) == (503, "out_of_capacity")
            assert "No space left" in found.json()["error"]["message"]
        assert uploads(running) == []
        assert contents(running) == set()
        assert running.get("/v1/files").json()["data"] == []
        assert upload(running, b"x").status_code == 200


def test_a_content_that_somebody_removed(served: Served) -> None:
    made = upload(served, b"x").json()
    assert served.service.state is not None
    (served.service.state.location.folder / "contents" / made["id"]).unlink()
    found = call(served, "GET", f"/v1/files/{made['id']}/content")
    assert (found.status_code, found.json()["error"]["code"]) == (404, "content_not_found")
    assert call(served, "DELETE", f"/v1/files/{made['id']}").json()["deleted"]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("../../etc/passwd", "passwd"),
        ("C:\\files\\a b.txt", "a b.txt"),
        ("ü 世 🚂.jsonl", "ü 世 🚂.jsonl"),
        ("x" * 300 + ".jsonl", "x" * 249 + ".jsonl"),
        ("a\x01b\x7f", "ab"),
    ],
)
def test_names_are_names(served: Served, given: str, kept: str) -> None:
    head = f'Content-Disposition: form-data; name="file"; filename="{given}"\r\n\r\nx'.encode()
    kind = {"content-type": "multipart/form-data; boundary=B"}
    made = call(served, "POST", "/v1/files", content=_form(PURPOSE, head), headers=kind).json()
    assert made["filename"] == kept
    shown = call(served, "GET", f"/v1/files/{made['id']}/content").headers["content-disposition"]
    assert shown.isascii()


@settings(max_examples=200, deadline=None)
@given(data=st.data())
def test_a_form_is_read_the_same_however_it_is_cut(data: st.DataObject) -> None:
    content = data.draw(st.binary(max_size=60) | st.just(b"\r\n--B\r\n--B-\r-\n--"), label="content")
    if b"--B" in content:
        content = content.replace(b"--B", b"--b")
    body = _form(PURPOSE, FILE[:-1] + content)
    cuts = data.draw(st.lists(st.integers(0, len(body)), max_size=12).map(sorted), label="cuts")
    form = UploadForm(b"B")
    found = b"".join(
        form.feed(body[start:end]) for start, end in zip([0, *cuts], [*cuts, len(body)], strict=True)
    )
    form.finish()
    assert (found, form.fields, form.file_name) == (content, {"purpose": "batch"}, "a")


@settings(max_examples=200, deadline=None)
@given(
    body=st.binary(max_size=200)
    | st.lists(st.sampled_from([b"--B", b"\r\n", b"-", FILE, b"\0"])).map(b"".join)
)
def test_no_form_is_more_than_refused(body: bytes) -> None:
    form = UploadForm(b"B")
    refusal = None
    try:
        form.feed(body)
        form.finish()
    except Refusal as error:
        refusal = error
    assert refusal is None or refusal.problem.status == 400
