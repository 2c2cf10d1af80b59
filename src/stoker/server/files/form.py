"""A multipart body as it arrives: small fields are kept, the file's bytes are passed on at once."""

from __future__ import annotations

from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from stoker.server.errors import Refusal, refuse
from stoker.server.http import Scope, header

_MOST_FIELD_BYTES = 4096
_MOST_FIELDS = 16
_MOST_NAME_CHARS = 255  # what file systems take, too


class UploadForm:
    """One upload: `feed` it the body, then read `fields` and `file_name`.

    Raises `Refusal` for what is no form, a field given twice, too large or nameless, a second file.
    """

    def __init__(self, boundary: bytes) -> None:
        self.fields: dict[str, str] = {}
        self.file_name: str | None = None  # none: no file has begun
        self._name = ""  # of the part that arrives
        self._is_file = False
        self._value = bytearray()
        self._headers: dict[str, str] = {}
        self._header_name = bytearray()
        self._header_value = bytearray()
        self._file_bytes: list[bytes] = []
        self._ended = False
        callbacks: Any = {
            "on_part_begin": self._part_begin,
            "on_header_field": self._header_field,
            "on_header_value": self._header_value_piece,
            "on_header_end": self._header_end,
            "on_headers_finished": self._headers_finished,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }
        try:
            self._parser = MultipartParser(boundary, callbacks)
        except FormParserError as error:
            raise _no_form(str(error)) from None

    def feed(self, data: bytes) -> bytes:
        """Take a piece of the body; returns the file's bytes that were in it."""
        try:
            self._parser.write(data)
        except FormParserError as error:
            raise _no_form(str(error)) from None
        found = b"".join(self._file_bytes)
        self._file_bytes.clear()
        return found

    def finish(self) -> None:
        """The body has ended. Raises `Refusal` if the form has not."""
        if not self._ended:
            raise _no_form("it ends in the middle")

    def _part_begin(self) -> None:
        self._headers = {}
        self._value.clear()

    def _header_field(self, data: bytes, start: int, end: int) -> None:
        self._header_name += data[start:end]

    def _header_value_piece(self, data: bytes, start: int, end: int) -> None:
        self._header_value += data[start:end]

    def _header_end(self) -> None:
        # As HTML has it: names are UTF-8, whatever the header's own rules are.
        value = self._header_value.decode("utf-8", "replace")
        self._headers[self._header_name.decode("latin-1").strip().lower()] = value
        self._header_name.clear()
        self._header_value.clear()

    def _headers_finished(self) -> None:
        given = self._headers.get("content-disposition", "").encode()
        _, options = parse_options_header(given)
        self._name = _decoded(options.get(b"name", b""))
        if not self._name:
            raise _no_form("a part has no name")
        if self._name in self.fields or (self._name == "file" and self.file_name is not None):
            raise refuse(self._name, f"{self._name!r:.80} is in the form twice; allowed: once")
        self._is_file = self._name == "file"
        if self._is_file:
            self.file_name = _file_name(_decoded(options.get(b"filename", b"")))
        elif len(self.fields) >= _MOST_FIELDS:
            raise _no_form(f"it has more than {_MOST_FIELDS} fields")

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        if self._is_file:
            self._file_bytes.append(data[start:end])
            return
        self._value += data[start:end]
        if len(self._value) > _MOST_FIELD_BYTES:
            raise refuse(self._name, f"{self._name!r:.80} has more than {_MOST_FIELD_BYTES} bytes")

    def _part_end(self) -> None:
        if not self._is_file:
            self.fields[self._name] = self._value.decode("utf-8", "replace")

    def _end(self) -> None:
        self._ended = True


def boundary_of(scope: Scope) -> bytes:
    """What separates the parts. Raises `Refusal` (415) for a body of another type."""
    kind, options = parse_options_header(header(scope, b"content-type"))
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary:
        shown = kind.decode("latin-1") or "missing"
        raise refuse(
            None,
            f"Content-Type is {shown!r:.80}; allowed: multipart/form-data with a boundary",
            code="content_type",
            status=415,
        )
    return boundary


def _decoded(value: bytes) -> str:
    # The library reads header values as Latin-1, byte by byte; what was in them is UTF-8.
    return value.decode("utf-8", "replace")


def _file_name(given: str) -> str:
    """The last part of a path, without characters that would break a line or a header."""
    name = "".join(char for char in given.replace("\\", "/").rpartition("/")[2] if char.isprintable())
    return name[-_MOST_NAME_CHARS:] or "upload"


def _no_form(why: str) -> Refusal:
    return refuse(None, f"the body is no form (multipart/form-data): {why:.200}", code="invalid_form")
