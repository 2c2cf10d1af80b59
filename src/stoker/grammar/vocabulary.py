"""A model's tokens as llguidance wants them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cached_property
from threading import Lock

import numpy as np
from llguidance import LLTokenizer, TokenizerWrapper

from stoker.api.errors import RequestError
from stoker.grammar.guide import MASK_BITS, MaskRow, mask_words, unset_bits
from stoker.tokenizer import Tokenizer

_GUARD = "\x02"  # no text has it, and no vocabulary a token of more than it


class Vocabulary:
    """The tokens of one model, and the tree over them. Safe to share between threads.

    `size` is the number of logits, which may exceed the tokenizer's: the rest can never come.
    """

    def __init__(self, tokenizer: Tokenizer, size: int) -> None:
        self.tokenizer = tokenizer
        self.size = size
        self.words = mask_words(size)
        self.stop_ids: tuple[int, ...] = tuple(index for index in tokenizer.stop_ids if index < size)
        self._known = min(size, tokenizer.vocab_size)
        self._lock = Lock()
        self._trie: LLTokenizer | None = None
        self.bytes_trie = LLTokenizer("byte")  # whose tokens are the 256 bytes: to try grammars on texts
        self._by_bytes: dict[bytes, int] | None = None

    @property
    def trie(self) -> LLTokenizer:
        """The tokens as a tree over their bytes. Building it takes a second for the largest vocabularies."""
        with self._lock:
            if self._trie is None:
                self._trie = self._build()
            return self._trie

    def continue_text(self, text: str) -> list[int]:
        """Token ids of `text` as the model would write it after other text; control tokens by their texts."""
        return self._encode(text, parse_special=True)

    def token_of(self, text: bytes) -> int | None:
        """The one token that stands for `text` and has no part of it in another, or None."""
        with self._lock:
            if self._by_bytes is None:
                self._by_bytes = {}
                for index, data in enumerate(self._token_bytes()):
                    self._by_bytes.setdefault(data, index)
            return self._by_bytes.get(text)

    @cached_property
    def text_mask(self) -> MaskRow:
        """A mask of all tokens that are text: the tokenizer knows them, and they are no control tokens."""
        row = np.zeros(self.words, dtype=np.uint32)
        whole, rest = divmod(self._known, MASK_BITS)
        row[:whole] = np.uint32(0xFFFFFFFF)
        if rest:
            row[whole] = np.uint32((1 << rest) - 1)
        unset_bits(row, (index for index in self.tokenizer.special_ids if index < self._known))
        unset_bits(row, self.stop_ids)
        return row

    def _token_bytes(self) -> Iterator[bytes]:
        offsets, blob = self.tokenizer.byte_tables()
        whole, ends = bytes(blob), list(offsets)
        return (whole[ends[index] : ends[index + 1]] for index in range(self._known))

    def _build(self) -> LLTokenizer:
        tokenizer, known = self.tokenizer, self._known
        tokens = [*self._token_bytes()]
        tokens += [b""] * (self.size - known)
        source = _TokenSource(
            tokens,
            special_ids=sorted(index for index in tokenizer.special_ids if index < known),
            bos_id=tokenizer.bos_id,
            stop_ids=self.stop_ids,
            encode=self._encode_plain,
        )
        if not self.stop_ids:
            raise RequestError("the model has no end token, which constraints need")
        # The slices are classes of tokens whose masks are computed once. Those made for JSON serve all kinds.
        wrapper, slices = TokenizerWrapper(source), LLTokenizer.json_slices()
        return LLTokenizer(wrapper, n_vocab=self.size, eos_token=list(self.stop_ids), slices=slices)

    def _encode_plain(self, text: str) -> list[int]:
        return self._encode(text, parse_special=False)

    def _encode(self, text: str, *, parse_special: bool) -> list[int]:
        if not self.tokenizer.add_space_prefix:
            return self.tokenizer.encode(text, add_special=False, parse_special=parse_special)
        # Such a tokenizer puts a space before a text. Here the text follows other text: a character that is
        # written as its byte, and so merges with nothing, takes the space, and both are cut off.
        ids = self.tokenizer.encode(_GUARD + text, add_special=False, parse_special=parse_special)
        guard = _GUARD.encode()
        for place, index in enumerate(ids):
            if self.tokenizer.token_bytes(index) == guard:
                return ids[place + 1 :]
        raise RequestError("the model's tokenizer has no byte tokens, which constraints need")


class _TokenSource:
    """What `TokenizerWrapper` asks a tokenizer for. Called from llguidance's threads, with Python's lock."""

    def __init__(
        self,
        tokens: list[bytes],
        *,
        special_ids: list[int],
        bos_id: int | None,
        stop_ids: Sequence[int],
        encode: object,
    ) -> None:
        self.tokens = tokens
        self.special_token_ids = special_ids
        self.bos_token_id = bos_id
        self.eos_token_id = stop_ids[0] if stop_ids else None
        self._encode = encode

    def __call__(self, text: str) -> list[int]:
        if not isinstance(text, str):  # the wrapper tries bytes first
            raise TypeError("text must be str")
        return self._encode(text)  # type: ignore[operator, no-any-return]
