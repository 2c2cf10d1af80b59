"""Text to token ids: two roads to the same ids.

The ``tokenizers`` library is the road for volume. Building its model takes from a tenth of a second
(49 152 tokens) to over a second (262 144), with Python's lock held, which would be most of a cold start.
Until a process has read enough text for that to pay, pieces are merged here, over the mapped tables. Both
apply the same merges in the same order; the tests hold them equal.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable
from heapq import heapify, heappop, heappush
from threading import Lock
from typing import Any

from stoker.tokenizer.pretokenizer import (
    PRE_TOKENIZERS,
    ascii_splitter,
    library_pre_tokenizer,
)
from stoker.tokenizer.table import TokenTable
from stoker.tokenizer.vocabulary import BYTE, SPACE, arises_from_text, byte_characters

# After this many characters merged here the library is built: merging takes about 3 microseconds a
# character, so by then it has cost about as much as the largest library model does.
LIBRARY_AFTER_CHARS = 1 << 18

# Words remembered with their ids; a full memory is not extended. Longer words seldom come again.
MEMORY_WORDS = 1 << 15
MEMORY_WORD_CHARS = 32


class PlainEncoder:
    """Token ids of text that holds no special tokens. Safe to share between threads."""

    def __init__(self, table: TokenTable, *, library_after_chars: int = LIBRARY_AFTER_CHARS) -> None:
        self._table = table
        self._is_spm: bool = table.header["algorithm"] == "spm"
        self._whole_words = not self._is_spm and PRE_TOKENIZERS[table.header["pre"]].whole_words
        self._expansions: list[list[int]] = table.header["expansions"]
        # With tied ranks the library would break ties by rank order instead of by position.
        self._library_after = library_after_chars if table.header["ranks_are_unique"] else sys.maxsize
        self._merged_chars = 0
        self._words: dict[str, list[int]] = {}
        self._characters = {} if self._is_spm else dict(enumerate(byte_characters()))
        self._split: Callable[[str], list[str]] = (
            _spm_splitter(table.header["inner_space_after"])
            if self._is_spm
            else ascii_splitter(table.header["pre"])
        )
        self._pre: Any = None
        self._library: Any = None
        self._lock = Lock()

    def prepare(self) -> None:
        """Build the library's model now (a server does, before it listens) unless ties forbid its use."""
        if self._library_after < sys.maxsize:
            self._build_library()

    def encode(self, text: str) -> list[int]:
        """Token ids of ``text``, which must hold no lone surrogates."""
        if self._is_spm:
            text = text.replace(" ", SPACE)
        if self._library is None and self._merged_chars + len(text) > self._library_after:
            self._build_library()
        if self._library is not None:
            # The batch's call lets other threads run, and takes half the time: it keeps no offsets.
            ids = self._library.encode_batch_fast([text], add_special_tokens=False)[0].ids
        else:
            ids = self._merge_text(text)
        return self._expand(ids) if self._expansions else ids

    def _expand(self, ids: list[int]) -> list[int]:
        num_tokens = self._table.num_tokens
        if max(ids, default=0) < num_tokens:
            return ids
        expanded: list[int] = []
        for index in ids:
            expanded.extend([index] if index < num_tokens else self._expansions[index - num_tokens])
        return expanded

    # --- over the tables ---------------------------------------------------------------------------

    def _merge_text(self, text: str) -> list[int]:
        ids: list[int] = []
        for word in self._words_of(text):
            known = self._words.get(word)
            if known is None:
                self._merged_chars += len(word)
                known = self._merge_word(word)
                if len(word) <= MEMORY_WORD_CHARS and len(self._words) < MEMORY_WORDS:
                    self._words[word] = known
            ids += known
        return ids

    def _words_of(self, text: str) -> list[str]:
        if self._is_spm or text.isascii():
            return self._split(text)
        if self._pre is None:
            self._pre = library_pre_tokenizer(self._table.header["pre"])
        return [text[start:end] for _, (start, end) in self._pre.pre_tokenize_str(text)]

    def _merge_word(self, word: str) -> list[int]:
        table = self._table
        if self._is_spm:
            symbols: list[int] = []
            for character in word:
                symbol = table.symbol(ord(character))
                # What has no token is written as its bytes, which merge with nothing.
                symbols += [symbol] if symbol is not None else self._byte_tokens(character)
        else:
            data = word.encode()
            if self._whole_words:
                whole = table.token_id("".join(self._characters[byte] for byte in data))
                if whole is not None and arises_from_text(table.types[whole]):
                    return [whole]
            symbols = [table.symbol_ids[byte] for byte in data]  # the 256 keys are 0 to 255
        return merge_symbols(symbols, table.merge)

    def _byte_tokens(self, character: str) -> list[int]:
        ids = [self._table.token_id(f"<0x{byte:02X}>") for byte in character.encode()]
        return [index for index in ids if index is not None]

    # --- the library -------------------------------------------------------------------------------

    def _build_library(self) -> None:
        with self._lock:
            if self._library is None:
                self._library = build_library(self._table)


def merge_symbols(symbols: list[int], merge: Callable[[int, int], tuple[int, int] | None]) -> list[int]:
    """Merge neighbours, least rank first and leftmost among equals, until none merge.

    ``merge(left, right)`` gives (rank, merged symbol) or None. O(n log n) for n symbols.
    """
    count = len(symbols)
    if count < 2:
        return symbols
    after = list(range(1, count + 1))
    before = list(range(-1, count - 1))
    queue: list[tuple[int, int, int, int, int]] = []
    for at in range(count - 1):
        found = merge(symbols[at], symbols[at + 1])
        if found is not None:
            queue.append((found[0], at, symbols[at], symbols[at + 1], found[1]))
    heapify(queue)
    while queue:
        _, at, left, right, merged = heappop(queue)
        following = after[at]
        # An entry is stale when either neighbour was merged since; a merged-away symbol is -1.
        if symbols[at] != left or following >= count or symbols[following] != right:
            continue
        symbols[at], symbols[following] = merged, -1
        after[at] = behind = after[following]
        if behind < count:
            before[behind] = at
            found = merge(merged, symbols[behind])
            if found is not None:
                heappush(queue, (found[0], at, merged, symbols[behind], found[1]))
        previous = before[at]
        if previous >= 0:
            found = merge(symbols[previous], merged)
            if found is not None:
                heappush(queue, (found[0], previous, symbols[previous], merged, found[1]))
    return [symbol for symbol in symbols if symbol >= 0]


def _spm_splitter(inner_space_after: str) -> Callable[[str], list[str]]:
    """Cut before a run of U+2581 wherever no token continues across, so that words can be remembered."""
    cut = re.compile(f"(?<=[^{re.escape(SPACE + inner_space_after)}])(?={SPACE})")
    return cut.split


def build_library(table: TokenTable) -> Any:
    """The same merges as a model of the ``tokenizers`` library, synthetic symbols included."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    is_spm = table.header["algorithm"] == "spm"
    num_tokens = table.num_tokens
    texts = [table.token_text(index) for index in range(num_tokens)]
    texts += [""] * len(table.header["expansions"])
    characters = byte_characters()
    for key, index in zip(table.symbol_keys, table.symbol_ids, strict=True):
        if index >= num_tokens:
            texts[index] = chr(key) if is_spm else characters[key]
    types = table.types
    ids = {
        text: index
        for index, text in enumerate(texts)
        if index >= num_tokens or types[index] == BYTE or arises_from_text(types[index])
    }
    lefts: list[int] = []
    for left in range(len(texts)):
        lefts += [left] * (table.merge_starts[left + 1] - table.merge_starts[left])
    order = sorted(range(len(lefts)), key=table.merge_ranks.tolist().__getitem__)
    rights = table.merge_rights
    merges = [(texts[lefts[at]], texts[rights[at]]) for at in order]
    if is_spm:
        return Tokenizer(models.BPE(ids, merges, byte_fallback=True))
    pre = PRE_TOKENIZERS[table.header["pre"]]
    tokenizer = Tokenizer(models.BPE(ids, merges, ignore_merges=pre.whole_words))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            library_pre_tokenizer(table.header["pre"]),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return tokenizer
