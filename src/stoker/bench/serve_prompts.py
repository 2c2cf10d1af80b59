"""Prompts of an exact number of tokens for a server whose tokenizer only it knows.

As token ids where it takes them: drawn from the ids that /tokenize gives for ordinary text. Otherwise as text
of words that are one token each, found by asking for `usage.prompt_tokens`.
"""

from __future__ import annotations

import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass

from stoker.api.errors import RequestError

LEAST_IDS = 64  # fewer, and the own parts of two prompts would often start alike
LEAST_WORDS = 12

# Common enough to be one token, with the space before it, in most vocabularies that know English.
WORDS: tuple[str, ...] = (
    *("time", "year", "people", "way", "day", "man", "thing", "woman", "life", "child", "world", "school"),
    *("state", "family", "student", "group", "country", "problem", "hand", "part", "place", "case", "week"),
    *("company", "system", "program", "question", "work", "government", "number", "night", "point", "home"),
    *("water", "room", "mother", "area", "money", "story", "fact", "month", "lot", "right", "study", "book"),
    *("eye", "job", "word", "business", "issue", "side", "kind", "head", "house", "service", "friend"),
    *("father", "power", "hour", "game", "line", "end", "member", "law", "car", "city", "community", "name"),
    *("president", "team", "minute", "idea", "kid", "body", "information", "back", "parent", "face", "other"),
    *("level", "office", "door", "health", "person", "art", "war", "history", "party", "result", "change"),
)
_ANCHOR = "The"  # what every text starts with; a first word without a space before it is tokenized apart

Prompt = list[int] | str


@dataclass(frozen=True)
class IdPrompts:
    """Prompts of token ids."""

    pool: tuple[int, ...]
    kind = "token ids"

    def make(self, chance: random.Random, *, prefix_seed: str, prefix_tokens: int, own_tokens: int) -> Prompt:
        """`prefix_tokens` that depend on `prefix_seed` only, then `own_tokens` drawn from `chance`."""
        prefix = random.Random(prefix_seed).choices(self.pool, k=prefix_tokens)
        return prefix + chance.choices(self.pool, k=own_tokens)


@dataclass(frozen=True)
class TextPrompts:
    """Prompts of words. `overhead_tokens`: of the first word, the begin token, the chat template."""

    words: tuple[str, ...]
    overhead_tokens: int
    kind = "text"

    def make(self, chance: random.Random, *, prefix_seed: str, prefix_tokens: int, own_tokens: int) -> Prompt:
        """As `IdPrompts.make`, overhead included; raises RequestError if that alone is more."""
        words = prefix_tokens + own_tokens - self.overhead_tokens
        if words < 1:
            raise RequestError(
                f"a prompt of {prefix_tokens + own_tokens} tokens cannot be made: the server adds"
                f" {self.overhead_tokens} to each; allowed: {self.overhead_tokens + 1} or more"
            )
        own = min(own_tokens, words)
        prefix = random.Random(prefix_seed).choices(self.words, k=words - own)
        return " ".join([_ANCHOR, *prefix, *chance.choices(self.words, k=own)])


async def learn_ids(tokenize: Callable[[str], Awaitable[list[int] | None]]) -> IdPrompts | None:
    """Ids of ordinary tokens, by `tokenize(text)`; none if it gives none, or too few to draw from."""
    forward = await tokenize(" ".join(WORDS))
    backward = await tokenize(" ".join(reversed(WORDS)))
    if not forward or not backward:
        return None
    # What both start with, or end with, though the texts do not, was added by the tokenizer.
    added = {a for a, b in ((forward[0], backward[0]), (forward[-1], backward[-1])) if a == b}
    pool = tuple(sorted((set(forward) | set(backward)) - added))
    return IdPrompts(pool) if len(pool) >= LEAST_IDS else None


async def calibrate_text(count: Callable[[str], Awaitable[int]]) -> TextPrompts:
    """Words of one token each, by `count(text)`: the prompt tokens that the server finds in it.

    Raises RequestError if the server's tokenizer has too few of them.
    """
    once, twice = await count(_text(WORDS[:8])), await count(_text(WORDS[:8] * 2))
    overhead = 2 * once - twice
    if once - overhead == 8 and await count(_text(WORDS)) == overhead + len(WORDS):
        return TextPrompts(tuple(WORDS), overhead)
    words = []
    for word in WORDS:
        if await count(_text([word] * 8)) == overhead + 8:
            words.append(word)
    if len(words) < LEAST_WORDS:
        raise RequestError(
            f"only {len(words)} of {len(WORDS)} common English words are one token to this server;"
            f" {LEAST_WORDS} are needed to make prompts of an exact length from text",
            hint="--api completions takes token ids where the server does",
        )
    return TextPrompts(tuple(words), overhead)


def _text(words: Sequence[str]) -> str:
    return " ".join([_ANCHOR, *words])
