"""A tokenizer as flat tables in one file: mapped, checked and used without building any objects.

Building the ``tokenizers`` library's model of 262 144 tokens takes about a second at every start; mapping
these tables takes milliseconds. The file is written once and never changed. Layout: ``MAGIC``, u32 CRC-32 of
all that follows, u32 length of the JSON header (both little endian), the header, then the sections at
multiples of ``ALIGN_BYTES`` in the byte order of the machine that wrote them.
"""

from __future__ import annotations

import json
import mmap
import os
import sys
import zlib
from array import array
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import get_ident
from typing import Any, Literal

from stoker.tokenizer.partition import partitions_simply
from stoker.tokenizer.vocabulary import (
    BYTE,
    CONTROL,
    NORMAL,
    SPACE,
    UNKNOWN,
    USER_DEFINED,
    Vocabulary,
    byte_characters,
)

MAGIC = b"STKTOK\x00\x01"
# Raised whenever the meaning of a section or of a header field changes: older files are then rebuilt.
FORMAT_VERSION = 1
ALIGN_BYTES = 64
_PREFIX_BYTES = len(MAGIC) + 8


class TableError(Exception):
    """The bytes are not a whole, undamaged table of this version; the caller builds it anew."""


@dataclass(frozen=True)
class TokenTable:
    """Read-only view of the tables. Arrays are memoryviews into ``_owner`` and live as long as it does."""

    header: dict[str, Any]
    text_offsets: memoryview  # u32[n + 1]
    text_blob: memoryview  # u8: UTF-8 of every token as written in the file
    byte_offsets: memoryview  # u32[n + 1]
    byte_blob: memoryview  # u8: what every token stands for in a text
    types: memoryview  # u8[n]
    sorted_ids: memoryview  # u32[n], by text bytes
    special_ids: memoryview  # u32: control, unknown and user-defined tokens
    symbol_keys: memoryview  # u32, ascending: code points or bytes
    symbol_ids: memoryview  # u32
    merge_starts: memoryview  # u32[symbols + 1]: range of each left symbol in the next three
    merge_rights: memoryview  # u32, ascending within a range
    merge_ranks: memoryview  # u32
    merge_ids: memoryview  # u32
    _owner: Any

    @property
    def num_tokens(self) -> int:
        """Tokens of the model; synthetic symbols have higher ids and are not counted."""
        return len(self.types)

    def token_text(self, index: int) -> str:
        """The token as the model file writes it. Index must be in range."""
        start, end = self.text_offsets[index], self.text_offsets[index + 1]
        return str(self.text_blob[start:end], "utf-8", "surrogatepass")

    def token_id(self, text: str) -> int | None:
        """Id of the token written exactly so, or None."""
        wanted = text.encode("utf-8", "surrogatepass")
        low, high = 0, len(self.sorted_ids)
        while low < high:
            middle = (low + high) // 2
            index = self.sorted_ids[middle]
            found = bytes(self.text_blob[self.text_offsets[index] : self.text_offsets[index + 1]])
            if found == wanted:
                return index
            if found < wanted:
                low = middle + 1
            else:
                high = middle
        return None

    def symbol(self, key: int) -> int | None:
        """Symbol of a code point (spm) or byte (bpe), or None."""
        at = bisect_left(self.symbol_keys, key)
        if at < len(self.symbol_keys) and self.symbol_keys[at] == key:
            return self.symbol_ids[at]
        return None

    def merge(self, left: int, right: int) -> tuple[int, int] | None:
        """(rank, merged symbol) of two neighbouring symbols, or None."""
        end = self.merge_starts[left + 1]
        at = bisect_left(self.merge_rights, right, self.merge_starts[left], end)
        if at < end and self.merge_rights[at] == right:
            return self.merge_ranks[at], self.merge_ids[at]
        return None


_SECTIONS: Mapping[str, Literal["I", "B"]] = {  # name -> array typecode
    "text_offsets": "I",
    "text_blob": "B",
    "byte_offsets": "I",
    "byte_blob": "B",
    "types": "B",
    "sorted_ids": "I",
    "special_ids": "I",
    "symbol_keys": "I",
    "symbol_ids": "I",
    "merge_starts": "I",
    "merge_rights": "I",
    "merge_ranks": "I",
    "merge_ids": "I",
}


def pack(vocabulary: Vocabulary) -> bytes:
    """All tables of ``vocabulary`` as the bytes of one file."""
    texts = [text.encode("utf-8", "surrogatepass") for text in vocabulary.texts]
    specials = [i for i, kind in enumerate(vocabulary.types) if kind in (CONTROL, UNKNOWN, USER_DEFINED)]
    symbols = sorted(vocabulary.symbols.items())
    text_offsets, text_blob = _blob(texts)
    byte_offsets, byte_blob = _blob(_token_bytes(vocabulary, texts))
    sections: dict[str, array[int] | bytes] = {
        "text_offsets": text_offsets,
        "text_blob": text_blob,
        "byte_offsets": byte_offsets,
        "byte_blob": byte_blob,
        "types": vocabulary.types,
        "sorted_ids": array("I", sorted(range(len(texts)), key=texts.__getitem__)),
        "special_ids": array("I", specials),
        "symbol_keys": array("I", [key for key, _ in symbols]),
        "symbol_ids": array("I", [index for _, index in symbols]),
        **_merge_sections(vocabulary),
    }
    header = {
        "version": FORMAT_VERSION,
        "byte_order": sys.byteorder,
        "algorithm": vocabulary.algorithm,
        "pre": vocabulary.pre,
        "bos_id": vocabulary.bos_id,
        "eos_id": vocabulary.eos_id,
        "eot_id": vocabulary.eot_id,
        "unk_id": vocabulary.unk_id,
        "pad_id": vocabulary.pad_id,
        "stop_ids": vocabulary.stop_ids,
        "add_bos": vocabulary.add_bos,
        "add_eos": vocabulary.add_eos,
        "add_space_prefix": vocabulary.add_space_prefix,
        "chat_template": vocabulary.chat_template,
        "expansions": vocabulary.expansions,
        "ranks_are_unique": vocabulary.ranks_are_unique,
        "partitions_simply": partitions_simply([vocabulary.texts[index] for index in specials]),
        "max_token_bytes": max(map(len, texts)),
        "inner_space_after": _inner_space_after(vocabulary),
    }
    return _write_sections(header, sections)


def _write_sections(header: dict[str, Any], sections: dict[str, array[int] | bytes]) -> bytes:
    raw = {name: bytes(values) for name, values in sections.items()}
    places: dict[str, tuple[int, int]] = {}
    at = 0
    for name, data in raw.items():
        places[name] = (at, len(data))
        at += -(-len(data) // ALIGN_BYTES) * ALIGN_BYTES
    text = json.dumps({**header, "sections": places}).encode()
    text += b" " * (-(_PREFIX_BYTES + len(text)) % ALIGN_BYTES)
    padded = (data + bytes(-len(data) % ALIGN_BYTES) for data in raw.values())
    body = b"".join([len(text).to_bytes(4, "little"), text, *padded])
    return MAGIC + zlib.crc32(body).to_bytes(4, "little") + body


def unpack(data: Any) -> TokenTable:
    """View ``data`` (bytes or a mapping of the whole file) as tables. Raises TableError."""
    view = memoryview(data)
    if len(view) < _PREFIX_BYTES or bytes(view[: len(MAGIC)]) != MAGIC:
        raise TableError("not a tokenizer table")
    at = len(MAGIC) + 4
    if zlib.crc32(view[at:]) != int.from_bytes(view[len(MAGIC) : at], "little"):
        raise TableError("checksum does not match")
    length = int.from_bytes(view[at:_PREFIX_BYTES], "little")
    body = view[_PREFIX_BYTES:]
    header = json.loads(bytes(body[:length]))
    found_form = (header.get("version"), header.get("byte_order"))
    if found_form != (FORMAT_VERSION, sys.byteorder):
        raise TableError(f"version and byte order {found_form}, not {(FORMAT_VERSION, sys.byteorder)}")
    found = {}
    for name, (start, size) in header["sections"].items():
        found[name] = body[length + start : length + start + size].cast(_SECTIONS[name])
    return TokenTable(header=header, _owner=data, **found)


def read_table(path: Path) -> TokenTable:
    """Map the table at ``path``. Raises TableError when it is not whole, OSError when it is not there."""
    with path.open("rb") as file:
        try:
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        except ValueError as error:  # an empty file cannot be mapped
            raise TableError("empty file") from error
    return unpack(data)


def write_table(path: Path, data: bytes) -> None:
    """Write ``data`` at ``path`` in one step: readers see the old file, the new one, or none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.{get_ident()}.part")
    try:
        with part.open("wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


# --- contents of the sections ----------------------------------------------------------------------


def _blob(parts: list[bytes]) -> tuple[array[int], bytes]:
    offsets = array("I", [0])
    at = 0
    for part in parts:
        at += len(part)
        offsets.append(at)
    return offsets, b"".join(parts)


def _token_bytes(vocabulary: Vocabulary, texts: list[bytes]) -> list[bytes]:
    """What each token adds to a text; nothing for unused and undefined ones."""
    byte_by_character = {character: byte for byte, character in enumerate(byte_characters())}
    space = SPACE.encode()
    parts = []
    for text, raw, kind in zip(vocabulary.texts, texts, vocabulary.types, strict=True):
        if kind in (CONTROL, UNKNOWN, USER_DEFINED):
            parts.append(raw)
        elif kind == BYTE and len(text) == 6 and text.startswith("<0x"):
            parts.append(bytes([int(text[3:5], 16)]))
        elif kind != NORMAL:
            parts.append(b"")
        elif vocabulary.algorithm == "spm":
            parts.append(raw.replace(space, b" "))
        elif all(character in byte_by_character for character in text):
            parts.append(bytes([byte_by_character[character] for character in text]))
        else:  # not written in the byte alphabet: an added token marked as a normal one
            parts.append(raw)
    return parts


def _merge_sections(vocabulary: Vocabulary) -> dict[str, array[int] | bytes]:
    import numpy as np  # only to build: a start from the cache does without

    merges = vocabulary.merges
    left, right, rank, merged = (
        np.frombuffer(values, dtype=np.uintc)
        for values in (merges.left, merges.right, merges.rank, merges.merged)
    )
    order = np.lexsort((right, left))
    num_symbols = len(vocabulary.texts) + len(vocabulary.expansions)
    starts = np.searchsorted(left[order], np.arange(num_symbols + 1))
    return {
        "merge_starts": starts.astype(np.uintc).tobytes(),
        "merge_rights": right[order].tobytes(),
        "merge_ranks": rank[order].tobytes(),
        "merge_ids": merged[order].tobytes(),
    }


def _inner_space_after(vocabulary: Vocabulary) -> str:
    """Characters that stand before U+2581 inside some token: a text may be cut before U+2581 elsewhere."""
    if vocabulary.algorithm != "spm":
        return ""
    before: set[str] = set()
    for index in set(vocabulary.merges.merged):
        text = vocabulary.texts[index]
        before.update(text[at - 1] for at in range(1, len(text)) if text[at] == SPACE)
    return "".join(sorted(before))
