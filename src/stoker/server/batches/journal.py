"""What a running batch has written so far: answers and errors, each on a line that is whole or not there.

The files are the truth of how far a batch is: whoever opens them again, after a crash too, knows which lines
are done. One process at a time has them open. All of it blocks: called in threads, by one at a time.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import msgspec

from stoker.api.errors import StokerError
from stoker.state.content import sync_folder
from stoker.state.disk import disk_error

_ENTRY_ID = re.compile(r"batch_req_[0-9a-f]+_([0-9]{1,9})")


@dataclass(frozen=True, slots=True)
class Entry:
    """What became of one line."""

    number: int
    custom_id: str | None
    status: int | None  # of the answer; none: it was not asked
    request_id: str | None = None
    body: bytes | None = None  # of the answer, JSON
    error: Mapping[str, Any] | None = None  # why it was not asked

    @property
    def is_good(self) -> bool:
        """Answered with 200."""
        return self.status == 200

    def encoded(self, batch_id: str) -> bytes:
        """OpenAI's object, as one line of a file."""
        response = None
        if self.body is not None:
            response = {
                "status_code": self.status,
                "request_id": self.request_id,
                "body": msgspec.Raw(self.body),
            }
        value = {
            "id": f"batch_req_{batch_id.removeprefix('batch_')}_{self.number}",
            "custom_id": self.custom_id,
            "response": response,
            "error": self.error,
        }
        return msgspec.json.encode(value) + b"\n"


class _Body(msgspec.Struct):
    usage: dict[str, Any] | None = None


class _Response(msgspec.Struct):
    body: msgspec.Raw


class _Written(msgspec.Struct):
    id: str
    response: _Response | None = None


@dataclass(slots=True)
class TokenUsage:
    """Tokens of the answers so far."""

    input_tokens: int = 0
    output_tokens: int = 0
    cached_tokens: int = 0
    reasoning_tokens: int = 0

    def add(self, body: bytes | msgspec.Raw) -> None:
        """Count an answer's `usage`, under the names of chats or of responses."""
        usage = msgspec.json.decode(body, type=_Body).usage
        if usage is None:
            return
        details = "prompt_tokens" if "prompt_tokens" in usage else "input_tokens"
        self.input_tokens += usage.get(details) or 0
        self.cached_tokens += (usage.get(f"{details}_details") or {}).get("cached_tokens") or 0
        answer = "completion_tokens" if "completion_tokens" in usage else "output_tokens"
        self.output_tokens += usage.get(answer) or 0
        self.reasoning_tokens += (usage.get(f"{answer}_details") or {}).get("reasoning_tokens") or 0

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's `usage` of a batch."""
        return {
            "input_tokens": self.input_tokens,
            "input_tokens_details": {"cached_tokens": self.cached_tokens},
            "output_tokens": self.output_tokens,
            "output_tokens_details": {"reasoning_tokens": self.reasoning_tokens},
            "total_tokens": self.input_tokens + self.output_tokens,
        }


@dataclass(slots=True)
class _Log:
    """One of the two files: where each line's entry is in it."""

    path: Path
    file: BinaryIO
    places: dict[int, tuple[int, int]] = field(default_factory=dict)  # line -> (offset, bytes)
    end: int = 0


class Journal:
    """The files of one batch, open and locked. Close it."""

    def __init__(self, folder: Path, batch_id: str) -> None:
        """Opens them and reads what is there; an entry that was cut off by a crash is taken away.

        Raises `BlockingIOError` while another process has them, `UnavailableError`, `CapacityError`.
        """
        self._batch_id = batch_id
        self._folder = folder
        self.usage = TokenUsage()
        self._files = contextlib.ExitStack()
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = self._files.enter_context((folder / "lock").open("ab"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            self._good = self._open(folder / "output.jsonl")
            self._bad = self._open(folder / "errors.jsonl")
        except OSError as error:
            self._files.close()
            if isinstance(error, BlockingIOError):
                raise
            raise disk_error(error, "the work of a batch cannot be used") from error

    def _open(self, path: Path) -> _Log:
        file = self._files.enter_context(_appending(path))
        log = _Log(path, file)
        is_answers = path.name == "output.jsonl"
        with open(path, "rb") as written:
            for data in written:
                try:
                    entry = msgspec.json.decode(data, type=_Written) if data.endswith(b"\n") else None
                except msgspec.MsgspecError:
                    entry = None
                found = None if entry is None else _ENTRY_ID.fullmatch(entry.id)
                if entry is None or found is None:
                    break
                if is_answers and entry.response is not None:
                    self.usage.add(entry.response.body)
                log.places[int(found[1])] = (log.end, len(data))
                log.end += len(data)
        os.ftruncate(file.fileno(), log.end)
        return log

    @property
    def completed(self) -> int:
        """Lines that were answered with 200."""
        return len(self._good.places)

    @property
    def failed(self) -> int:
        """Lines that were not."""
        return len(self._bad.places)

    def __contains__(self, number: int) -> bool:
        """True for a line that is done."""
        return number in self._good.places or number in self._bad.places

    def add(self, entries: Iterable[Entry]) -> None:
        """Append entries. Either all are on the disk after it, or none of them is counted.

        Raises `CapacityError` if the disk is full, `UnavailableError`; the same entries may be given again.
        """
        entries = [entry for entry in entries if entry.number not in self]
        with _errors():
            for log, of_log in (
                (self._good, [entry for entry in entries if entry.is_good]),
                (self._bad, [entry for entry in entries if not entry.is_good]),
            ):
                self._append(log, of_log)

    def _append(self, log: _Log, entries: list[Entry]) -> None:
        if not entries:
            return
        lines = [entry.encoded(self._batch_id) for entry in entries]
        view = memoryview(b"".join(lines))
        try:
            while view:
                view = view[log.file.write(view) :]
            os.fdatasync(log.file.fileno())
        except OSError:
            os.ftruncate(log.file.fileno(), log.end)
            raise
        for entry, line in zip(entries, lines, strict=True):
            log.places[entry.number] = (log.end, len(line))
            log.end += len(line)
            if entry.is_good and entry.body is not None:
                self.usage.add(entry.body)

    def publish(self, target: Path, *, good: bool) -> int:
        """Write answers, or errors, in the order of the lines, as the content of a file; returns its bytes.

        0: there are none, and no file. What is at `target` is replaced. Raises as `add`.
        """
        log = self._good if good else self._bad
        if not log.places:
            return 0
        part = target.with_name(f".{target.name}.{uuid.uuid4().hex}")
        with _errors():
            try:
                with open(part, "xb", opener=_private) as out, open(log.path, "rb") as written:
                    for number in sorted(log.places):
                        offset, size_bytes = log.places[number]
                        written.seek(offset)
                        out.write(written.read(size_bytes))
                    out.flush()
                    os.fsync(out.fileno())
                os.replace(part, target)
                sync_folder(target.parent)
            finally:
                part.unlink(missing_ok=True)
        return log.end

    def close(self) -> None:
        """Let go of the files, and of the lock."""
        self._files.close()

    def remove(self) -> None:
        """Close, and remove the batch's folder: all of it is published."""
        self.close()
        shutil.rmtree(self._folder, ignore_errors=True)


def _appending(path: Path) -> BinaryIO:
    return open(path, "a+b", buffering=0, opener=_private)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


@contextlib.contextmanager
def _errors() -> Iterator[None]:
    try:
        yield
    except StokerError:
        raise
    except OSError as error:
        raise disk_error(error, "the answers of a batch cannot be written") from error
