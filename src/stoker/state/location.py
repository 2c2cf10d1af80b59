"""Where the state lies: a database's URL, and the folder of the files that belong to it."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from stoker.api.errors import RequestError

NO_STATE = "none"
_POSTGRESQL = ("postgresql", "postgres", "postgresql+psycopg")
_ALLOWED = "a path, sqlite:///PATH, postgresql://USER@HOST/DATABASE, or none"


@dataclass(frozen=True, slots=True)
class StateLocation:
    """A database and a folder. `sqlite_file` is none for PostgreSQL, `url` for SQLite."""

    folder: Path  # contents of files, work of batches
    sqlite_file: Path | None = None
    url: str | None = None

    @property
    def shown(self) -> str:
        """The database without its password."""
        if self.sqlite_file is not None:
            return str(self.sqlite_file)
        parts = urlsplit(self.url or "")
        name = "" if parts.username is None else f"{parts.username}@"
        return f"{parts.scheme}://{name}{parts.hostname or ''}{parts.path}"


def locate_state(given: str | None, *, folder: Path | None = None) -> StateLocation | None:
    """Where `--state` says; the default place for none given, and none for "none". Makes nothing.

    `folder` is where state lies by default (`data_folder`). Raises `RequestError` for what is neither a path
    nor a URL of a database that is known.
    """
    if given == NO_STATE:
        return None
    default = data_folder(os.environ, _home()) if folder is None else folder
    if given is None:
        if default is None:
            raise RequestError(
                "there is no home folder to keep files and batches in",
                hint="name a place with --state or STOKER_HOME, or keep nothing with --state none",
            )
        return StateLocation(default / "files", sqlite_file=default / "state.db")
    scheme, separator, rest = given.partition("://")
    if not separator:
        return _at_path(given)
    if scheme == "sqlite":
        return _at_path(rest.removeprefix("/"))
    if scheme in _POSTGRESQL:
        if default is None:
            raise RequestError("there is no home folder to keep files in", hint="name one with STOKER_HOME")
        _check_postgresql(given)
        return StateLocation(default / _files_of(rest), url=f"postgresql+psycopg://{rest}")
    raise RequestError(f"--state is a URL of {scheme!r:.40}; allowed: {_ALLOWED}")


def _check_postgresql(url: str) -> None:
    """What can be told before anything is opened. No part of the URL is repeated: it may hold a password."""
    try:
        urlsplit(url).port  # noqa: B018  # its check is wanted
    except ValueError as error:
        raise RequestError(
            "--state is no URL of a database; allowed: postgresql://USER:PASSWORD@HOST:PORT/DATABASE",
            hint="write / and @ in a password as %2F and %40",
        ) from error
    if importlib.util.find_spec("psycopg") is None:
        raise RequestError(
            "PostgreSQL needs the package psycopg, which is not installed",
            hint='pip install "stoker[postgresql]"',
        )


def _files_of(rest: str) -> str:
    """A folder for each database, whoever logs in: what one does not know of, another may."""
    place, _, query = rest.rpartition("@")[2].partition("?")
    hosts = sorted(pair for pair in parse_qsl(query) if pair[0] in ("host", "port", "dbname"))
    return f"files-{hashlib.sha256(f'{place} {hosts}'.encode()).hexdigest()[:12]}"


def _at_path(text: str) -> StateLocation:
    path = Path(text).expanduser() if text else None
    if path is None or path.is_dir():
        raise RequestError(f"--state is {text!r:.200}, which is no file's path; allowed: {_ALLOWED}")
    path = path.absolute()
    return StateLocation(path.with_name(path.name + ".files"), sqlite_file=path)


def data_folder(environ: Mapping[str, str], home: Path | None, platform: str = sys.platform) -> Path | None:
    """Where state lies by default: $STOKER_HOME/state, else with other programs' data.

    Not in the cache folder, where models are: those can be fetched again, files cannot. None where `home` is
    needed and is not known.
    """
    if environ.get("STOKER_HOME"):
        return Path(environ["STOKER_HOME"]).expanduser() / "state"
    if platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"]) / "stoker" / "state"
    if platform == "darwin":
        return None if home is None else home / "Library" / "Application Support" / "stoker"
    if environ.get("XDG_DATA_HOME"):
        return Path(environ["XDG_DATA_HOME"]) / "stoker"
    return None if home is None else home / ".local" / "share" / "stoker"


def _home() -> Path | None:
    try:
        return Path.home()
    except RuntimeError:  # no HOME, and no entry in the user database
        return None
