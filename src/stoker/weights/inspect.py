"""What a GGUF file holds, as plain data: for ``stoker inspect``, its ``--json``, and other programs."""

from __future__ import annotations

import math
from typing import Any, TypedDict

from stoker.api.errors import ModelFormatError
from stoker.weights.gguf import GGUFFile, TensorInfo
from stoker.weights.metadata import Array, ValueType


class ArrayDescription(TypedDict):
    """An array, abbreviated: its first elements and how many there are."""

    count: int
    first: list[Any]


class KeyDescription(TypedDict):
    """One metadata key. ``type`` is "UINT32", or "ARRAY of STRING"; see ``describe`` for ``value``."""

    key: str
    type: str
    value: Any


class TensorDescription(TypedDict):
    """One tensor; ``shape`` rows first, ``offset_bytes`` from the start of file number ``part``."""

    name: str
    shape: list[int]
    type: str
    n_parameters: int
    n_bytes: int
    bits_per_weight: float
    offset_bytes: int
    part: int


class TypeDescription(TypedDict):
    """All tensors of one type together."""

    type: str
    supported: bool
    n_tensors: int
    n_parameters: int
    n_bytes: int
    bits_per_weight: float


class FileDescription(TypedDict):
    """A whole model."""

    files: list[str]
    version: int
    size_bytes: int
    architecture: str | None
    name: str | None
    n_parameters: int
    tensor_bytes: int
    bits_per_weight: float
    types: list[TypeDescription]
    metadata: list[KeyDescription]
    tensors: list[TensorDescription]


def describe(file: GGUFFile, *, max_elements: int = 8) -> FileDescription:
    """``file`` as data that ``json.dumps`` takes as it is.

    Arrays longer than ``max_elements`` become an ArrayDescription, shorter ones a list. Floats that
    JSON lacks become the strings "nan", "inf" and "-inf"; bytes that are no UTF-8 become U+FFFD.
    """
    tensors = list(file.tensors.values())
    n_parameters = sum(info.n_elements for info in tensors)
    tensor_bytes = sum(info.n_bytes for info in tensors)
    return FileDescription(
        files=[str(path) for path in file.paths],
        version=file.version,
        size_bytes=file.size_bytes,
        architecture=_text_or_none(file, "general.architecture"),
        name=_text_or_none(file, "general.name"),
        n_parameters=n_parameters,
        tensor_bytes=tensor_bytes,
        bits_per_weight=_bits(tensor_bytes, n_parameters),
        types=_describe_types(tensors),
        metadata=[
            KeyDescription(key=key, type=_type_name(file, key), value=_value(value, max_elements))
            for key, value in file.metadata.items()
        ],
        tensors=[_describe_tensor(info) for info in tensors],
    )


def _text_or_none(file: GGUFFile, key: str) -> str | None:
    value = file.metadata.get(key)
    return value if isinstance(value, str) else None


def _bits(n_bytes: int, n_parameters: int) -> float:
    return round(8 * n_bytes / n_parameters, 4) if n_parameters else 0.0


def _type_name(file: GGUFFile, key: str) -> str:
    kind, value = file.metadata_types[key], file.metadata[key]
    return f"ARRAY of {value.element_type.name}" if isinstance(value, Array) else kind.name


def _value(value: Any, max_elements: int) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if not isinstance(value, Array):
        return value
    shown = [_value(element, max_elements) for element in _elements(value.head(max_elements))]
    return shown if len(value) <= max_elements else ArrayDescription(count=len(value), first=shown)


def _elements(array: Array) -> list[Any]:
    if array.element_type is ValueType.ARRAY:
        return list(array.nested)
    try:
        return array.tolist()
    except ModelFormatError:  # the tokenizer must refuse such strings; a listing can show them
        return [raw.decode(errors="replace") for raw in array.tobytes_list()]


def _describe_tensor(info: TensorInfo) -> TensorDescription:
    return TensorDescription(
        name=info.name,
        shape=list(info.shape),
        type=info.type.name,
        n_parameters=info.n_elements,
        n_bytes=info.n_bytes,
        bits_per_weight=info.type.bits_per_weight,
        offset_bytes=info.offset_bytes,
        part=info.part,
    )


def _describe_types(tensors: list[TensorInfo]) -> list[TypeDescription]:
    groups = {kind: [info for info in tensors if info.type is kind] for kind in {t.type for t in tensors}}
    rows = [
        TypeDescription(
            type=kind.name,
            supported=kind.is_supported,
            n_tensors=len(group),
            n_parameters=sum(info.n_elements for info in group),
            n_bytes=sum(info.n_bytes for info in group),
            bits_per_weight=kind.bits_per_weight,
        )
        for kind, group in groups.items()
    ]
    return sorted(rows, key=lambda row: (-row["n_bytes"], row["type"]))
