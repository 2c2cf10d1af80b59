"""What a batch has written, after a crash at any byte; and the lines it reads."""

from __future__ import annotations

import json
import os
import shutil
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.api.errors import CapacityError
from stoker.server.batches.journal import Entry, Journal
from stoker.server.batches.lines import body_bytes, read_lines, seed_of, survey

BATCH = "batch_0123456789abcdef01234567"
CHAT = "/v1/chat/completions"


def entry(number: int) -> Entry:
    """A good one, or, for every third line, a bad one."""
    if number % 3 == 0:
        return Entry(number, f"c{number}", None, error={"code": "bad", "message": "x", "line": number})
    status = 200 if number % 3 == 1 else 400
    usage = {"prompt_tokens": number, "completion_tokens": 2}
    body = json.dumps({"text": "ü" * number, "usage": usage}, ensure_ascii=False).encode()
    return Entry(number, f"c{number}", status, f"r{number}", body)


def published(journal: Journal, folder: Path) -> tuple[bytes, bytes]:
    found = []
    for good in (True, False):
        path = folder / f"out-{good}"
        size_bytes = journal.publish(path, good=good)
        found.append(path.read_bytes() if size_bytes else b"")
        assert len(found[-1]) == size_bytes
    return found[0], found[1]


def whole(folder: Path, numbers: list[int]) -> tuple[bytes, bytes, dict[str, Any]]:
    journal = Journal(folder / "whole", BATCH)
    for number in numbers:
        journal.add([entry(number)])
    found = published(journal, folder)
    usage = journal.usage.as_dict()
    journal.close()
    return *found, usage


def test_entries_are_in_the_order_of_the_lines(tmp_path: Path) -> None:
    good, bad, usage = whole(tmp_path, [5, 1, 3, 4, 2, 7, 6])
    assert [json.loads(line)["custom_id"] for line in good.splitlines()] == ["c1", "c4", "c7"]
    assert [json.loads(line)["custom_id"] for line in bad.splitlines()] == ["c2", "c3", "c5", "c6"]
    assert json.loads(good.splitlines()[0]) == {
        "id": "batch_req_0123456789abcdef01234567_1",
        "custom_id": "c1",
        "response": {
            "status_code": 200,
            "request_id": "r1",
            "body": {"text": "ü", "usage": {"prompt_tokens": 1, "completion_tokens": 2}},
        },
        "error": None,
    }
    assert usage["input_tokens"] == 1 + 4 + 7
    assert usage["total_tokens"] == 1 + 4 + 7 + 3 * 2


@settings(max_examples=80, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_after_a_crash_at_any_byte_the_rest_gives_the_same_files(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    folder = tmp_path_factory.mktemp("journal")
    numbers = data.draw(st.permutations(range(1, 10)), label="order")
    good, bad, usage = whole(folder, numbers)
    work = folder / "whole"
    for name in ("output.jsonl", "errors.jsonl"):
        path = work / name
        size = path.stat().st_size
        os.truncate(path, data.draw(st.integers(0, size), label=name))
        if data.draw(st.booleans(), label="zeros"):  # what some file systems leave after a power failure
            with path.open("ab") as file:
                file.write(b"\0" * 50)
    journal = Journal(work, BATCH)
    done = {number for number in numbers if number in journal}
    assert journal.completed + journal.failed == len(done)
    order = data.draw(st.permutations(range(1, 10)), label="order after")
    journal.add([entry(number) for number in order])  # those that are done are not written again
    assert published(journal, folder) == (good, bad)
    assert journal.usage.as_dict() == usage
    journal.remove()
    assert not work.exists()
    shutil.rmtree(folder)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    first = Journal(tmp_path / "work", BATCH)
    with pytest.raises(BlockingIOError):
        Journal(tmp_path / "work", BATCH)
    first.close()
    Journal(tmp_path / "work", BATCH).close()


@pytest.mark.parametrize("written", [0, 1, 30])
def test_a_full_disk_leaves_no_half_of_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: int
) -> None:
    journal = Journal(tmp_path / "work", BATCH)
    journal.add([entry(1)])
    before = (tmp_path / "work" / "output.jsonl").read_bytes()

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("stoker.server.batches.journal.os.fdatasync", full)
        with pytest.raises(CapacityError, match="No space left"):
            journal.add([entry(4), entry(7)])
    assert (tmp_path / "work" / "output.jsonl").read_bytes() == before
    assert 4 not in journal
    journal.add([entry(7), entry(4)])
    assert published(journal, tmp_path)[0] == whole(tmp_path, [1, 4, 7])[0]
    journal.close()


def test_nothing_is_no_file(tmp_path: Path) -> None:
    journal = Journal(tmp_path / "work", BATCH)
    assert journal.publish(tmp_path / "out", good=True) == 0
    assert not (tmp_path / "out").exists()
    journal.close()


# --- lines -----------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(
    data=st.binary(max_size=300)
    | st.lists(st.sampled_from([b"{", b"}", b"\n", b'"custom_id":', b'"a"'])).map(b"".join)
)
def test_no_input_is_more_than_bad_lines(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    path = tmp_path_factory.getbasetemp() / "lines"
    path.write_bytes(data)
    found = list(read_lines(path, CHAT, 64))
    blank = [line for line in data.removeprefix(b"\xef\xbb\xbf").split(b"\n") if not line.strip()]
    assert len(found) <= data.count(b"\n") + 1
    assert len(found) + len(blank) >= len(data.split(b"\n"))
    assert all(line.problem is not None for line in found)
    assert [line.number for line in found] == sorted({line.number for line in found})


@pytest.mark.parametrize(("size", "good"), [(199, True), (200, True), (201, False), (5000, False)])
@pytest.mark.parametrize("end", [b"", b"\n"])
def test_the_longest_line(tmp_path: Path, size: int, good: bool, end: bytes) -> None:
    start = json.dumps({"custom_id": "a", "method": "POST", "url": CHAT, "body": {"x": ""}}).encode()
    data = start[:-3] + b"x" * (size - len(start)) + start[-3:]
    assert len(data) == size
    path = tmp_path / "lines"
    path.write_bytes(data + end)
    (line,) = read_lines(path, CHAT, 200)
    assert (line.problem is None) == good
    path.write_bytes(data + b"\n" + data + end)
    assert [line.number for line in read_lines(path, CHAT, 200)] == [1, 2]


def test_a_survey_finds_what_repeats(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    line = '{"custom_id": "%s", "method": "POST", "url": "%s", "body": {}}\n'
    path.write_text("".join(line % (name, CHAT) for name in "abacab") + "{\n")
    found = survey(path, CHAT, most_line_bytes=100, most_lines=100, most_shown=2)
    assert (found.total, found.repeats) == (7, {3: 1, 5: 1, 6: 2})
    assert [number for number, _ in found.problems] == [3, 5]
    assert survey(path, CHAT, most_line_bytes=100, most_lines=3, most_shown=2).total == 4


def test_a_seed_is_the_lines_own_and_stays(tmp_path: Path) -> None:
    assert seed_of(BATCH, 1) == 4115197355823730
    assert len({seed_of(batch, number) for batch in ("a", "b") for number in range(100)}) == 200
    path = tmp_path / "lines"
    lines = [{"seed": 3}, {"seed": None}, {}, {"a": "}"}, {"a": {}}]
    path.write_text(
        "".join(
            json.dumps({"custom_id": str(i), "method": "POST", "url": "/v1/x", "body": body}) + "\n"
            for i, body in enumerate(lines)
        )
    )
    read = list(read_lines(path, "/v1/x", 1000))
    seeds = [json.loads(body_bytes(line, BATCH, CHAT)).get("seed") for line in read]
    assert seeds == [3, *(seed_of(BATCH, number) for number in (2, 3, 4, 5))]
    unseeded = [json.loads(body_bytes(line, BATCH, "/v1/embeddings")) for line in read]
    assert unseeded == lines


def test_a_line_takes_the_memory_of_its_text(tmp_path: Path) -> None:
    path = tmp_path / "lines"
    body = b'{"input": [' + b"{}," * 1_000_000 + b"1]}"
    path.write_bytes(b'{"custom_id": "a", "method": "POST", "url": "/v1/x", "body": %b}' % body)
    tracemalloc.start()
    try:
        (line,) = read_lines(path, "/v1/x", 1 << 25)
        _, most_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert line.body == body
    assert most_bytes < 4 * len(body)


@pytest.mark.parametrize("body", [b"[]", b'"x"', b"null", b"1", b'{"stream": true}', b'{"background": [1]}'])
def test_bodies_that_cannot_be_asked(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "lines"
    path.write_bytes(b'{"custom_id": "a", "method": "POST", "url": "/v1/x", "body": %b}' % body)
    (line,) = read_lines(path, "/v1/x", 1000)
    assert line.problem is not None
    assert line.custom_id == "a"
    assert "body" in line.problem.message
