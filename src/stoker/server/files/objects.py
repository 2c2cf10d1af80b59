"""A stored file as clients see it, and where one is looked up."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stoker.server.errors import Problem, Refusal
from stoker.server.http import Scope, owner

if TYPE_CHECKING:
    from stoker.state import State, StoredFile


def file_object(file: StoredFile) -> dict[str, Any]:
    """OpenAI's object of a file."""
    return {
        "id": file.id,
        "object": "file",
        "bytes": file.size_bytes,
        "created_at": file.created_s,
        "filename": file.name,
        "purpose": file.purpose,
        "status": "processed",
        "expires_at": file.expires_s,
    }


async def find_file(state: State, scope: Scope, file_id: str, *, param: str = "file_id") -> StoredFile:
    """The file, if it is the asking key's. Raises `Refusal` (404); another's file is not there either."""
    file = await state.files.find(owner(scope), file_id)
    if file is None:
        raise Refusal(Problem(404, f"there is no file {file_id!r:.100}", param=param, code="file_not_found"))
    return file
