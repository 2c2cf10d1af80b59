"""Random draft heads for tiny models, written as `stoker train-draft` writes them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.numerics.native_models import open_native

from stoker.models.config import ModelConfig
from stoker.speculation.head import DraftHead, tensor_shapes
from stoker.speculation.head_file import load_head
from stoker.speculation.head_format import HeadIdentity, HeadShape, MedusaShape
from stoker.speculation.medusa_head import MedusaHead, medusa_tensor_shapes
from stoker.training.export import write_head
from stoker.weights.gguf import GGUFFile

DIGEST = "0123456789abcdef" * 4
WINDOW = 48


def shape_for(config: ModelConfig, layers: tuple[int, ...] = ()) -> HeadShape:
    return HeadShape(
        width=config.width,
        feed_forward=config.feed_forward,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        norm_eps=config.norm_eps,
        rope_base=config.rope_base,
        window=WINDOW,
        layers=layers,
    )


def medusa_shape_for(config: ModelConfig) -> MedusaShape:
    return MedusaShape(width=config.width, inner=32, heads=3)


def random_tensors(shape: HeadShape | MedusaShape, seed: int = 0) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(seed)
    tensors = {}
    sizes = medusa_tensor_shapes(shape) if isinstance(shape, MedusaShape) else tensor_shapes(shape)
    for name, size in sizes.items():
        values = generator.standard_normal(size).astype(np.float32)
        tensors[name] = values * 1.5 * size[-1] ** -0.5 if len(size) == 2 else 1 + 0.1 * values
    return tensors


def write_random_head(path: Path, config: ModelConfig, **changes: Any) -> Path:
    """`changes`: the layers that it reads, other arguments of `write_head`, and fields of its identity."""
    kind, layers = changes.get("kind"), changes.pop("layers", ())
    shape = medusa_shape_for(config) if kind == "medusa" else shape_for(config, layers)
    identity = {
        name: changes.pop(name, value)
        for name, value in {
            "kind": "eagle",
            "target_digest": DIGEST,
            "vocabulary": config.vocabulary,
            "passes": 1 if kind == "medusa" else 4,
        }.items()
    }
    arguments: dict[str, Any] = {
        "identity": HeadIdentity(**identity),
        "shape": shape,
        "draft_vocabulary": np.arange(0, 128, 2, dtype=np.int32),
        "tensors": random_tensors(shape),
        "matrix_type": "Q8_0",
        "card": "random numbers",
    }
    write_head(path, **arguments | changes)
    return path


def open_head(path: Path, target: Path, *, threads: int = 1, digest: str = DIGEST) -> DraftHead | MedusaHead:
    """The head bound to a target that is loaded for it."""
    interpreter = open_native(target, threads=threads)
    assert interpreter.embedding is not None
    with GGUFFile.open(target) as file:
        return load_head(
            path,
            file,
            interpreter.embedding,
            interpreter.pool,
            target_digest=digest,
            context_tokens=interpreter.context_tokens,
        )
