"""How a file says that its embeddings are pooled."""

from __future__ import annotations

from typing import Any

import pytest

from stoker.api.errors import ModelFormatError
from stoker.models.pooling import pooling_from_gguf


@pytest.mark.parametrize(
    ("value", "pooling"), [(None, "mean"), (0, "mean"), (1, "mean"), (2, None), (3, "last"), (4, None)]
)
def test_what_it_means(value: int | None, pooling: str | None) -> None:
    metadata: dict[str, Any] = {"general.architecture": "qwen3", "llama.pooling_type": 3}
    if value is not None:
        metadata["qwen3.pooling_type"] = value
    assert pooling_from_gguf(metadata) == pooling


@pytest.mark.parametrize("value", [5, -1, "last", True, 1.0, [3]])
def test_what_means_nothing(value: Any) -> None:
    with pytest.raises(ModelFormatError, match=r"qwen3\.pooling_type is .*; allowed: 0 to 4"):
        pooling_from_gguf({"general.architecture": "qwen3", "qwen3.pooling_type": value})
