"""Writes GGUF files byte by byte, also wrong ones: the tests' own idea of the format."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

SCALAR_FORMATS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "B", 10: "Q", 11: "q", 12: "d"}
STRING, ARRAY, U32 = 8, 9, 4


def string(text: str | bytes) -> bytes:
    """A length and the bytes."""
    raw = text.encode() if isinstance(text, str) else text
    return struct.pack("<Q", len(raw)) + raw


def value_bytes(kind: int, value: Any) -> bytes:
    """A value without its type tag. Arrays are (element kind, list)."""
    if kind == STRING:
        return string(value)
    if kind == ARRAY:
        element_kind, elements = value
        body = b"".join(value_bytes(element_kind, element) for element in elements)
        return struct.pack("<IQ", element_kind, len(elements)) + body
    return struct.pack("<" + SCALAR_FORMATS[kind], value)


@dataclass
class Tensor:
    """One entry of the table: dims in the file's order (contiguous first), offset within the data."""

    name: str | bytes
    dims: Sequence[int]
    type_id: int
    offset: int

    def to_bytes(self) -> bytes:
        """As in the file."""
        dims = struct.pack(f"<{len(self.dims)}Q", *self.dims)
        head = string(self.name) + struct.pack("<I", len(self.dims)) + dims
        return head + struct.pack("<IQ", self.type_id, self.offset)


@dataclass
class GGUF:
    """A file to be; every field can be set to something wrong."""

    keys: list[tuple[str | bytes, int, Any]] = field(default_factory=list)
    tensors: list[Tensor] = field(default_factory=list)
    data: bytes = b""
    magic: bytes = b"GGUF"
    version: int = 3
    alignment: int = 32
    tensor_count: int | None = None
    key_count: int | None = None

    def to_bytes(self) -> bytes:
        """The whole file."""
        n_tensors = len(self.tensors) if self.tensor_count is None else self.tensor_count
        n_keys = len(self.keys) if self.key_count is None else self.key_count
        out = self.magic + struct.pack("<IQQ", self.version, n_tensors, n_keys)
        for key, kind, value in self.keys:
            out += string(key) + struct.pack("<I", kind) + value_bytes(kind, value)
        out += b"".join(tensor.to_bytes() for tensor in self.tensors)
        return out + b"\0" * (-len(out) % self.alignment) + self.data


def small_file() -> GGUF:
    """A valid file with every value type, nested arrays, and three tensors."""
    numbers = [(f"number.{kind}", kind, 1) for kind in SCALAR_FORMATS]
    arrays = [(f"array.{kind}", ARRAY, (kind, [1, 0, 1])) for kind in SCALAR_FORMATS]
    return GGUF(
        keys=[
            ("general.architecture", STRING, "llama"),
            ("general.alignment", U32, 32),
            *numbers,
            *arrays,
            ("tokens", ARRAY, (STRING, ["<s>", "", "ä", "x" * 300, "\0" * 9, "end"])),
            ("nested", ARRAY, (ARRAY, [(U32, [1, 2]), (STRING, ["a"]), (U32, [])])),
            ("empty", ARRAY, (STRING, [])),
        ],
        tensors=[
            Tensor("a.weight", [32, 4], 2, 0),  # Q4_0: 4 rows of one block of 18 bytes
            Tensor("b.weight", [3], 0, 96),  # F32: 12 bytes
            Tensor("c.weight", [256, 2, 1, 1], 12, 128),  # Q4_K: 288 bytes
        ],
        data=bytes(i % 251 for i in range(128 + 288)),
    )
