"""Where answers of chats and of text completions differ: names, the place of the text, log-probabilities."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.api.events import TokenLogprob

TokenBytes = Callable[[int], bytes]
_LOWEST_LOGPROB = -9999.0  # OpenAI's stand-in for minus infinity, which JSON has not


@dataclass(frozen=True, slots=True)
class Shape:
    """The form of one kind of answer."""

    id_prefix: str
    object: str  # of a whole answer
    chunk_object: str  # of a piece of a stream
    before_text: bytes  # in a chunk's choice, around the text
    after_text: bytes
    no_text: bytes  # in the chunk that ends a choice
    role: bytes | None  # what comes before the first text
    # (entries, token bytes, characters of text before them) -> the `logprobs` of a choice
    logprobs: Callable[[Sequence[TokenLogprob], TokenBytes, int], dict[str, Any]]


def finite(logprob: float) -> float:
    """A log-probability as JSON can have it."""
    return logprob if math.isfinite(logprob) else _LOWEST_LOGPROB


def token_text(data: bytes) -> str:
    """A token as text; bytes that are not UTF-8 are spelled out, so that two tokens never look alike."""
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in data)


def _chat_token(token_id: int, logprob: float, token_bytes: TokenBytes) -> dict[str, Any]:
    data = token_bytes(token_id)
    return {"token": token_text(data), "logprob": finite(logprob), "bytes": list(data)}


def _chat_logprobs(entries: Sequence[TokenLogprob], token_bytes: TokenBytes, offset: int) -> dict[str, Any]:
    content = []
    for entry in entries:
        token = _chat_token(entry.token_id, entry.logprob, token_bytes)
        token["top_logprobs"] = [_chat_token(i, value, token_bytes) for i, value in entry.top]
        content.append(token)
    return {"content": content, "refusal": None}


def _text_logprobs(entries: Sequence[TokenLogprob], token_bytes: TokenBytes, offset: int) -> dict[str, Any]:
    tokens = [token_text(token_bytes(entry.token_id)) for entry in entries]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += len(token)
    return {
        "tokens": tokens,
        "token_logprobs": [finite(entry.logprob) for entry in entries],
        "top_logprobs": [
            {token_text(token_bytes(i)): finite(value) for i, value in entry.top} for entry in entries
        ],
        "text_offset": offsets,
    }


CHAT = Shape(
    id_prefix="chatcmpl-",
    object="chat.completion",
    chunk_object="chat.completion.chunk",
    before_text=b'"delta":{"content":',
    after_text=b"}",
    no_text=b'"delta":{}',
    role=b'"delta":{"role":"assistant","content":""}',
    logprobs=_chat_logprobs,
)
TEXT = Shape(
    id_prefix="cmpl-",
    object="text_completion",
    chunk_object="text_completion",
    before_text=b'"text":',
    after_text=b"",
    no_text=b'"text":""',
    role=None,
    logprobs=_text_logprobs,
)
