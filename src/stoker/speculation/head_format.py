"""What a head file says of itself: a GGUF file whose architecture is "stoker-draft-head"."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from itertools import pairwise
from types import MappingProxyType
from typing import Any, Final, TypeVar

from stoker.api.errors import ModelFormatError

ARCHITECTURE: Final = "stoker-draft-head"
VERSION: Final = 2  # 1 had no `layers`
_VERSIONS: Final = (1, 2)
KEY: Final = "stoker.draft."  # before every key of ours
TOKENS: Final = "stoker.draft.token_ids"  # the draft vocabulary, ascending ids of the target's
EAGLE: Final = "eagle"
MEDUSA: Final = "medusa"
KINDS: Final = (EAGLE, MEDUSA)
MEDUSA_KEY: Final = "stoker.draft.medusa."  # before the keys of its shape
MOST_LAYERS: Final = 8  # of a target that a head reads; EAGLE-3 has 3
MOST_HEADS: Final = 16  # of Medusa: one row each of a step's widest tile
_MOST: Final[Mapping[str, int]] = MappingProxyType(
    {
        "width": 65_536,
        "feed_forward": 1 << 20,
        "heads": 1024,
        "kv_heads": 1024,
        "head_size": 512,
        "window": 4096,
    }
)
_MOST_MEDUSA: Final[Mapping[str, int]] = MappingProxyType(
    {"width": 65_536, "inner": 1 << 20, "heads": MOST_HEADS}
)
_Shape = TypeVar("_Shape", "HeadShape", "MedusaShape")


@dataclass(frozen=True, slots=True)
class HeadShape:
    """The numbers of an EAGLE head's only layer."""

    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float
    rope_base: float
    window: int  # tokens that its attention sees
    # Of the target, ascending: what goes into their attention is read beside the target's hidden state.
    layers: tuple[int, ...] = ()

    @property
    def target_width(self) -> int:
        """Numbers of what the target says of a token."""
        return self.width * (1 + len(self.layers))

    def metadata(self) -> dict[str, int | float | list[int]]:
        """As they stand in the file."""
        values = asdict(self) | {"layers": list(self.layers)}
        return {KEY + name: value for name, value in values.items() if value != []}


@dataclass(frozen=True, slots=True)
class MedusaShape:
    """The numbers of Medusa's residual blocks, one for each token that is guessed."""

    width: int
    inner: int  # width inside a block
    heads: int

    def metadata(self) -> dict[str, int | float | list[int]]:
        """As they stand in the file."""
        return {MEDUSA_KEY + name: value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class HeadIdentity:
    """For which target a head was made."""

    kind: str
    target_digest: str  # SHA-256 of the target's weights file
    vocabulary: int
    passes: int  # so many it takes for its longest draft: an EAGLE head one for each token, Medusa one


def shape_from(metadata: Mapping[str, Any]) -> HeadShape:
    """Read and check an EAGLE head's. Raises `ModelFormatError` naming the key."""
    shape = _read(HeadShape, metadata, KEY, _MOST)
    if shape.heads % shape.kv_heads or shape.head_size % 2:
        raise ModelFormatError(
            f"{KEY}heads is {shape.heads}, kv_heads {shape.kv_heads}, head_size {shape.head_size}; allowed: "
            "heads a multiple of kv_heads, head_size even"
        )
    return replace(shape, layers=_layers(metadata.get(KEY + "layers", [])))


def _layers(found: object) -> tuple[int, ...]:
    """Raises `ModelFormatError` for what is no short ascending list of layers."""
    if isinstance(found, Sequence) and len(found) <= MOST_LAYERS:
        layers = list(found)
        whole = all(isinstance(layer, int) and not isinstance(layer, bool) for layer in layers)
        if whole and all(a < b for a, b in pairwise([-1, *layers])):
            return tuple(layers)
    raise ModelFormatError(
        f"{KEY}layers is {found!r:.80}; allowed: up to {MOST_LAYERS} of the model's layers, ascending"
    )


def medusa_shape_from(metadata: Mapping[str, Any]) -> MedusaShape:
    """Read and check. Raises `ModelFormatError` naming the key."""
    return _read(MedusaShape, metadata, MEDUSA_KEY, _MOST_MEDUSA)


def _read(shape: type[_Shape], metadata: Mapping[str, Any], key: str, most: Mapping[str, int]) -> _Shape:
    values: dict[str, Any] = {}
    for one in fields(shape):
        if one.name == "layers":  # no number
            continue
        value = metadata.get(key + one.name)
        if one.type == "float":
            good, allowed = isinstance(value, float) and 0 < value < 1e12, "a positive number"
        else:
            good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= most[one.name]
            allowed = f"1 to {most[one.name]}"
        if not good:
            raise ModelFormatError(f"{key}{one.name} is {value!r}; allowed: {allowed}")
        values[one.name] = value
    return shape(**values)


def identity_from(metadata: Mapping[str, Any]) -> HeadIdentity:
    """Read and check. Raises `ModelFormatError` naming the key."""
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ModelFormatError(
            f"general.architecture is {architecture!r}; allowed: {ARCHITECTURE}, a draft head"
        )
    version = metadata.get(KEY + "version")
    if version not in _VERSIONS:
        raise ModelFormatError(
            f"{KEY}version is {version!r}; allowed: {', '.join(map(str, _VERSIONS))}",
            hint="train the head again with this version",
        )
    kind, digest = metadata.get(KEY + "kind"), metadata.get(KEY + "target_digest")
    vocabulary, passes = metadata.get(KEY + "vocabulary"), metadata.get(KEY + "passes")
    if kind not in KINDS:
        raise ModelFormatError(f"{KEY}kind is {kind!r}; allowed: {', '.join(KINDS)}")
    if not isinstance(digest, str) or not isinstance(vocabulary, int):
        raise ModelFormatError(
            f"{KEY}target_digest or {KEY}vocabulary is missing; allowed: both, of its target"
        )
    if not isinstance(passes, int) or not 1 <= passes <= 16:
        raise ModelFormatError(f"{KEY}passes is {passes!r}; allowed: 1 to 16")
    return HeadIdentity(kind, digest, vocabulary, passes)
