"""A chat whose last message is left open, so that the answer goes on with it."""

from __future__ import annotations

from stoker.api.chat import Chat
from stoker.api.protocols import ServedModel
from stoker.server.errors import refuse

# A template closes a message with a few tokens: an end mark, a line break. Each is tried as the end.
_MOST_CLOSING_TOKENS = 32
_TAIL_TOKENS = 64  # enough to recognise the end of the message by
_LEAST_CHARS = 16  # of a message that is longer than those


async def open_prompt(model: ServedModel, chat: Chat) -> tuple[int, ...]:
    """The token ids of `chat` up to the end of its last message's text. Raises `Refusal` if that cannot be
    found, because the template changes the text or writes it elsewhere."""
    where = "continue_final_message"
    text = chat.messages[-1].content.rstrip()
    if not text:
        raise refuse(where, f"{where} is true, but the last message is empty; allowed: one with text")
    ids = await model.encode(chat)

    def ends_with_text(end: int) -> bool:
        tail = model.decode(ids[max(end - _TAIL_TOKENS, 0) : end]).rstrip()
        if len(tail) < len(text):
            return len(tail) >= _LEAST_CHARS and text.endswith(tail[-_LEAST_CHARS:])
        return tail.endswith(text)

    first = max(len(ids) - _MOST_CLOSING_TOKENS, 0)
    for end in range(len(ids), first, -1):
        if ends_with_text(end):
            while end - 1 > first and ends_with_text(end - 1):  # white space after the text
                end -= 1
            return tuple(ids[:end])
    raise refuse(
        where, f"{where} is true, but the model's chat template does not end with the last message's text"
    )
