"""GGUF files (versions 2 and 3, little-endian, split or whole), mapped into memory and checked.

``GGUFFile.open`` reads the header only; tensors are views on the mapping. A file that opens has
tensors that lie inside it, do not overlap, and have whole blocks. What the values mean is not known
here: ``packing`` and ``models`` know. A file that is cut short *while it is open* is beyond this
check: the operating system then stops the process on access, as with every mapped file.
"""

from __future__ import annotations

import hashlib
import math
import mmap
import os
import re
import stat
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType, TracebackType
from typing import Any, Self, TypeVar, overload

import numpy as np

from stoker.api.errors import ModelFormatError, ModelNotFoundError
from stoker.weights.ggml_type import NAMED_ONLY_TYPES, SUPPORTED_TYPE_NAMES, TYPE_BY_ID, GGMLType
from stoker.weights.metadata import Array, Bytes, Cursor, Metadata, ValueType, read_metadata

MAGIC = b"GGUF"
VERSIONS = (2, 3)  # same layout; version 1 had 32-bit counts and has not been written since 2023
DEFAULT_ALIGNMENT_BYTES = 32
MAX_ALIGNMENT_BYTES = 1 << 20  # the largest pages that a mapping could want to be aligned to are 2 MiB / 2
MAX_TENSORS = 1 << 17  # models with thousands of experts stored one by one reach 2^15
MAX_TENSOR_NAME_BYTES = 255  # the specification says 64; other tools write 127
MAX_DIMENSIONS = 4
MAX_PARTS = 1 << 10  # each part costs a file descriptor while it is opened

_SPLIT_NAME = re.compile(r"(?P<stem>.+)-(?P<number>\d{5})-of-(?P<count>\d{5})\.gguf")

T = TypeVar("T", int, float, str, bool, Array)


@dataclass(frozen=True)
class TensorInfo:
    """Where one tensor lies. ``shape`` is in numpy order: rows first, the contiguous dimension last."""

    name: str
    shape: tuple[int, ...]
    type: GGMLType
    offset_bytes: int  # from the start of its file
    n_bytes: int
    part: int = 0  # index of its file, for split models

    @property
    def n_elements(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


class GGUFFile:
    """An open model file, or all parts of a split one. Close it, or use it as a context manager.

    Views that ``data`` and ``metadata`` gave out stay valid after ``close``: the mapping goes when
    the last of them does.
    """

    def __init__(
        self,
        path: Path,
        version: int,
        metadata: Metadata,
        tensors: dict[str, TensorInfo],
        parts: list[_Part],
    ) -> None:
        self.path = path
        self.version = version
        self.metadata: Mapping[str, Any] = metadata.values
        self.metadata_types: Mapping[str, ValueType] = metadata.types
        self.tensors: Mapping[str, TensorInfo] = MappingProxyType(tensors)
        self._parts = parts

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, allow_unsupported: bool = False) -> GGUFFile:
        """Map the file at ``path`` (any part of a split model opens all parts) and read its header.

        With ``allow_unsupported``, tensors of types that Stoker cannot compute with are listed
        instead of refused. Raises ModelNotFoundError when there is no such file, ModelFormatError
        for everything that is wrong with it.
        """
        path = Path(path)
        first = _open_part(path, 0, allow_unsupported)
        split = _SPLIT_NAME.fullmatch(path.name)
        count = first.split_value("split.count", default=1)
        if count <= 1 and split is None:
            return cls(path, first.version, first.metadata, first.tensors, [first])
        if split is None:
            raise ModelFormatError(
                f"{path}: is part {first.split_value('split.no') + 1} of {count} of a split model,"
                f" but its name does not end in -NNNNN-of-{count:05d}.gguf",
                hint="give the parts their original names, in one folder",
            )
        if int(split["count"]) != count:
            raise ModelFormatError(f"{path}: its name says {split['count']} parts, split.count says {count}")
        return _join_parts(cls, path, split["stem"], count, allow_unsupported)

    @property
    def size_bytes(self) -> int:
        """Bytes of the file, or of all parts together."""
        return sum(part.size_bytes for part in self._parts)

    @property
    def paths(self) -> tuple[Path, ...]:
        """The file, or all parts in order."""
        return tuple(part.path for part in self._parts)

    def header_digest(self) -> str:
        """SHA-256 over the headers of all parts: metadata and tensor table, in hex. Names the file's contents
        but for its weights; 1.8 MB (SmolLM2) take about 2 ms."""
        digest = hashlib.sha256()
        for part in self._open_parts():
            digest.update(part.header_bytes.to_bytes(8, "little"))
            digest.update(part.file_bytes[: part.header_bytes].data)
        return digest.hexdigest()

    def data(self, tensor: TensorInfo | str) -> Bytes:
        """The bytes of a tensor, uint8 [n_bytes], read-only, on the mapping (no copy)."""
        info = self._info(tensor)
        file_bytes = self._open_parts()[info.part].file_bytes
        return file_bytes[info.offset_bytes : info.offset_bytes + info.n_bytes]

    def release(self, tensor: TensorInfo | str, up_to_bytes: int | None = None) -> None:
        """Let the system take back the memory of a tensor's pages, all or the first bytes; later reads fetch
        them again.

        Mapped pages count as memory of the process once touched. After packing they are not needed,
        and this keeps them out of the peak. The pages are clean copies of the file, so nothing is lost;
        neighbours that share the first or last page only fault it in again.
        """
        info = self._info(tensor)
        n_bytes = info.n_bytes if up_to_bytes is None else min(up_to_bytes, info.n_bytes)
        self._open_parts()[info.part].release(info.offset_bytes, n_bytes)

    def release_all(self) -> None:
        """As ``release``, for the whole file with its metadata."""
        for part in self._open_parts():
            part.release(0, part.size_bytes)

    @overload
    def value(self, key: str, kind: type[T]) -> T: ...

    @overload
    def value(self, key: str, kind: type[T], default: T) -> T: ...

    @overload
    def value(self, key: str, kind: type[T], default: None) -> T | None: ...

    def value(self, key: str, kind: type[Any], default: Any = ...) -> Any:
        """The metadata value of ``key``, which must be of ``kind``: int, float, bool, str or Array.

        A float may be stored as an int. Raises ModelFormatError when the key is missing and no
        ``default`` is given, or when the value is of another kind.
        """
        if key not in self.metadata:
            if default is ...:
                raise ModelFormatError(f"{self.path}: metadata key {key!r} is missing")
            return default
        found = self.metadata[key]
        if kind is float and isinstance(found, int) and not isinstance(found, bool):
            return float(found)
        if not isinstance(found, kind) or (isinstance(found, bool) and kind is not bool):
            stored = self.metadata_types[key].name
            raise ModelFormatError(f"{self.path}: metadata key {key!r} is {stored}, allowed: {kind.__name__}")
        return found

    def close(self) -> None:
        """Give up the mapping (idempotent)."""
        self._parts = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<GGUFFile {self.path.name}: {len(self.metadata)} keys, {len(self.tensors)} tensors>"

    def _open_parts(self) -> list[_Part]:
        if not self._parts:
            raise ValueError(f"{self.path} is closed")
        return self._parts

    def _info(self, tensor: TensorInfo | str) -> TensorInfo:
        if isinstance(tensor, TensorInfo):
            return tensor
        if tensor not in self.tensors:
            raise ModelFormatError(f"{self.path}: no tensor named {tensor!r} among {len(self.tensors)}")
        return self.tensors[tensor]


@dataclass(frozen=True)
class _Part:
    """One mapped file and its parsed header."""

    path: Path
    version: int
    metadata: Metadata
    tensors: dict[str, TensorInfo]
    mapping: mmap.mmap
    file_bytes: Bytes  # [size_bytes]
    header_bytes: int  # up to the end of the tensor table, without the padding behind it

    @property
    def size_bytes(self) -> int:
        return len(self.file_bytes)

    def split_value(self, key: str, default: int | None = None) -> int:
        """An integer of the ``split.`` keys."""
        value = self.metadata.values.get(key, default)
        if not isinstance(value, int) or isinstance(value, bool) or value < 0:
            raise ModelFormatError(f"{self.path}: metadata key {key!r} is {value!r}, allowed: a count")
        return value

    def release(self, offset: int, n_bytes: int) -> None:
        if not hasattr(mmap, "MADV_DONTNEED"):  # Windows; its working set is trimmed by the system
            return
        start = offset - offset % mmap.PAGESIZE
        if n_bytes:
            self.mapping.madvise(mmap.MADV_DONTNEED, start, min(offset + n_bytes, self.size_bytes) - start)


def _join_parts(make: type[GGUFFile], path: Path, stem: str, count: int, allow_unsupported: bool) -> GGUFFile:
    if count > MAX_PARTS:
        raise ModelFormatError(f"{path}: split into {count} parts, allowed: {MAX_PARTS}")
    parts: list[_Part] = []
    tensors: dict[str, TensorInfo] = {}
    for number in range(count):
        part_path = path.with_name(f"{stem}-{number + 1:05d}-of-{count:05d}.gguf")
        if not part_path.exists():
            raise ModelNotFoundError(f"{part_path}: part {number + 1} of {count} of {path} is missing")
        part = _open_part(part_path, number, allow_unsupported)
        for key, expected in (("split.no", number), ("split.count", count)):
            if part.split_value(key) != expected:
                raise ModelFormatError(f"{part_path}: {key} is {part.split_value(key)}, expected {expected}")
        for name, info in part.tensors.items():
            if name in tensors:
                raise ModelFormatError(f"{part_path}: tensor {name!r} is in two parts")
            tensors[name] = info
        parts.append(part)
    total = parts[0].split_value("split.tensors.count", default=len(tensors))
    if total != len(tensors):
        raise ModelFormatError(f"{path}: split.tensors.count is {total}, the parts hold {len(tensors)}")
    return make(path, parts[0].version, parts[0].metadata, tensors, parts)


def _open_part(path: Path, number: int, allow_unsupported: bool) -> _Part:
    mapping = _map_file(path)
    file_bytes = np.frombuffer(mapping, np.uint8)
    cursor = Cursor(file_bytes, str(path))
    version, n_tensors, n_keys = _read_header(cursor)
    metadata = read_metadata(cursor, n_keys)
    alignment = _alignment(cursor, metadata)
    tensors = _read_tensors(cursor, n_tensors, alignment, number, allow_unsupported)
    return _Part(path, version, metadata, tensors, mapping, file_bytes, cursor.offset)


def _map_file(path: Path) -> mmap.mmap:
    try:
        # Looked at before it is opened, since opening a pipe or device could wait for ever.
        mode = os.stat(path).st_mode
        if stat.S_ISDIR(mode):
            raise ModelFormatError(f"{path}: is a folder, allowed: a .gguf file")
        if not stat.S_ISREG(mode):
            raise ModelFormatError(f"{path}: is not a regular file, allowed: a .gguf file")
        with open(path, "rb") as handle:
            size = os.fstat(handle.fileno()).st_size
            if size < 24:
                raise ModelFormatError(f"{path}: has {size} bytes, a GGUF header alone has 24")
            return mmap.mmap(handle.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError as error:
        raise ModelNotFoundError(f"{path}: no such file") from error
    except (OSError, ValueError) as error:  # ValueError: a path with a zero byte, or a file just emptied
        raise ModelFormatError(f"{path}: cannot be read: {error}") from error


def _read_header(cursor: Cursor) -> tuple[int, int, int]:
    magic = cursor.data[:4].tobytes()
    if magic != MAGIC:
        raise cursor.fail(f"the file starts with {magic!r}, a GGUF file with {MAGIC!r}")
    cursor.offset = 4
    version = cursor.u32("version")
    if version not in VERSIONS:
        cursor.offset = 4
        swapped = struct.unpack(">I", struct.pack("<I", version))[0]
        if swapped in VERSIONS:
            raise cursor.fail("the file is big-endian, allowed: little-endian")
        raise cursor.fail(f"GGUF version {version}, allowed: 2, 3")
    return version, cursor.u64("number of tensors"), cursor.u64("number of metadata keys")


def _alignment(cursor: Cursor, metadata: Metadata) -> int:
    alignment = metadata.values.get("general.alignment", DEFAULT_ALIGNMENT_BYTES)
    whole = isinstance(alignment, int) and not isinstance(alignment, bool)
    if not whole or not 8 <= alignment <= MAX_ALIGNMENT_BYTES or alignment & (alignment - 1):
        shown = f"{alignment!r:.40}"
        raise ModelFormatError(
            f"{cursor.source}: general.alignment is {shown},"
            f" allowed: a power of two from 8 to {MAX_ALIGNMENT_BYTES}"
        )
    return int(alignment)


def _read_tensors(
    cursor: Cursor, count: int, alignment: int, part: int, allow_unsupported: bool
) -> dict[str, TensorInfo]:
    # The least a tensor's entry takes: 8 (name length) + 1 + 4 (dimensions) + 8 + 4 (type) + 8 (offset).
    if count > min(MAX_TENSORS, cursor.bytes_left // 33):
        raise cursor.fail(
            f"{count} tensors, allowed: at most {MAX_TENSORS} and what fits in {cursor.bytes_left} bytes"
        )
    infos: dict[str, TensorInfo] = {}
    for i in range(count):
        start = cursor.offset
        info = _read_tensor(cursor, f"tensor {i} of {count}", alignment, part, allow_unsupported)
        if info.name in infos:
            cursor.offset = start
            raise cursor.fail(f"tensor {info.name!r} occurs twice")
        infos[info.name] = info
    base = -(-cursor.offset // alignment) * alignment
    placed = {name: _place(info, base) for name, info in infos.items()}
    _check_places(placed, len(cursor.data), cursor.source)
    return placed


def _read_tensor(cursor: Cursor, what: str, alignment: int, part: int, allow_unsupported: bool) -> TensorInfo:
    """One entry of the tensor table; its ``offset_bytes`` is still relative to the data section."""
    name = cursor.text(f"name of {what}", MAX_TENSOR_NAME_BYTES)
    if not name:
        raise cursor.fail(f"the name of {what} is empty")
    what = f"tensor {name!r}"
    n_dimensions = cursor.u32(f"number of dimensions of {what}")
    if not 1 <= n_dimensions <= MAX_DIMENSIONS:
        raise cursor.fail(f"{what} has {n_dimensions} dimensions, allowed: 1 to {MAX_DIMENSIONS}")
    shape = tuple(cursor.u64(f"dimension of {what}") for _ in range(n_dimensions))[::-1]
    kind = _read_type(cursor, what, allow_unsupported)
    if 0 in shape or shape[-1] % kind.block_size:
        raise cursor.fail(
            f"{what} of type {kind.name} has the shape {list(shape)},"
            f" allowed: no zeros, rows of a multiple of {kind.block_size}"
        )
    n_bytes = math.prod(shape) // kind.block_size * kind.block_bytes
    if n_bytes > len(cursor.data):
        raise cursor.fail(f"{what} of shape {list(shape)} takes {n_bytes} bytes, the file {len(cursor.data)}")
    offset = cursor.u64(f"offset of {what}")
    if offset % alignment:
        raise cursor.fail(f"{what} has the offset {offset}, allowed: multiples of {alignment}")
    return TensorInfo(name, shape, kind, offset, n_bytes, part)


def _read_type(cursor: Cursor, what: str, allow_unsupported: bool) -> GGMLType:
    type_id = cursor.u32(f"type of {what}")
    kind = TYPE_BY_ID.get(type_id)
    if kind is not None and (kind.is_supported or allow_unsupported):
        return kind
    cursor.offset -= 4
    known = kind.name if kind is not None else NAMED_ONLY_TYPES.get(type_id, "unknown")
    raise cursor.fail(
        f"{what} has the type {type_id} ({known}), which is not supported;"
        f" allowed: {', '.join(SUPPORTED_TYPE_NAMES)}"
    )


def _place(info: TensorInfo, base: int) -> TensorInfo:
    return TensorInfo(info.name, info.shape, info.type, base + info.offset_bytes, info.n_bytes, info.part)


def _check_places(tensors: dict[str, TensorInfo], size_bytes: int, source: str) -> None:
    before: TensorInfo | None = None
    for info in sorted(tensors.values(), key=lambda info: info.offset_bytes):
        end = info.offset_bytes + info.n_bytes
        if end > size_bytes:
            raise ModelFormatError(
                f"{source}: tensor {info.name!r} takes the bytes {info.offset_bytes} to {end},"
                f" the file has {size_bytes}: it is cut short or damaged"
            )
        if before is not None and info.offset_bytes < before.offset_bytes + before.n_bytes:
            raise ModelFormatError(
                f"{source}: tensor {info.name!r} at offset {info.offset_bytes} overlaps {before.name!r},"
                f" which ends at {before.offset_bytes + before.n_bytes}"
            )
        before = info
