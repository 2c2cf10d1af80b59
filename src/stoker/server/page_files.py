"""The page at /: files of the folder `page`, read once when the server is made."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from starlette.routing import BaseRoute, Route

from stoker.server.errors import refuse
from stoker.server.http import Header, Receive, Scope, Send, answer_bytes, header

_FOLDER = Path(__file__).parent / "page"
_TYPES: Mapping[str, bytes] = MappingProxyType(
    {
        ".html": b"text/html; charset=utf-8",
        ".css": b"text/css; charset=utf-8",
        ".js": b"text/javascript; charset=utf-8",
        ".svg": b"image/svg+xml",
    }
)
# Nothing from elsewhere, nothing inline, in nobody's frame.
_HEADERS: tuple[Header, ...] = (
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        b"base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cache-control", b"no-cache"),
)


@dataclass(frozen=True)
class PageFile:
    """One file, as an endpoint."""

    content: bytes
    kind: bytes
    etag: bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer with the file, or with 304 for who has it."""
        headers = [*_HEADERS, (b"etag", self.etag), (b"content-type", self.kind)]
        if header(scope, b"if-none-match") == self.etag:
            await answer_bytes(scope, send, 304, b"", headers)
        else:
            await answer_bytes(scope, send, 200, self.content, headers)


@dataclass(frozen=True)
class _Files:
    files: Mapping[str, PageFile]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        name = scope["path_params"]["name"]
        if name not in self.files:
            raise refuse(None, f"{scope['path']!r:.200} does not exist", status=404, code="not_found")
        await self.files[name](scope, receive, send)


def page_routes(folder: Path = _FOLDER) -> list[BaseRoute]:
    """GET / and GET /page/NAME; none where the folder is missing."""
    files = {path.name: _read(path) for path in sorted(folder.glob("*")) if path.suffix in _TYPES}
    if "index.html" not in files:
        return []
    return [
        Route("/", files["index.html"], methods=["GET"]),
        Route("/page/{name}", _Files(MappingProxyType(files)), methods=["GET"]),
    ]


def _read(path: Path) -> PageFile:
    content = path.read_bytes()
    etag = f'"{hashlib.sha256(content).hexdigest()[:32]}"'.encode()
    return PageFile(content, _TYPES[path.suffix], etag)
