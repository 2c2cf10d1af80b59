"""One file from a server to the disk: resumed where it stopped, checked before it gets its name.

What has arrived lies in ``NAME.part``; only a file of the right size and SHA-256 becomes ``NAME``.
"""

from __future__ import annotations

import errno
import hashlib
import http.client
import re
import time
import urllib.error
from collections.abc import Callable
from io import FileIO
from pathlib import Path

from stoker.api.errors import PullError
from stoker.weights.index import IndexSettings, open_url, without_password

Progress = Callable[[int, int, str], None]  # bytes done, bytes in all, phase
CHUNK_BYTES = 1 << 18
MAX_ATTEMPTS = 5  # in a row that bring no byte
RETRY_PAUSE_S = 0.5  # before the second attempt; doubles with each that brings nothing

_CONTENT_RANGE = re.compile(r"bytes (\d+)-\d+/(?:\d+|\*)")


def fetch(
    url: str,
    target: Path,
    *,
    size_bytes: int,
    sha256: str,
    settings: IndexSettings,
    on_bytes: Callable[[int], None],
) -> None:
    """Download ``url`` to ``target``, going on after what ``target``.part already holds.

    ``on_bytes`` is called with the number of bytes present so far. Raises ConnectionError when the
    server cannot be reached or breaks off ``MAX_ATTEMPTS`` times without a byte, PullError when the
    content is not the expected one or the disk is full. ``.part`` is kept unless it is wrong.
    """
    part = target.with_name(target.name + ".part")
    if part.exists() and part.stat().st_size > size_bytes:
        part.unlink()
    # Counted from the most that was ever there: a server that does not know ranges starts anew each
    # time, and one whose file is too short would be asked for ever.
    most, fruitless, reason = 0, 0, ""
    while (present := part.stat().st_size if part.exists() else 0) < size_bytes:
        most = max(most, present)
        if fruitless == MAX_ATTEMPTS:
            raise ConnectionError(
                f"{without_password(url)}: {most} of {size_bytes} bytes arrived, then {MAX_ATTEMPTS}"
                f" attempts brought none ({reason})"
            )
        if fruitless:
            time.sleep(RETRY_PAUSE_S * 2 ** (fruitless - 1))
        try:
            reason = "the connection closed"
            _continue(url, part, present, size_bytes, settings, on_bytes)
        except urllib.error.HTTPError as error:
            reason = f"the server answers {error.code}"
            if error.code == 416:  # what we have is longer than what the server has
                part.unlink()
            elif error.code < 500 and error.code not in (408, 429):
                raise ConnectionError(f"{without_password(url)}: {reason}") from error
        except (OSError, http.client.HTTPException) as error:
            reason = str(getattr(error, "reason", error)) or type(error).__name__
        arrived = part.stat().st_size if part.exists() else 0
        fruitless = 0 if arrived > most else fruitless + 1
    check_sha256(part, sha256, without_password(url))
    part.replace(target)


def _continue(
    url: str,
    part: Path,
    present: int,
    size_bytes: int,
    settings: IndexSettings,
    on_bytes: Callable[[int], None],
) -> None:
    """One attempt: ask for what is missing and append it to ``part``."""
    headers = {"Accept-Encoding": "identity"}
    if present:
        headers["Range"] = f"bytes={present}-"
    with open_url(url, headers, settings) as response:
        start = done = _start_of_answer(response, present)
        with _open_at(part, start) as handle:
            while chunk := response.read(min(CHUNK_BYTES, size_bytes - done + 1)):
                if done + len(chunk) > size_bytes:
                    handle.truncate(0)
                    raise PullError(f"{without_password(url)}: is larger than {size_bytes} bytes")
                write_all(handle, chunk)
                done += len(chunk)
                on_bytes(done)


def _open_at(part: Path, start: int) -> FileIO:
    """``part`` cut to ``start`` bytes (0 where the server sends the file from its beginning)."""
    try:
        handle = FileIO(part, "r+" if part.exists() else "w")
        handle.truncate(start)
        handle.seek(start)
    except OSError as error:
        raise PullError(f"{part}: cannot be written: {error.strerror}") from error
    return handle


def _start_of_answer(response: http.client.HTTPResponse, present: int) -> int:
    """Offset of the first byte that the server sends: not every server knows ranges."""
    if getattr(response, "status", None) != 206:
        return 0
    match = _CONTENT_RANGE.match(response.headers.get("Content-Range", ""))
    if match is None or int(match[1]) > present:
        raise http.client.HTTPException("the server sends another range than was asked for")
    return int(match[1])


def write_all(handle: FileIO, chunk: bytes) -> None:
    """Write ``chunk``. Raises PullError with the place and the reason when the disk does not take it.

    The file is unbuffered: a buffer would try to write what is left once more when it is closed, and
    fail with an error that nobody expects there.
    """
    left = memoryview(chunk)
    try:
        while left:
            left = left[handle.write(left) :]
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space and run the same command again; what has arrived is kept" if full else None
        raise PullError(f"{handle.name!s}: cannot be written: {error.strerror}", hint=hint) from error


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raises PullError and removes the file when its content is not the expected one."""
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise PullError(f"{what}: SHA-256 is {found}, expected {expected}; the download was removed")
