"""A real PostgreSQL server for tests: its own cluster in a temporary folder, stopped and started at will."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

_START_S = 60


def programs() -> Path:
    """The folder of initdb and pg_ctl; skips the test without them."""
    found = shutil.which("initdb")
    if found:
        return Path(found).resolve().parent
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: path.parts)
    if not folders:
        pytest.skip("PostgreSQL's initdb is not here: run scripts/install-postgresql as root")
    return folders[-1].parent


class Cluster:
    """One server on a socket in its folder. Runs as nobody where the tests run as root, which it refuses."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._programs = programs()
        self._data = folder / "data"
        if os.geteuid() == 0:
            shutil.chown(folder, "nobody")
        self._run("initdb", "-D", str(self._data), "-U", "stoker", "-A", "trust", "-E", "UTF8", "--no-sync")

    @property
    def url(self) -> str:
        """Of its only database, as `--state` takes it."""
        return f"postgresql://stoker@/postgres?host={self._folder}"

    def start(self) -> None:
        """Returns once it answers."""
        options = f"-c listen_addresses='' -c unix_socket_directories='{self._folder}' -c fsync=off"
        log = str(self._folder / "log")
        self._run(
            "pg_ctl", "-D", str(self._data), "-w", "-t", str(_START_S), "-o", options, "-l", log, "start"
        )

    def stop(self) -> None:
        """At once, as by a crash: connections break off."""
        self._run("pg_ctl", "-D", str(self._data), "-m", "immediate", "-w", "stop")

    def sql(self, statement: str) -> str:
        """What psql prints for it."""
        return self._run("psql", "-h", str(self._folder), "-U", "stoker", "-d", "postgres", "-Atc", statement)

    def _run(self, program: str, *arguments: str) -> str:
        done = subprocess.run(
            [str(self._programs / program), *arguments],
            check=False,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            timeout=_START_S + 10,
            cwd=self._folder,
            user="nobody" if os.geteuid() == 0 else None,
        )
        assert done.returncode == 0, f"{program}: {done.stdout[-2000:]}"
        return done.stdout


@contextmanager
def cluster() -> Iterator[Cluster]:
    """A server that runs, for the time of the block. Its folder's path is short: a socket's name must be."""
    folder = Path(tempfile.mkdtemp(prefix="stoker-pg-"))
    try:
        made = Cluster(folder)
        made.start()
        try:
            yield made
        finally:
            if (folder / "data" / "postmaster.pid").exists():
                made.stop()
    finally:
        shutil.rmtree(folder, ignore_errors=True)
