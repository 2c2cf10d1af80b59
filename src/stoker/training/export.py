"""A trained head as a file: GGUF, with what it was made for and from."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

import gguf
import numpy as np

from stoker.kernels.program import Float32, Int32
from stoker.speculation.head_format import (
    ARCHITECTURE,
    KEY,
    TOKENS,
    VERSION,
    HeadIdentity,
    HeadShape,
    MedusaShape,
)

CARD = KEY + "card"  # what the head was trained on and how well it does, as text


def write_head(
    path: Path,
    *,
    identity: HeadIdentity,
    shape: HeadShape | MedusaShape,
    draft_vocabulary: Int32,
    tensors: Mapping[str, Float32],
    matrix_type: str,
    card: str,
    finer: Mapping[str, str] = MappingProxyType({}),
) -> None:
    """Write the file beside `path` first and then put it in its place, so that no half of it is ever found.

    tensors: by their names in the file; vectors stay float32, matrices become `matrix_type`, GGUF's name of
    one that the `gguf` package can make, or what `finer` says of them.
    """
    partial = path.with_name(path.name + ".partial")
    writer = gguf.GGUFWriter(partial, ARCHITECTURE)
    writer.add_uint32(KEY + "version", VERSION)
    writer.add_string(KEY + "kind", identity.kind)
    writer.add_string(KEY + "target_digest", identity.target_digest)
    writer.add_uint32(KEY + "vocabulary", identity.vocabulary)
    writer.add_uint32(KEY + "passes", identity.passes)
    writer.add_string(CARD, card)
    for name, value in shape.metadata().items():
        if isinstance(value, float):
            writer.add_float32(name, value)
        elif isinstance(value, list):
            writer.add_array(name, value)
        else:
            writer.add_uint32(name, value)
    writer.add_array(TOKENS, draft_vocabulary.tolist())
    for name, values in tensors.items():
        if values.ndim == 1:
            writer.add_tensor(name, np.ascontiguousarray(values, np.float32))
        else:
            kind = gguf.GGMLQuantizationType[finer.get(name, matrix_type)]
            packed = gguf.quants.quantize(np.ascontiguousarray(values, np.float32), kind)
            writer.add_tensor(name, packed, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    os.replace(partial, path)


def file_names(parameters: Mapping[str, Any]) -> dict[str, str]:
    """Parameters of `EagleHead` to names in the file: those of the layer are under `blk.0.`."""
    return {name: f"blk.0.{name}" if name.startswith(("attn_", "ffn_")) else name for name in parameters}
