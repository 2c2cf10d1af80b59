"""Where on a Python package index a wheel lies: the index from pip's configuration, the simple API.

Stoker fetches a few pinned wheels and nothing else, so this reads one project's page and picks one
file name. It honours what a machine's owner has set for pip (index, extra indexes, certificate),
because behind a company's mirror that is the only index there is.
"""

from __future__ import annotations

import base64
import configparser
import http.client
import json
import os
import ssl
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Mapping
from dataclasses import dataclass
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from stoker.weights.places import home_folder

DEFAULT_INDEX = "https://pypi.org/simple"
TIMEOUT_S = 30.0  # without a byte; a slow line still moves some
MAX_PAGE_BYTES = 1 << 24  # the index page of the largest projects has about 2^22
_ACCEPT = "application/vnd.pypi.simple.v1+json, text/html;q=0.5"


@dataclass(frozen=True)
class IndexSettings:
    """The indexes to ask, in order, and the file with the certificates to trust (None: the system's)."""

    urls: tuple[str, ...] = (DEFAULT_INDEX,)
    certificate: str | None = None

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, files: tuple[Path, ...] | None = None
    ) -> IndexSettings:
        """What pip would use: its environment variables before its configuration files."""
        environ = os.environ if environ is None else environ
        options: dict[str, str] = {}
        for file in _pip_files(environ) if files is None else files:
            options |= _read_pip_file(file)
        for name in ("index-url", "extra-index-url", "cert"):
            value = environ.get("PIP_" + name.upper().replace("-", "_"))
            options |= {name: value} if value else {}
        urls = [options.get("index-url", DEFAULT_INDEX), *options.get("extra-index-url", "").split()]
        return cls(tuple(dict.fromkeys(urls)), options.get("cert"))


def _pip_files(environ: Mapping[str, str]) -> tuple[Path, ...]:
    """pip's configuration files, the one that wins last."""
    if environ.get("PIP_CONFIG_FILE"):
        return (Path(environ["PIP_CONFIG_FILE"]),)
    home = home_folder()
    name = "pip.ini" if sys.platform == "win32" else "pip.conf"
    in_home = () if home is None else (home / ".pip" / name, home / "pip" / name)
    config = environ.get("XDG_CONFIG_HOME") or (home and home / ".config")
    return (
        *(Path(folder) / "pip" / name for folder in ("/etc/xdg", "/Library/Application Support")),
        Path("/etc") / name,
        *in_home,
        *((Path(config) / "pip" / name,) if config else ()),
        Path(sys.prefix) / name,
    )


def _read_pip_file(path: Path) -> dict[str, str]:
    parser = configparser.RawConfigParser()
    try:
        parser.read_string(path.read_text())
    except (OSError, UnicodeDecodeError, configparser.Error):  # absent or broken: pip's to report
        return {}
    options: dict[str, str] = {}
    for section in ("global", "download"):
        if parser.has_section(section):
            options |= dict(parser.items(section))
    return {key: options[key] for key in ("index-url", "extra-index-url", "cert") if options.get(key)}


def request(url: str, headers: Mapping[str, str]) -> urllib.request.Request:
    """A request for ``url``; a name and password in the URL go into a header, as servers expect."""
    parts = urllib.parse.urlsplit(url)
    sent = {"User-Agent": "stoker", **headers}
    if parts.username is not None:
        pair = f"{urllib.parse.unquote(parts.username)}:{urllib.parse.unquote(parts.password or '')}"
        sent["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
        url = urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))
    made = urllib.request.Request(url)
    for name, value in sent.items():
        # Not sent again to the address of a redirect, which may be another machine.
        (made.add_unredirected_header if name == "Authorization" else made.add_header)(name, value)
    return made


def open_url(url: str, headers: Mapping[str, str], settings: IndexSettings) -> Any:
    """The response for ``url`` (http, https or file), proxies from the environment honoured.

    Raises OSError (urllib's errors are such) or ValueError for a URL of another kind.
    """
    if urllib.parse.urlsplit(url).scheme not in ("http", "https", "file"):
        raise ValueError(f"{without_password(url)}: allowed are http, https and file addresses")
    context = None
    if url.startswith("https"):
        context = ssl.create_default_context(cafile=settings.certificate)
    return urllib.request.urlopen(request(url, headers), timeout=TIMEOUT_S, context=context)


def find_file(project: str, file_name: str, settings: IndexSettings) -> str:
    """The address of ``file_name`` on the first index that has it. Raises ConnectionError."""
    reasons = []
    for index in settings.urls:
        page = f"{index.rstrip('/')}/{project}/"
        try:
            with open_url(page, {"Accept": _ACCEPT}, settings) as response:
                kind = response.headers.get("Content-Type", "")
                base = response.geturl()
                body = response.read(MAX_PAGE_BYTES + 1)
            if len(body) > MAX_PAGE_BYTES:
                raise ValueError(f"a page of more than {MAX_PAGE_BYTES} bytes")
            files = _files_of_json(body) if "json" in kind else _files_of_html(body)
        except (OSError, ValueError, http.client.HTTPException) as error:
            reasons.append(f"{without_password(index)}: {error}")
            continue
        if file_name in files:
            address = urllib.parse.urljoin(base, files[file_name])
            return _with_password_of(index, address)
        reasons.append(f"{without_password(index)}: {len(files)} files, not this one")
    raise ConnectionError(f"{file_name} was not found on any package index ({'; '.join(reasons)})")


def _files_of_json(body: bytes) -> dict[str, str]:
    try:
        return {str(file["filename"]): str(file["url"]) for file in json.loads(body)["files"]}
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"not a page of the simple API ({error!r})") from error


class _Links(HTMLParser):
    """Collects the addresses of a page's links by file name."""

    def __init__(self) -> None:
        super().__init__()
        self.files: dict[str, str] = {}

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        address = dict(attrs).get("href") if tag == "a" else None
        if address:
            address = urllib.parse.urldefrag(address).url
            self.files[urllib.parse.unquote(urllib.parse.urlsplit(address).path.rpartition("/")[2])] = address


def _files_of_html(body: bytes) -> dict[str, str]:
    links = _Links()
    links.feed(body.decode(errors="replace"))
    return links.files


def without_password(url: str) -> str:
    """``url`` fit for a message."""
    parts = urllib.parse.urlsplit(url)
    return urllib.parse.urlunsplit(parts._replace(netloc=parts.netloc.rpartition("@")[2]))


def _with_password_of(index: str, address: str) -> str:
    """Carry the index's name and password over to a file on the same machine, as pip does."""
    ours, theirs = urllib.parse.urlsplit(index), urllib.parse.urlsplit(address)
    login, at, host = ours.netloc.rpartition("@")
    if not at or theirs.netloc != host or theirs.scheme != ours.scheme:
        return address
    return urllib.parse.urlunsplit(theirs._replace(netloc=f"{login}@{host}"))
