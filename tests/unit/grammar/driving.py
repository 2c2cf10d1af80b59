"""A small tokenizer, and guides led through texts as an engine leads them."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache

import numpy as np
from tests.unit.tokenizer.synthetic import bpe_metadata, spm_metadata

from stoker.api.constraint import Constraint, Thinking
from stoker.api.request import SamplingParams
from stoker.grammar.compiler import GrammarCompiler
from stoker.grammar.guide import Guide, Guides, mask_words, tokens_in
from stoker.tokenizer import Tokenizer, build_tokenizer

SPECIALS = ("<|im_start|>", "<|im_end|>", "<think>", "</think>", "[CALLS]")
# Enough that JSON is not all single bytes, and that tokens reach over the ends of what is forced.
MERGES = (
    *('{ "', '" :', '" ,', '\u0120 "', '" }', "\u0120 {", "\u0120 [", '[ "', '" ]', "t r", "tr u"),
    *(
        "tru e",
        "n a",
        "na m",
        "nam e",
        "a a",
        "aa a",
        "a b",
        "r e",
        "re d",
        "1 2",
        "\u010a \u010a",
        "< /",
        "i n",
    ),
)
PADDING = 40  # logits that no token has


@cache
def bpe_tokenizer() -> Tokenizer:
    """Byte-level BPE, with an end token and marks."""
    merges = [merge for merge in MERGES if merge.count(" ") == 1]
    return build_tokenizer(bpe_metadata(merges, specials=SPECIALS))


@cache
def spm_tokenizer() -> Tokenizer:
    """SentencePiece, which puts a space before a text."""
    pieces = [("\u2581", -1.0), ("a", -2.0), ("\u2581a", -3.0), ('{"', -4.0), ('":', -5.0), ('a"', -6.0)]
    return build_tokenizer(spm_metadata(pieces))


@cache
def compiler(name: str = "bpe") -> GrammarCompiler:
    """One for all tests."""
    tokenizer = bpe_tokenizer() if name == "bpe" else spm_tokenizer()
    return GrammarCompiler(tokenizer, vocabulary=tokenizer.vocab_size + PADDING)


def guides(kind: str = "", text: str = "", *, thinking: Thinking | None = None, **rest: object) -> Guides:
    """The guides of a constraint and of thinking."""
    constraint = Constraint(kind, text, **rest) if kind else None  # type: ignore[arg-type]
    found = compiler().guides(SamplingParams(constraint=constraint, thinking=thinking))
    assert found is not None
    return found


def allowed(guide: Guide, tokenizer: Tokenizer) -> list[int]:
    """The tokens of the mask, those that are refused left out."""
    return [token_id for token_id in masked(guide, tokenizer) if not guide.refuses(token_id)]


def masked(guide: Guide, tokenizer: Tokenizer) -> list[int]:
    """The tokens of the mask."""
    mask = np.full(mask_words(tokenizer.vocab_size + PADDING), 0xFFFFFFFF, dtype=np.uint32)
    guide.fill_mask(mask)
    found = tokens_in(mask, tokenizer.vocab_size + PADDING)
    assert found is not None
    return found


def _draw(guide: Guide, tokenizer: Tokenizer, rng: random.Random) -> int:
    """One that may come, as an engine finds it: what is refused is left out and another one drawn."""
    found = masked(guide, tokenizer)
    ends = [i for i in found if i in tokenizer.stop_ids]
    rng.shuffle(found)
    if ends and rng.random() < 0.3:
        found = ends + found
    for token_id in found:
        if not guide.refuses(token_id):
            return token_id
    raise AssertionError("nothing may follow")


def can_write(guide: Guide, text: str, tokenizer: Tokenizer | None = None) -> bool:
    """Whether `text` can come, token by token, and end there. Takes any tokenization that the masks allow."""
    tokenizer = bpe_tokenizer() if tokenizer is None else tokenizer
    rest = text.encode()
    while rest:
        if guide.finished:
            return False
        ids = guide.forced
        if not ids:
            ids = _fitting(guide, rest, tokenizer)
        data = tokenizer.join_bytes(ids, skip_special=False)
        if not ids or not rest.startswith(data):
            return False
        for token_id in ids:
            guide.push(token_id)
        rest = rest[len(data) :]
    if guide.finished:
        return True
    return not guide.forced and any(token_id in allowed(guide, tokenizer) for token_id in tokenizer.stop_ids)


def _fitting(guide: Guide, rest: bytes, tokenizer: Tokenizer) -> tuple[int, ...]:
    if guide.free:
        return tuple(tokenizer.encode(rest.decode(), add_special=False, parse_special=True)[:1])
    found = [i for i in masked(guide, tokenizer) if i not in tokenizer.stop_ids]
    fitting = [i for i in found if rest.startswith(tokenizer.token_bytes(i))]
    fitting.sort(key=lambda i: -len(tokenizer.token_bytes(i)))
    return next(((i,) for i in fitting if not guide.refuses(i)), ())


@dataclass(frozen=True)
class Written:
    """A text that came of chance."""

    text: str
    ids: tuple[int, ...]
    finished: bool


def write_at_random(source: Guides, seed: int, *, most_tokens: int = 120) -> Written:
    """Any token of the mask, each as likely; the end, where it may come, more often. Checks as it goes that
    a guide to which the same tokens are pushed says the same."""
    tokenizer, rng = bpe_tokenizer(), random.Random(seed)
    guide, twin = source.new(), source.new()
    ids: list[int] = []
    finished = False
    while len(ids) < most_tokens:
        assert (guide.forced, guide.free, guide.finished) == (twin.forced, twin.free, twin.finished)
        if guide.finished:
            finished = True
            break
        if guide.forced:
            token_id = guide.forced[0]
        else:
            token_id = _draw(guide, tokenizer, rng)
            if token_id in tokenizer.stop_ids:
                finished = True
                break
        guide.push(token_id)
        twin.push(token_id)
        ids.append(token_id)
    text = tokenizer.join_bytes(ids, skip_special=False).decode("utf-8", "replace")
    return Written(text, tuple(ids), finished)
