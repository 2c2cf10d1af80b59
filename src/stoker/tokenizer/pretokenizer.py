"""How byte-level BPE tokenizers cut a text into words before merging, by the names GGUF files use.

A word never merges with its neighbour, so the cut decides the token ids. Each name stands for regular
expressions applied one after the other: each cuts the pieces the one before left, into its matches and
what lies between them.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_CONTRACTIONS = "(?:'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD])"
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_LLAMA3 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN2 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|" + _SPACES
_QWEN35 = _CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+|\p{N}| ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*|" + _SPACES
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = (rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+", rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*")
_TEKKEN = rf"{_CASED[0]}|{_CASED[1]}|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|" + _SPACES
_GPT4O = (
    rf"{_CASED[0]}{_CONTRACTIONS}?|{_CASED[1]}{_CONTRACTIONS}?|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*|"
    + _SPACES
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*|" + _SPACES
)


@dataclass(frozen=True)
class PreTokenizer:
    """``patterns`` in the order they cut; ``whole_words``: a word that is a token is not merged at all."""

    patterns: tuple[str, ...]
    whole_words: bool = False
    add_bos: bool = False  # when the file does not say


_BY_PATTERNS: Mapping[tuple[str, ...], PreTokenizer] = {
    ("default",): PreTokenizer((r"[\p{P}\$\+<=>\^~\|]+", _GPT2, r"\p{N}+", r"[0-9][0-9][0-9]")),
    ("gpt-2", "phi-2", "mpt", "olmo", "jais", "trillion", "exaone4", "mellum", "modern-bert"): PreTokenizer(
        (_GPT2,)
    ),
    ("smollm", "starcoder", "refact", "command-r", "codeshell", "exaone", "minerva-7b"): PreTokenizer(
        (r"\p{N}", _GPT2)
    ),
    ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "lfm2"): PreTokenizer(
        (_LLAMA3,), whole_words=True, add_bos=True
    ),
    ("dbrx", "smaug-bpe", "chatglm-bpe"): PreTokenizer((_LLAMA3,)),
    ("glm4",): PreTokenizer((_LLAMA3,), whole_words=True),
    ("qwen2", "deepseek-r1-qwen", "stablelm2", "hunyuan", "megrez"): PreTokenizer((_QWEN2,)),
    ("qwen35",): PreTokenizer((_QWEN35,)),
    ("tekken",): PreTokenizer((_TEKKEN,), whole_words=True, add_bos=True),
    ("gpt-4o", "llama4"): PreTokenizer((_GPT4O,)),
    ("deepseek-v3",): PreTokenizer((r"\p{N}{1,3}", "[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", _DEEPSEEK3)),
}

PRE_TOKENIZERS: Mapping[str, PreTokenizer] = {
    name: kind for names, kind in _BY_PATTERNS.items() for name in names
}

# What Unicode categories are in ASCII. A category without ASCII members is written as a class that
# matches nothing there.
_ASCII_CLASSES: Mapping[str, str] = {
    r"\p{L}": "A-Za-z",
    r"\p{Lu}": "A-Z",
    r"\p{Ll}": "a-z",
    r"\p{Lt}": "",
    r"\p{Lm}": "",
    r"\p{Lo}": "",
    r"\p{N}": "0-9",
    r"\p{M}": "",
    r"\p{P}": r"!-#%-*,-/:;?@\[-\]_{}",
    r"\p{S}": r"$+<=>\^`|~",
}


def ascii_pattern(pattern: str) -> str:
    """The same expression for Python's ``re``, right for ASCII texts only (under ``re.ASCII``)."""
    inside, parts, at = False, [], 0
    for match in re.finditer(r"\\p\{\w+\}|\\.|[\[\]]", pattern):
        parts.append(pattern[at : match.start()])
        at = match.end()
        token = match.group()
        if token in _ASCII_CLASSES:
            members = _ASCII_CLASSES[token]
            parts.append(members if inside else f"[{members}]")
            continue
        if token in "[]":
            inside = token == "["
        parts.append(token)
    return "".join([*parts, pattern[at:]])


def ascii_splitter(name: str) -> Callable[[str], list[str]]:
    """A function that cuts an ASCII text as ``PRE_TOKENIZERS[name]`` does, without the Rust library."""
    patterns = [re.compile(ascii_pattern(p), re.ASCII) for p in PRE_TOKENIZERS[name].patterns]

    def split(text: str) -> list[str]:
        pieces = [text]
        for pattern in patterns:
            pieces = [part for piece in pieces for part in _isolate(pattern, piece)]
        return pieces

    return split


def _isolate(pattern: re.Pattern[str], text: str) -> list[str]:
    parts, at = [], 0
    for match in pattern.finditer(text):
        if match.start() > at:
            parts.append(text[at : match.start()])
        if match.end() > match.start():
            parts.append(match.group())
        at = match.end()
    if at < len(text):
        parts.append(text[at:])
    return parts


def library_pre_tokenizer(name: str) -> Any:
    """The same cut for any text, as a pre-tokenizer of the ``tokenizers`` library (words left as text)."""
    from tokenizers import Regex, pre_tokenizers

    splits = [pre_tokenizers.Split(Regex(p), "isolated") for p in PRE_TOKENIZERS[name].patterns]
    return pre_tokenizers.Sequence(splits)
