"""How the hidden states of a model's tokens become one embedding, as its file says."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stoker.api.errors import ModelFormatError
from stoker.api.request import Pooling

# `ARCHITECTURE.pooling_type` in GGUF. Models of text that were not made for embeddings do not have it, or 0;
# those that pool what only other architectures have (a first token that sees all others, a score) have no
# embedding here.
_POOLINGS: Mapping[int, Pooling | None] = MappingProxyType(
    {0: "mean", 1: "mean", 2: None, 3: "last", 4: None}
)


def pooling_from_gguf(metadata: Mapping[str, Any]) -> Pooling | None:
    """What embeddings of the model are made by, unless a request says otherwise; none if it must.

    Raises `ModelFormatError` for a value that is not 0 to 4.
    """
    key = f"{metadata.get('general.architecture')}.pooling_type"
    value = metadata.get(key, 0)
    if isinstance(value, bool) or not isinstance(value, int) or value not in _POOLINGS:
        raise ModelFormatError(f"{key} is {value!r:.80}; allowed: 0 to 4")
    return _POOLINGS[value]
