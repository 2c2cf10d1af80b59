"""What a head file says of itself: a GGUF file whose architecture is "stoker-draft-head"."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any, Final

from stoker.api.errors import ModelFormatError

ARCHITECTURE: Final = "stoker-draft-head"
VERSION: Final = 1
KEY: Final = "stoker.draft."  # before every key of ours
TOKENS: Final = "stoker.draft.token_ids"  # the draft vocabulary, ascending ids of the target's
KINDS: Final = ("eagle", "medusa")
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


@dataclass(frozen=True, slots=True)
class HeadShape:
    """The numbers of an EAGLE head's only layer; a Medusa head uses the width alone."""

    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float
    rope_base: float
    window: int  # tokens that its attention sees

    def metadata(self) -> dict[str, int | float]:
        """As they stand in the file."""
        return {KEY + name: value for name, value in asdict(self).items()}


@dataclass(frozen=True, slots=True)
class HeadIdentity:
    """For which target a head was made."""

    kind: str
    target_digest: str  # SHA-256 of the target's weights file
    vocabulary: int
    passes: int  # how deep it was trained to draft


def shape_from(metadata: Mapping[str, Any]) -> HeadShape:
    """Read and check. Raises `ModelFormatError` naming the key."""
    values: dict[str, Any] = {}
    for one in fields(HeadShape):
        value = metadata.get(KEY + one.name)
        if one.type == "float":
            good = isinstance(value, float) and 0 < value < 1e12
        else:
            good = isinstance(value, int) and not isinstance(value, bool) and 0 < value <= _MOST[one.name]
        if not good:
            raise ModelFormatError(f"{KEY}{one.name} is {value!r}; allowed: a positive number")
        values[one.name] = value
    shape = HeadShape(**values)
    if shape.heads % shape.kv_heads or shape.head_size % 2:
        raise ModelFormatError(
            f"{KEY}heads is {shape.heads}, kv_heads {shape.kv_heads}, head_size {shape.head_size}; allowed: "
            "heads a multiple of kv_heads, head_size even"
        )
    return shape


def identity_from(metadata: Mapping[str, Any]) -> HeadIdentity:
    """Read and check. Raises `ModelFormatError` naming the key."""
    architecture = metadata.get("general.architecture")
    if architecture != ARCHITECTURE:
        raise ModelFormatError(
            f"general.architecture is {architecture!r}; allowed: {ARCHITECTURE}, a draft head"
        )
    version = metadata.get(KEY + "version")
    if version != VERSION:
        raise ModelFormatError(
            f"{KEY}version is {version!r}; allowed: {VERSION}", hint="train the head again with this version"
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
