"""Tiny tokenizers in GGUF's terms, and slow, plain versions of what the fast code does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stoker.tokenizer.vocabulary import BYTE, CONTROL, NORMAL, UNKNOWN, USER_DEFINED, byte_characters

SPACE = "\u2581"


def bpe_metadata(
    merges: Sequence[str] = (
        "h e",
        "l l",
        "he ll",
        "hell o",
        "\u0120 w",
        "o r",
        "\u0120w or",
        "l d",
        "\u0120 \u0120",
    ),
    *,
    specials: Sequence[str] = ("<|im_start|>", "<|im_end|>"),
    user_defined: Sequence[str] = (),
    pre: str = "smollm",
    **extra: Any,
) -> dict[str, Any]:
    """Byte-level BPE: special tokens first, then the 256 bytes, then what ``merges`` make."""
    tokens = [*specials, *user_defined, *byte_characters()]
    types = [CONTROL] * len(specials) + [USER_DEFINED] * len(user_defined) + [NORMAL] * 256
    for merge in merges:
        merged = merge.replace(" ", "")
        if merged not in tokens:
            tokens.append(merged)
            types.append(NORMAL)
    return {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.merges": list(merges),
        "tokenizer.ggml.bos_token_id": 0,
        "tokenizer.ggml.eos_token_id": 1,
        "tokenizer.ggml.add_bos_token": False,
        **extra,
    }


def spm_metadata(
    pieces: Sequence[tuple[str, float]],
    *,
    specials: Sequence[str] = ("<unk>", "<s>", "</s>"),
    user_defined: Sequence[str] = (),
    **extra: Any,
) -> dict[str, Any]:
    """SentencePiece BPE: special tokens, 256 byte tokens, then ``pieces`` with their scores."""
    tokens = [*specials, *user_defined, *(f"<0x{byte:02X}>" for byte in range(256))]
    types = [UNKNOWN, *[CONTROL] * (len(specials) - 1), *[USER_DEFINED] * len(user_defined), *[BYTE] * 256]
    scores = [0.0] * len(tokens)
    tokens += [text for text, _ in pieces]
    types += [NORMAL] * len(pieces)
    scores += [score for _, score in pieces]
    return {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": types,
        "tokenizer.ggml.scores": scores,
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
        **extra,
    }


def plain_spm_ids(metadata: dict[str, Any], text: str) -> list[int]:
    """SentencePiece BPE as llama.cpp states it, by search through all neighbours at every step."""
    tokens, types = metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"]
    scores = metadata["tokenizer.ggml.scores"]
    ids = {t: i for i, t in enumerate(tokens) if types[i] not in (CONTROL, UNKNOWN, BYTE)}
    parts = list(text.replace(" ", SPACE))
    while True:
        best = None
        for at in range(len(parts) - 1):
            merged = ids.get(parts[at] + parts[at + 1])
            if merged is not None and (best is None or scores[merged] > scores[best[1]]):
                best = (at, merged)
        if best is None:
            break
        parts[best[0] : best[0] + 2] = [tokens[best[1]]]
    found: list[int] = []
    for part in parts:
        if part in ids:
            found.append(ids[part])
        else:
            found += [tokens.index(f"<0x{byte:02X}>") for byte in part.encode()]
    return found
