"""Log-probabilities of a prompt's tokens, in the two forms that clients know."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stoker.api.events import TokenLogprob
from stoker.server.shapes import TokenBytes, finite, token_text


def prompt_entries(
    entries: Sequence[TokenLogprob], token_bytes: TokenBytes
) -> list[dict[str, dict[str, Any]] | None]:
    """vLLM's `prompt_logprobs`: for each token an object by token id, the token's own among them; null for
    the first, which comes after nothing."""
    found: list[dict[str, dict[str, Any]] | None] = [None]
    for entry in entries:
        by_id = {
            str(token_id): _entry(token_id, logprob, rank, token_bytes)
            for rank, (token_id, logprob) in enumerate(entry.top, 1)
        }
        by_id.setdefault(str(entry.token_id), _entry(entry.token_id, entry.logprob, None, token_bytes))
        found.append(by_id)
    return found


def _entry(token_id: int, logprob: float, rank: int | None, token_bytes: TokenBytes) -> dict[str, Any]:
    return {
        "logprob": finite(logprob),
        "rank": rank,  # none: not among those asked for
        "decoded_token": token_text(token_bytes(token_id)),
    }


def echoed_logprobs(
    prompt_ids: Sequence[int], entries: Sequence[TokenLogprob], token_bytes: TokenBytes, text: str
) -> dict[str, Any]:
    """The prompt's part of a text completion's `logprobs`; `text` is what the prompt is echoed as."""
    tokens = [token_text(token_bytes(token_id)) for token_id in prompt_ids]
    offsets, offset = [], 0
    for number, token in enumerate(tokens):
        offsets.append(min(offset, len(text)))
        # A begin token that the model puts before a text is no part of it.
        if number or text.startswith(token):
            offset += len(token)
    top = [{token_text(token_bytes(i)): finite(value) for i, value in entry.top} for entry in entries]
    return {
        "tokens": tokens,
        "token_logprobs": [None, *(finite(entry.logprob) for entry in entries)],
        "top_logprobs": [None, *top],
        "text_offset": offsets,
    }


def joined(first: dict[str, Any], second: dict[str, Any]) -> dict[str, Any]:
    """Two parts of a text completion's `logprobs` as one."""
    return {name: [*first[name], *second[name]] for name in first}
