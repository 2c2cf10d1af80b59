"""The tokenizer of one model: text to token ids and back, and what the ids mean."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import Any

from stoker.api.errors import RequestError
from stoker.tokenizer.encoding import LIBRARY_AFTER_CHARS, PlainEncoder
from stoker.tokenizer.partition import Partition, Span, Special
from stoker.tokenizer.table import (
    FORMAT_VERSION,
    TableError,
    TokenTable,
    pack,
    read_table,
    unpack,
    write_table,
)
from stoker.tokenizer.vocabulary import CONTROL, UNKNOWN, read_vocabulary
from stoker.weights.places import home_folder, own_folder


class Tokenizer:
    """Immutable to its callers and safe to share between threads. Get one from ``load_tokenizer``."""

    def __init__(self, table: TokenTable, *, library_after_chars: int = LIBRARY_AFTER_CHARS) -> None:
        header = table.header
        self._table = table
        self.vocab_size: int = table.num_tokens
        self.bos_id: int | None = header["bos_id"]
        self.eos_id: int | None = header["eos_id"]
        self.eot_id: int | None = header["eot_id"]
        self.unk_id: int | None = header["unk_id"]
        self.pad_id: int | None = header["pad_id"]
        self.stop_ids: tuple[int, ...] = tuple(header["stop_ids"])
        self.add_bos: bool = header["add_bos"]
        self.add_eos: bool = header["add_eos"]
        self.add_space_prefix: bool = header["add_space_prefix"]
        self.chat_template: str | None = header["chat_template"]
        self.max_token_bytes: int = header["max_token_bytes"]
        types = table.types
        self.special_ids: frozenset[int] = frozenset(
            index for index in table.special_ids if types[index] in (CONTROL, UNKNOWN)
        )
        self._plain = PlainEncoder(table, library_after_chars=library_after_chars)
        self._partitions: dict[bool, Partition] = {}
        self._lock = Lock()

    # --- text to ids -------------------------------------------------------------------------------

    def encode(
        self,
        text: str,
        *,
        add_special: bool = True,
        parse_special: bool = False,
        literal: Sequence[Span] = (),
    ) -> list[int]:
        """Token ids of ``text``.

        ``add_special`` puts the model's begin and end tokens around it, where it uses them.
        ``parse_special`` reads the text of control tokens as those tokens, except where they touch a span
        of ``literal`` (ascending, disjoint character ranges). User-defined tokens are always read.
        A lone surrogate is read as U+FFFD: it is no character and has no UTF-8.
        """
        text = _without_lone_surrogates(text)
        ids = [self.bos_id] if add_special and self.add_bos and self.bos_id is not None else []
        follows_special = True
        for piece in self._partition(parse_special).split(text, literal):
            if isinstance(piece, int):
                ids.append(piece)
                follows_special = True
                continue
            if self.add_space_prefix and follows_special:
                piece = " " + piece
            ids += self._plain.encode(piece)
            follows_special = False
        if add_special and self.add_eos and self.eos_id is not None:
            ids.append(self.eos_id)
        return ids

    def control_spans(self, text: str) -> list[Span]:
        """Where the texts of control tokens stand in ``text``: ascending, disjoint character ranges."""
        return self._partition(True).control_spans(text)

    def control_texts(self) -> list[str]:
        """The texts of all control and unknown tokens, by id."""
        return [self._table.token_text(index) for index in sorted(self.special_ids)]

    def prepare(self) -> None:
        """Do now what a first long text would otherwise wait for (up to a second)."""
        self._partition(False)
        self._partition(True)
        self._plain.prepare()

    def _partition(self, parse_special: bool) -> Partition:
        found = self._partitions.get(parse_special)
        if found is None:
            with self._lock:
                table = self._table
                specials = (
                    Special(table.token_text(index), index, index in self.special_ids)
                    for index in table.special_ids
                    if parse_special or index not in self.special_ids
                )
                found = Partition(specials, simple=table.header["partitions_simply"])
                self._partitions[parse_special] = found
        return found

    # --- ids to text -------------------------------------------------------------------------------

    def decode(self, ids: Iterable[int], *, skip_special: bool = True, continuation: bool = False) -> str:
        """Text of ``ids``. Bytes that are not UTF-8 become U+FFFD.

        ``skip_special`` leaves control tokens out. The space that the model puts before a text is taken
        off unless ``continuation`` says that the ids follow others.
        """
        text = self.join_bytes(ids, skip_special=skip_special).decode("utf-8", "replace")
        if self.add_space_prefix and not continuation:
            return text.removeprefix(" ")
        return text

    def join_bytes(self, ids: Iterable[int], *, skip_special: bool = True) -> bytes:
        """The bytes of ``ids``, one token after the other. Raises RequestError for an unknown id."""
        offsets, blob, size = self._table.byte_offsets, self._table.byte_blob, self.vocab_size
        skipped: frozenset[int] = self.special_ids if skip_special else frozenset()
        parts = []
        for index in ids:
            if not 0 <= index < size:
                raise RequestError(f"token id {index} is not one of the model's {size} (0 to {size - 1})")
            if index not in skipped:
                parts.append(blob[offsets[index] : offsets[index + 1]])
        return b"".join(parts)

    def token_bytes(self, index: int) -> bytes:
        """What one token adds to a text; a control token gives its name. Raises RequestError."""
        return self.join_bytes((index,), skip_special=False)

    def token_text(self, index: int) -> str:
        """The token as the vocabulary writes it. Raises RequestError for an unknown id."""
        if not 0 <= index < self.vocab_size:
            raise RequestError(f"token id {index} is not one of the model's {self.vocab_size}")
        return self._table.token_text(index)

    def token_id(self, text: str) -> int | None:
        """Id of the token that the vocabulary writes exactly so, or None."""
        return self._table.token_id(text)

    def byte_tables(self) -> tuple[memoryview, memoryview]:
        """(u32[vocab_size + 1] offsets, u8 blob): token i adds blob[offsets[i]:offsets[i + 1]] to a text."""
        return self._table.byte_offsets, self._table.byte_blob

    def is_special(self, index: int) -> bool:
        """Whether the token is a control (or unknown) token, which is never part of an answer's text."""
        return index in self.special_ids


def _without_lone_surrogates(text: str) -> str:
    if text.isascii():
        return text
    try:
        text.encode()
    except UnicodeEncodeError:
        # Through UTF-16 so that two surrogates that make a character become it.
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


# --- getting one -----------------------------------------------------------------------------------


def build_tokenizer(
    metadata: Mapping[str, Any], *, library_after_chars: int = LIBRARY_AFTER_CHARS
) -> Tokenizer:
    """A tokenizer from GGUF metadata, without the cache. Raises ModelFormatError."""
    table = unpack(pack(read_vocabulary(metadata)))
    return Tokenizer(table, library_after_chars=library_after_chars)


def default_cache_dir() -> Path | None:
    """Stoker's folder, the same as of models; none where nobody knows where it would be."""
    return own_folder(os.environ, home_folder())


def table_path(cache_key: str | bytes, cache_dir: Path) -> Path:
    """Where the tables of the file identified by ``cache_key`` are kept."""
    raw = cache_key.encode() if isinstance(cache_key, str) else cache_key
    digest = hashlib.sha256(b"%d\0" % FORMAT_VERSION + raw).hexdigest()
    return cache_dir / "tokenizers" / f"{digest[:32]}.tok"


def load_tokenizer(
    metadata: Mapping[str, Any] | Callable[[], Mapping[str, Any]],
    cache_key: str | bytes | None,
    cache_dir: Path | None = None,
) -> Tokenizer:
    """The tokenizer of a model file, from the cache where it is there and whole.

    ``metadata`` (or a function that gives it) is only read when the tables must be built. ``cache_key``
    must change whenever the file's tokenizer may have: `GGUFFile.header_digest` does; None keeps nothing on
    disk, nor is anything kept where the system names no folder for it. A damaged table is built anew; a
    folder that cannot be written is no error.
    Raises ModelFormatError.
    """
    folder = default_cache_dir() if cache_dir is None else cache_dir
    if cache_key is None or folder is None:
        return build_tokenizer(metadata() if callable(metadata) else metadata)
    path = table_path(cache_key, folder)
    try:
        return Tokenizer(read_table(path))
    except (OSError, TableError, ValueError, KeyError, TypeError):
        data = pack(read_vocabulary(metadata() if callable(metadata) else metadata))
    try:
        write_table(path, data)
        return Tokenizer(read_table(path))
    except OSError:
        return Tokenizer(unpack(data))
