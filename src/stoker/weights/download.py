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
from pathlib import Path
from typing import BinaryIO

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
    pause_s: float = RETRY_PAUSE_S,
) -> None:
    """Download ``url`` to ``target``, going on after what ``target``.part already holds.

    ``on_bytes`` is called with the number of bytes present so far. Raises ConnectionError when the
    server cannot be reached or breaks off ``MAX_ATTEMPTS`` times without a byte, PullError when the
    content is not the expected one or the disk is full. ``.part`` is kept unless it is wrong.
    """
    part = target.with_name(target.name + ".part")
    if part.exists() and part.stat().st_size > size_bytes:
        part.unlink()
    fruitless, reason = 0, ""
    while (present := part.stat().st_size if part.exists() else 0) < size_bytes:
        if fruitless == MAX_ATTEMPTS:
            raise ConnectionError(
                f"{without_password(url)}: {present} of {size_bytes} bytes arrived, then {MAX_ATTEMPTS}"
                f" attempts brought none ({reason})"
            )
        if fruitless:
            time.sleep(pause_s * 2 ** (fruitless - 1))
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
        fruitless = 0 if arrived > present else fruitless + 1
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


def _open_at(part: Path, start: int) -> BinaryIO:
    """``part`` cut to ``start`` bytes (0 where the server sends the file from its beginning)."""
    try:
        handle = open(part, "r+b" if part.exists() else "wb")  # noqa: SIM115 (the caller closes it)
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


def write_all(handle: BinaryIO, chunk: bytes) -> None:
    """Write ``chunk``. Raises PullError with the place and the reason when the disk does not take it."""
    try:
        handle.write(chunk)
        handle.flush()
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        hint = "free some space and run the same command again; what has arrived is kept" if full else None
        raise PullError(f"{handle.name}: cannot be written: {error.strerror}", hint=hint) from error


def check_sha256(path: Path, expected: str, what: str) -> None:
    """Raises PullError and removes the file when its content is not the expected one."""
    with open(path, "rb") as handle:
        found = hashlib.file_digest(handle, "sha256").hexdigest()
    if found != expected:
        path.unlink()
        raise PullError(f"{what}: SHA-256 is {found}, expected {expected}; the download was removed")
