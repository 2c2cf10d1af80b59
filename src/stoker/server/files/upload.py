"""POST /v1/files: a body goes to disk as it arrives, and becomes a file when it is whole."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from stoker.server.errors import ClientGone, Problem, Refusal, refuse
from stoker.server.files.form import UploadForm, boundary_of
from stoker.server.files.objects import file_object
from stoker.server.files.schemas import LEAST_EXPIRY_S, MOST_EXPIRY_S, PURPOSES
from stoker.server.http import Receive, Scope, Send, answer_json, header, owner
from stoker.server.options import ServerOptions
from stoker.server.service import Service
from stoker.state.content import Upload

if TYPE_CHECKING:
    from stoker.state import State

# Written to disk at once: a thread per network packet would cost more than the writing.
_WRITE_BYTES = 1 << 20
_FORM_BYTES = 64 << 10  # what a form may have besides its file
_FIELDS = ("purpose", "expires_after[anchor]", "expires_after[seconds]")


@dataclass(frozen=True)
class UploadFile:
    """The handler of POST /v1/files."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call. Raises `Refusal`, `ClientGone`, and as `Service.opened_state`."""
        options = self.service.options
        _refuse_foreign_page(scope, options)
        boundary = boundary_of(scope)
        length = header(scope, b"content-length")
        if (
            length is not None
            and length.isdigit()
            and int(length[:20]) > options.max_file_bytes + _FORM_BYTES
        ):
            raise _too_large(options)
        with self.service.one_more():
            state = await self.service.opened_state()
            await self._refuse_without_room(state)
            upload = await asyncio.to_thread(Upload, state.place)
            try:
                form = await _receive_form(UploadForm(boundary), upload, receive, options)
                expires_after_s = check_fields(form)
                file = state.files.new(
                    owner(scope),
                    name=form.file_name or "",
                    purpose=form.fields["purpose"],
                    size_bytes=upload.size_bytes,
                    expires_after_s=expires_after_s,
                )
                await asyncio.to_thread(upload.keep, file.id)
            finally:
                await asyncio.to_thread(upload.discard)
            await state.files.add(file)
        await answer_json(scope, send, file_object(file))

    async def _refuse_without_room(self, state: State) -> None:
        most = self.service.options.max_stored_bytes
        stored = await state.files.stored_bytes()
        if stored >= most:
            raise Refusal(
                Problem(
                    413,
                    f"the files of this server have {stored} bytes; allowed: at most {most}; delete some",
                    code="storage_full",
                )
            )


def check_fields(form: UploadForm) -> int | None:
    """Seconds after which the file expires, none for never. Raises `Refusal` for what is missing or wrong."""
    for name in form.fields:
        if name not in _FIELDS:
            raise refuse(
                name,
                f"{name!r:.80} is not a field of this form; allowed: file, {', '.join(_FIELDS)}",
                code="unknown_parameter",
            )
    if form.file_name is None:
        raise refuse("file", "file is missing", code="missing_parameter")
    purpose = form.fields.get("purpose")
    if purpose is None:
        raise refuse("purpose", "purpose is missing", code="missing_parameter")
    if purpose not in PURPOSES:
        raise refuse("purpose", f"purpose is {purpose!r:.80}; allowed: {', '.join(PURPOSES)}")
    anchor = form.fields.get("expires_after[anchor]")
    seconds = form.fields.get("expires_after[seconds]")
    if anchor is None and seconds is None:
        return None
    if anchor != "created_at":
        raise refuse("expires_after[anchor]", f"expires_after[anchor] is {anchor!r:.80}; allowed: created_at")
    if seconds is None or not (seconds.isascii() and seconds.isdigit() and len(seconds) < 10):
        raise refuse(
            "expires_after[seconds]", f"expires_after[seconds] is {seconds!r:.80}; allowed: a number"
        )
    if not LEAST_EXPIRY_S <= int(seconds) <= MOST_EXPIRY_S:
        raise refuse(
            "expires_after[seconds]",
            f"expires_after[seconds] is {seconds}; allowed: from {LEAST_EXPIRY_S} to {MOST_EXPIRY_S}",
        )
    return int(seconds)


async def _receive_form(
    form: UploadForm, upload: Upload, receive: Receive, options: ServerOptions
) -> UploadForm:
    """Read the body. No piece of it may take longer than a whole JSON body may; all of them have an hour."""
    waiting: list[bytes] = []
    waiting_bytes = body_bytes = 0
    more = True
    try:
        async with asyncio.timeout(options.upload_timeout_s):
            while more:
                async with asyncio.timeout(options.body_timeout_s):
                    message = await receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                piece = message.get("body", b"")
                more = message.get("more_body", False)
                data = form.feed(piece)
                waiting.append(data)
                waiting_bytes += len(data)
                body_bytes += len(piece)
                if (
                    upload.size_bytes + waiting_bytes > options.max_file_bytes
                    or body_bytes > options.max_file_bytes + _FORM_BYTES
                ):
                    raise _too_large(options)
                if waiting_bytes >= _WRITE_BYTES or not more:
                    await asyncio.to_thread(upload.write, b"".join(waiting))
                    waiting.clear()
                    waiting_bytes = 0
    except TimeoutError:
        raise Refusal(
            Problem(
                408,
                f"the body did not arrive in time: {options.body_timeout_s:g} s without a byte, or "
                f"{options.upload_timeout_s:g} s in all",
                code="body_timeout",
                headers=((b"connection", b"close"),),
            )
        ) from None
    form.finish()
    return form


def _refuse_foreign_page(scope: Scope, options: ServerOptions) -> None:
    """A form is sent by a browser without asking (CORS): pages of other places must not fill the disk."""
    origin = header(scope, b"origin")
    if origin is None or "*" in options.allowed_origins:
        return
    text = origin.decode("latin-1")
    host = (header(scope, b"host") or b"").decode("latin-1").lower()
    if text in options.allowed_origins or urlsplit(text).netloc.lower() == host:
        return
    raise Refusal(
        Problem(
            403,
            f"a web page of {text!r:.100} may not upload here (--allow-origin adds to those that may)",
            type="permission_error",
            code="origin_not_allowed",
        )
    )


def _too_large(options: ServerOptions) -> Refusal:
    message = f"the file has more than {options.max_file_bytes} bytes; allowed: at most that"
    return Refusal(Problem(413, message, param="file", code="request_too_large"))
