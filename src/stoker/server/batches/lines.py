"""The lines of a batch's input: read in pieces, checked one by one. All of it blocks: called in threads."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec

_MOST_CUSTOM_ID_CHARS = 512
_SEEDED = frozenset({"/v1/chat/completions", "/v1/completions", "/v1/responses"})
_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True, slots=True)
class LineProblem:
    """Why a line cannot run."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Line:
    """One line that is not blank. `problem` is none where `body` can be asked."""

    number: int  # from 1, blank lines counted, as editors do
    custom_id: str | None
    body: bytes | None  # JSON of an object
    problem: LineProblem | None = None


_NULL = msgspec.Raw(b"null")


# Bodies stay text: as Python's objects they take up to 25 times as much, and several lines are held at once.
class _Form(msgspec.Struct, forbid_unknown_fields=True):
    custom_id: str
    method: str
    url: str
    body: msgspec.Raw


class _Body(msgspec.Struct):
    """What a batch itself looks at."""

    stream: msgspec.Raw = _NULL
    background: msgspec.Raw = _NULL
    seed: msgspec.Raw = _NULL


class _Named(msgspec.Struct):
    custom_id: str


def read_lines(path: Path, endpoint: str, most_line_bytes: int) -> Iterator[Line]:
    """Every line that is not blank, in order. Ids that repeat are for the caller to notice.

    Raises `OSError`.
    """
    with open(path, "rb") as file:
        number = 0
        while data := file.readline(most_line_bytes + 2):
            number += 1
            if len(data) > most_line_bytes + 1 or (len(data) > most_line_bytes and data[-1:] != b"\n"):
                while data and data[-1:] != b"\n":
                    data = file.readline(1 << 20)
                message = f"line {number} has more than {most_line_bytes} bytes; allowed: at most that"
                yield Line(number, None, None, LineProblem("line_too_long", message))
                continue
            if number == 1:
                data = data.removeprefix(_BYTE_ORDER_MARK)
            if data.strip():
                yield _line(number, data, endpoint)


def _line(number: int, data: bytes, endpoint: str) -> Line:
    try:
        if not data.isascii():
            data.decode()
        form = msgspec.json.decode(data, type=_Form)
        body = _body(form.body)
    except msgspec.ValidationError as error:
        return _bad(
            number,
            _custom_id(data),
            "invalid_line",
            f"{_said(error)}; allowed: an object with custom_id, method, url and body",
        )
    except UnicodeDecodeError as error:
        return _bad(number, None, "invalid_json_line", f"it is not UTF-8: {error.reason}")
    except msgspec.MsgspecError as error:
        return _bad(number, None, "invalid_json_line", f"it is not valid JSON: {_said(error)}")
    except RecursionError:
        return _bad(number, None, "invalid_json_line", "it nests too deeply; allowed: some hundred levels")
    if not 0 < len(form.custom_id) <= _MOST_CUSTOM_ID_CHARS:
        allowed = f"allowed: 1 to {_MOST_CUSTOM_ID_CHARS}"
        message = f"custom_id has {len(form.custom_id)} characters; {allowed}"
        return _bad(number, None, "invalid_custom_id", message)
    if form.method != "POST":
        return _bad(number, form.custom_id, "invalid_method", f"method is {form.method!r:.40}; allowed: POST")
    if form.url != endpoint:
        message = f"url is {form.url!r:.100}; allowed: the batch's endpoint, which is {endpoint}"
        return _bad(number, form.custom_id, "mismatched_endpoint", message)
    for name, value in (("stream", body.stream), ("background", body.background)):
        if bytes(value) not in (b"null", b"false"):
            shown = bytes(value)[:40].decode("utf-8", "replace")
            message = f"body.{name} is {shown}; a batch takes whole answers: leave it out"
            return _bad(number, form.custom_id, "unsupported_parameter", message)
    return Line(number, form.custom_id, bytes(form.body))


def _body(given: bytes | msgspec.Raw) -> _Body:
    try:
        return msgspec.json.decode(given, type=_Body)
    except msgspec.ValidationError as error:
        raise msgspec.ValidationError(f"{error} - at `$.body`") from None


def _bad(number: int, custom_id: str | None, code: str, message: str) -> Line:
    return Line(number, custom_id, None, LineProblem(code, f"line {number}: {message}"))


def repeated(line: Line, first: int) -> Line:
    """`line`, whose id an earlier one has."""
    return _bad(
        line.number,
        line.custom_id,
        "duplicate_custom_id",
        f"custom_id is {line.custom_id!r:.100}, which line {first} has already",
    )


def _said(error: Exception) -> str:
    text = str(error)[:300]
    return text if text[:4] == "JSON" else text[:1].lower() + text[1:]


def _custom_id(data: bytes) -> str | None:
    """The id of a line that is JSON and no call, where it has one."""
    try:
        found = msgspec.json.decode(data, type=_Named).custom_id
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    return found if 0 < len(found) <= _MOST_CUSTOM_ID_CHARS else None


def body_bytes(line: Line, batch_id: str, endpoint: str) -> bytes:
    """The body to ask. One that draws gets a seed of its own, told by the batch and the line: whenever it is
    asked again, after a crash too, it gives the same answer."""
    body = line.body
    assert body is not None
    if endpoint not in _SEEDED or bytes(_body(body).seed) != b"null":
        return body
    # Of two fields with one name the last one counts, so a null that is there stays.
    rest = body.rstrip().removesuffix(b"}").rstrip()
    comma = b"" if rest.strip() == b"{" else b","
    return b'%b%b"seed":%d}' % (rest, comma, seed_of(batch_id, line.number))


def seed_of(batch_id: str, number: int) -> int:
    """A seed below 2^53, which also JavaScript reads back as it was written."""
    digest = hashlib.sha256(f"{batch_id}\0{number}".encode()).digest()
    return int.from_bytes(digest[:8], "little") >> 11


@dataclass(frozen=True, slots=True)
class Survey:
    """What is known of an input after one pass over it."""

    total: int
    repeats: dict[int, int]  # number of a line -> number of the first that has its id
    problems: list[tuple[int, LineProblem]]  # the first few


def survey(path: Path, endpoint: str, *, most_line_bytes: int, most_lines: int, most_shown: int) -> Survey:
    """Count the lines and find what is wrong with them; stops at one line more than `most_lines`.

    Raises `OSError`.
    """
    total = 0
    firsts: dict[str, int] = {}
    repeats: dict[int, int] = {}
    problems: list[tuple[int, LineProblem]] = []
    for line in read_lines(path, endpoint, most_line_bytes):
        total += 1
        if total > most_lines:
            break
        if line.problem is None and line.custom_id is not None:
            first = firsts.setdefault(line.custom_id, line.number)
            if first != line.number:
                repeats[line.number] = first
                line = repeated(line, first)
        if line.problem is not None and len(problems) < most_shown:
            problems.append((line.number, line.problem))
    return Survey(total, repeats, problems)
