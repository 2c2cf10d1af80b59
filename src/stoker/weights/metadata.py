"""The key-value part of a GGUF file: value types, a bounds-checked reader, arrays that stay on disk.

Nothing here trusts the file: each count and length is compared with the bytes that are left before
anything of that size is made, and the work over one file has fixed limits (the constants below).
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cached_property
from types import MappingProxyType
from typing import Any, overload

import numpy as np
from numpy.typing import NDArray

from stoker.api.errors import ModelFormatError

Bytes = NDArray[np.uint8]

MAX_KEYS = 1 << 16  # real files have about 50; a full table of this size still reads in 0.1 s
MAX_KEY_BYTES = 65535  # the limit that the GGUF specification sets
MAX_STRING_BYTES = 1 << 26  # one scalar string; embedded tokenizer.json files reach about 2^25
MAX_STRINGS = 1 << 24  # strings in the arrays of one file; the largest vocabularies use 2^20
MAX_NESTED_ARRAYS = 1 << 16  # arrays inside arrays, of one file: each becomes an object of 200 bytes
MAX_ARRAY_DEPTH = 4  # nesting is allowed by the format; nobody writes more than 1


class ValueType(IntEnum):
    """Type tags of metadata values."""

    UINT8 = 0
    INT8 = 1
    UINT16 = 2
    INT16 = 3
    UINT32 = 4
    INT32 = 5
    FLOAT32 = 6
    BOOL = 7
    STRING = 8
    ARRAY = 9
    UINT64 = 10
    INT64 = 11
    FLOAT64 = 12


SCALAR_STRUCTS = MappingProxyType(
    {
        ValueType.UINT8: struct.Struct("<B"),
        ValueType.INT8: struct.Struct("<b"),
        ValueType.UINT16: struct.Struct("<H"),
        ValueType.INT16: struct.Struct("<h"),
        ValueType.UINT32: struct.Struct("<I"),
        ValueType.INT32: struct.Struct("<i"),
        ValueType.FLOAT32: struct.Struct("<f"),
        ValueType.BOOL: struct.Struct("<B"),
        ValueType.UINT64: struct.Struct("<Q"),
        ValueType.INT64: struct.Struct("<q"),
        ValueType.FLOAT64: struct.Struct("<d"),
    }
)
_U32 = SCALAR_STRUCTS[ValueType.UINT32]
_U64 = SCALAR_STRUCTS[ValueType.UINT64]


@dataclass(frozen=True, eq=False)
class Array(Sequence[Any]):
    """An array of a file's metadata, left where it is until somebody reads it.

    Behaves as a read-only sequence of Python values; ``==`` compares with any sequence of equal
    elements. Numbers can be had without a copy through ``numpy()``. The first access to a single
    string builds an index of all of them; ``tolist()`` does not keep one.
    """

    element_type: ValueType
    length: int
    offset: int  # of the first element, in bytes from the start of the file
    source: str  # the file and key, for messages
    file_bytes: Bytes  # [file size], mapped
    nested: tuple[Array, ...] = ()  # elements, when element_type is ARRAY

    def __len__(self) -> int:
        return self.length

    @overload
    def __getitem__(self, index: int) -> Any: ...

    @overload
    def __getitem__(self, index: slice) -> list[Any]: ...

    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(self.length))]
        position = range(self.length)[index]
        if self.element_type is ValueType.ARRAY:
            return self.nested[position]
        if self.element_type is ValueType.STRING:
            return self._decode(position, int(self._string_offsets[position]))
        return self.numpy()[position].item()

    def __iter__(self) -> Iterator[Any]:
        return iter(self.tolist())

    def __eq__(self, other: object) -> bool:
        if isinstance(other, (str, bytes)) or not isinstance(other, Sequence):
            return NotImplemented
        return len(other) == self.length and all(a == b for a, b in zip(self, other, strict=True))

    __hash__ = None  # type: ignore[assignment]

    def __repr__(self) -> str:
        return f"<{self.length} x {self.element_type.name}>"

    def numpy(self) -> NDArray[Any]:
        """The numbers as a read-only array [count] on the mapped file. Raises TypeError for strings."""
        if self.element_type in (ValueType.STRING, ValueType.ARRAY):
            raise TypeError(f"{self.source}: an array of {self.element_type.name} has no numpy form")
        code = SCALAR_STRUCTS[self.element_type].format.replace("B", "u1").replace("b", "i1")
        dtype = np.dtype(code) if self.element_type is not ValueType.BOOL else np.dtype(np.bool_)
        end = self.offset + self.length * dtype.itemsize
        return self.file_bytes[self.offset : end].view(dtype)

    def tolist(self) -> list[Any]:
        """All elements as Python values (nested arrays as lists). Raises ModelFormatError on bad UTF-8."""
        if self.element_type is ValueType.ARRAY:
            return [element.tolist() for element in self.nested]
        if self.element_type is not ValueType.STRING:
            numbers: list[Any] = self.numpy().tolist()
            return numbers
        return self._joined_split() or [self._decode(i, int(o)) for i, o in enumerate(self._string_offsets)]

    def _joined_split(self) -> list[str] | None:
        """All strings, decoded as one text with zero bytes between them and cut again: 6 times faster
        than one by one. None when that does not work (a string holds a zero byte, or is not UTF-8)."""
        if not self.length:
            return None
        offsets = self._string_offsets
        last = int(offsets[-1])
        blob = self.file_bytes[self.offset : last + 8 + self._length_at(last)].copy()
        starts = offsets - self.offset
        keep = np.ones(len(blob), np.bool_)
        for byte in range(1, 8):
            keep[starts + byte] = False
        blob[starts] = 0
        try:
            strings = blob[keep][1:].tobytes().decode().split("\0")
        except UnicodeDecodeError:
            return None
        return strings if len(strings) == self.length else None

    def head(self, length: int) -> Array:
        """The first ``length`` elements (or all), without a look at the others."""
        length = min(length, self.length)
        return Array(
            self.element_type, length, self.offset, self.source, self.file_bytes, self.nested[:length]
        )

    def tobytes_list(self) -> list[bytes]:
        """Elements of a string array as raw bytes, for files whose strings are not UTF-8."""
        if self.element_type is not ValueType.STRING:
            raise TypeError(f"{self.source}: not an array of strings but of {self.element_type.name}")
        return [self._raw(int(offset)) for offset in self._string_offsets]

    @cached_property
    def _string_offsets(self) -> NDArray[np.int64]:
        parts: list[NDArray[np.int64]] = []
        skip_strings(self.file_bytes, self.offset, self.length, self.source, parts)
        return np.concatenate(parts) if parts else np.empty(0, np.int64)

    def _length_at(self, offset: int) -> int:
        length: int = _U64.unpack_from(self.file_bytes.data, offset)[0]
        return length

    def _raw(self, offset: int) -> bytes:
        return self.file_bytes[offset + 8 : offset + 8 + self._length_at(offset)].tobytes()

    def _decode(self, position: int, offset: int) -> str:
        try:
            return self._raw(offset).decode()
        except UnicodeDecodeError as error:
            raise ModelFormatError(
                f"{self.source}: string {position} at offset {offset} is not UTF-8 ({error.reason})"
            ) from error


def skip_strings(
    data: Bytes, offset: int, count: int, source: str, collect: list[NDArray[np.int64]] | None = None
) -> int:
    """Walk over ``count`` strings that start at ``offset`` in ``data`` [file size]; the offset behind them.

    Each string says where the next one starts, so the walk is sequential by nature, and a Python
    loop takes 50 ms for a vocabulary of 262 144. But a string shorter than 256 bytes has seven zero
    bytes behind its first length byte, and text hardly ever has: so all places with seven zero bytes
    in a window are taken as candidates at once, and the chain is then *checked* (each candidate must
    be where the one before says it is). Where the chain breaks, a plain loop goes on. The result is
    that of the plain loop, in a tenth of the time.

    Offsets of the length fields are appended to ``collect`` as int64 arrays when it is given.
    Raises ModelFormatError when a string leaves the file.
    """
    left, window_bytes, plain_steps = count, 1 << 16, 16
    while left > 0:
        window = data[offset : offset + min(window_bytes, 24 * left + 4096)]
        starts, end = _chain_of_short_strings(window, left)
        if len(starts) >= 16:
            if collect is not None:
                collect.append(starts + offset)
            offset, left = offset + end, left - len(starts)
            window_bytes, plain_steps = min(window_bytes * 4, 1 << 20), 16
            continue
        steps = min(left, plain_steps)
        offset = _walk_strings(data, offset, steps, f"{source}, string {count - left}", collect)
        left -= steps
        window_bytes, plain_steps = 1 << 12, min(plain_steps * 2, 1 << 12)
    if offset > len(data):
        raise ModelFormatError(
            f"{source}: the last of {count} strings ends at offset {offset}, the file at {len(data)}"
        )
    return offset


def _chain_of_short_strings(window: Bytes, limit: int) -> tuple[NDArray[np.int64], int]:
    """Starts of up to ``limit`` strings of < 256 bytes from the window's first byte on, and their end."""
    if len(window) < 8:
        return np.empty(0, np.int64), 0
    zero = window[1:] == 0
    two = zero[:-1] & zero[1:]
    four = two[:-2] & two[2:]
    candidates = np.flatnonzero(four[:-3] & four[3:])  # seven zero bytes behind each of these
    if not len(candidates) or candidates[0] != 0:
        return np.empty(0, np.int64), 0
    following = candidates + 8 + window[candidates]
    breaks = np.flatnonzero(following[:-1] != candidates[1:])
    length = min(limit, int(breaks[0]) + 1 if len(breaks) else len(candidates))
    return candidates[:length], int(following[length - 1])


def _walk_strings(
    data: Bytes, offset: int, count: int, source: str, collect: list[NDArray[np.int64]] | None
) -> int:
    size, starts = len(data), []
    view = data.data
    for _ in range(count):
        if offset + 8 > size:
            raise ModelFormatError(
                f"{source}: the length of a string at offset {offset} is behind the file's end ({size} bytes)"
            )
        starts.append(offset)
        length = _U64.unpack_from(view, offset)[0]
        if length > size - offset - 8:
            raise ModelFormatError(
                f"{source}: string of {length} bytes at offset {offset}, {size - offset - 8} bytes are left"
            )
        offset += 8 + length
    if collect is not None:
        collect.append(np.array(starts, np.int64))
    return offset


class Cursor:
    """Reads values one after another from the bytes [file size] of one file, never past their end."""

    def __init__(self, data: Bytes, source: str) -> None:
        self.data = data
        self.source = source  # the file, for messages
        self.offset = 0
        self._view = data.data
        self._places_left = {ValueType.STRING: MAX_STRINGS, ValueType.ARRAY: MAX_NESTED_ARRAYS}

    @property
    def bytes_left(self) -> int:
        """Bytes between the cursor and the end of the file."""
        return len(self.data) - self.offset

    def fail(self, message: str, *, hint: str | None = None) -> ModelFormatError:
        """An error at the cursor's place, to be raised by the caller."""
        return ModelFormatError(f"{self.source}: at offset {self.offset}: {message}", hint=hint)

    def number(self, kind: ValueType, what: str) -> Any:
        """Read one number; ``what`` names it in the error."""
        form = SCALAR_STRUCTS[kind]
        if form.size > self.bytes_left:
            raise self.fail(f"{what} needs {form.size} bytes, {self.bytes_left} are left: cut off")
        value = form.unpack_from(self._view, self.offset)[0]
        if kind is ValueType.BOOL:
            if value > 1:
                raise self.fail(f"{what} is a bool with the value {value}, allowed: 0, 1")
            value = bool(value)
        self.offset += form.size
        return value

    def u32(self, what: str) -> int:
        """Read an unsigned 32-bit number."""
        return int(self.number(ValueType.UINT32, what))

    def u64(self, what: str) -> int:
        """Read an unsigned 64-bit number."""
        return int(self.number(ValueType.UINT64, what))

    def text(self, what: str, limit_bytes: int) -> str:
        """Read a length and that many bytes of UTF-8."""
        start = self.offset
        length = self.u64(f"length of {what}")
        if length > min(limit_bytes, self.bytes_left):
            left, self.offset = self.bytes_left, start
            raise self.fail(f"{what} has {length} bytes, allowed: at most {limit_bytes}, and {left} are left")
        raw = bytes(self._view[self.offset : self.offset + length])
        try:
            value = raw.decode()
        except UnicodeDecodeError as error:
            raise self.fail(f"{what} is not UTF-8 ({error.reason} at byte {error.start})") from error
        self.offset += length
        return value

    def value_type(self, what: str) -> ValueType:
        """Read the tag of a value."""
        tag = self.u32(f"type of {what}")
        try:
            return ValueType(tag)
        except ValueError as error:
            self.offset -= 4
            raise self.fail(f"{what} has the value type {tag}, allowed: 0 to {max(ValueType)}") from error

    def value(self, kind: ValueType, key: str) -> Any:
        """Read the value of ``key``: a Python scalar, or an ``Array``."""
        if kind is ValueType.STRING:
            return self.text(f"value of {key!r}", MAX_STRING_BYTES)
        if kind is ValueType.ARRAY:
            return self._array(key, depth=1)
        return self.number(kind, f"value of {key!r}")

    def _array(self, key: str, depth: int) -> Array:
        if depth > MAX_ARRAY_DEPTH:
            raise self.fail(f"{key!r} nests arrays deeper than {MAX_ARRAY_DEPTH}")
        kind = self.value_type(f"elements of {key!r}")
        count = self.u64(f"count of {key!r}")
        # The least an element can take: an empty string is its length, an empty array type and count.
        least = {ValueType.STRING: 8, ValueType.ARRAY: 12}.get(kind) or SCALAR_STRUCTS[kind].size
        if count > self.bytes_left // least:
            raise self.fail(
                f"array {key!r} has {count} elements of {kind.name}, at least {least} bytes each,"
                f" but {self.bytes_left} bytes are left"
            )
        start, source = self.offset, f"{self.source}: array {key!r}"
        nested: tuple[Array, ...] = ()
        if count > self._places_left.get(kind, count):
            raise self.fail(
                f"array {key!r} has {count} elements of {kind.name},"
                f" allowed in the arrays of one file: {MAX_STRINGS} strings, {MAX_NESTED_ARRAYS} arrays"
            )
        if kind in self._places_left:
            self._places_left[kind] -= count
        if kind is ValueType.STRING:
            self.offset = skip_strings(self.data, start, count, source)
        elif kind is ValueType.ARRAY:
            nested = tuple(self._array(key, depth + 1) for _ in range(count))
        else:
            self.offset += count * least
        array = Array(kind, count, start, source, self.data, nested)
        if kind is ValueType.BOOL and count and self.data[start : self.offset].max() > 1:
            raise ModelFormatError(f"{source}: a bool at offset {start} or behind is neither 0 nor 1")
        return array


@dataclass(frozen=True)
class Metadata:
    """The keys of one file with their values and value types, in the file's order."""

    values: MappingProxyType[str, Any]
    types: MappingProxyType[str, ValueType]


def read_metadata(cursor: Cursor, count: int) -> Metadata:
    """Read ``count`` keys at the cursor. Raises ModelFormatError on anything malformed."""
    # A pair takes at least 8 (key length) + 1 + 4 (type) + 1 bytes.
    if count > min(MAX_KEYS, cursor.bytes_left // 14):
        raise cursor.fail(
            f"{count} metadata keys, allowed: at most {MAX_KEYS} and what fits in {cursor.bytes_left} bytes"
        )
    values: dict[str, Any] = {}
    types: dict[str, ValueType] = {}
    for i in range(count):
        start = cursor.offset
        key = cursor.text(f"metadata key {i} of {count}", MAX_KEY_BYTES)
        if not key or key in values:
            cursor.offset = start
            raise cursor.fail(f"metadata key {key!r} occurs twice" if key else f"metadata key {i} is empty")
        types[key] = cursor.value_type(f"value of {key!r}")
        values[key] = cursor.value(types[key], key)
    return Metadata(MappingProxyType(values), MappingProxyType(types))
