"""Where answers of chats are kept, with the messages they answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from stoker.server.service import Service

if TYPE_CHECKING:
    from stoker.state.completions import Completions, StoredCompletion


class ChatStore:
    """The stored answers of a server. One for each."""

    def __init__(self, service: Service) -> None:
        self._service = service
        self._unwritten = service.unwritten

    async def table(self) -> Completions:
        """The table. Raises as `Service.opened_state`."""
        return (await self._service.opened_state()).completions

    async def new_id(self, owner: str, request_id: str) -> str:
        """An id that no other answer has. Raises if an answer could not be stored now."""
        await (await self.table()).check()
        return f"chatcmpl-{self._service.stored_hex(owner, request_id)}"

    async def keep(
        self,
        owner: str,
        answer: Mapping[str, Any],
        *,
        messages: Sequence[Mapping[str, Any]],
        metadata: Mapping[str, str],
    ) -> None:
        """Store a whole answer, as it was given, under its id."""
        table = await self.table()
        stored = table.new(
            owner,
            answer["id"],
            model=answer["model"],
            body=msgspec.json.encode(answer).decode(),
            messages=msgspec.json.encode(messages).decode(),
            metadata=metadata,
        )
        await self._unwritten.write(stored.id, stored, lambda: table.add(stored))

    async def find(self, owner: str, completion_id: str) -> StoredCompletion | None:
        """The owner's answer that is stored, or is to be."""
        waiting: StoredCompletion | None = self._unwritten.find(completion_id)
        if waiting is not None and waiting.owner == owner:
            return waiting
        return await (await self.table()).find(owner, completion_id)

    async def delete(self, owner: str, completion_id: str) -> bool:
        """Forget the owner's answer; False if there is none."""
        waiting: StoredCompletion | None = self._unwritten.find(completion_id)
        is_ours = waiting is not None and waiting.owner == owner
        deleted = await (await self.table()).delete(owner, completion_id)
        if is_ours:
            self._unwritten.drop(completion_id)
            await (await self.table()).delete(owner, completion_id)  # it may have been written meanwhile
        return deleted or is_ours


def object_of(stored: StoredCompletion) -> dict[str, Any]:
    """OpenAI's object of a stored answer."""
    answer: dict[str, Any] = msgspec.json.decode(stored.body)
    return {**answer, "metadata": dict(stored.metadata)}


def messages_of(stored: StoredCompletion) -> list[dict[str, Any]]:
    """OpenAI's objects of the messages it answered."""
    messages: list[dict[str, Any]] = msgspec.json.decode(stored.messages)
    return [_message(f"{stored.id}-{number}", message) for number, message in enumerate(messages)]


def _message(message_id: str, message: Mapping[str, Any]) -> dict[str, Any]:
    content = message.get("content")
    parts = content if isinstance(content, list) else None
    return {
        "refusal": None,
        "name": None,
        **message,
        "id": message_id,
        "content": content if parts is None else None,
        "content_parts": parts,
    }
