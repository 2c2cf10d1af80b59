"""What the tests of the native core share: small random models in any weight type, and runs of them.

A `TinyModel` is written as a GGUF file with the gguf package's writer, so that a test goes the way a user's
file goes: open, check, pack, lower, run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import numpy as np
from tests.numerics.reference_models import blocks_for, make_batch

from stoker.kernels.interpreter import Interpreter
from stoker.kernels.native import KvType, NativeInterpreter
from stoker.models.config import ModelConfig, tensor_shapes
from stoker.models.load import load_native
from stoker.models.registry import build_program
from stoker.weights.gguf import GGUFFile

K_QUANTS = ("Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K")
# Byte offsets of the float16 scales of a block, and how large the quants times the sub-scales get: random
# blocks get scales that bring their weights to the size of a trained model's.
_K_SCALES: Mapping[str, tuple[tuple[int, float], ...]] = {
    "Q2_K": ((80, 3 * 15), (82, 15)),
    "Q3_K": ((108, 4 * 32),),
    "Q4_K": ((0, 15 * 63), (2, 63)),
    "Q5_K": ((0, 31 * 63), (2, 63)),
    "Q6_K": ((208, 32 * 128),),
}


@dataclass(frozen=True)
class TinyModel:
    """One random model. `weight_type` is that of every matrix; norms, biases and factors are F32."""

    name: str
    config: ModelConfig
    weight_type: str = "F32"
    table_type: str | None = None  # of token_embd.weight, if it differs
    rope_factors: bool = False
    seed: int = 0
    extra: dict[str, Any] = field(default_factory=dict)  # metadata beyond what the config says

    def write(self, folder: Path) -> Path:
        """The file, as <folder>/<name>.gguf."""
        path = folder / f"{self.name}.gguf"
        generator = np.random.default_rng(self.seed)
        writer = gguf.GGUFWriter(path, self.config.architecture)
        _add_metadata(writer, self.config, self.extra)
        shapes = tensor_shapes(self.config)
        for name in build_program(self.config).weights:
            shape = shapes[name.split(".", 2)[2] if name.startswith("blk.") else name]
            kind = (self.table_type or self.weight_type) if name == "token_embd.weight" else self.weight_type
            _add_tensor(writer, name, shape, kind if len(shape) == 2 else "F32", generator)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return path


def tiny_config(architecture: str, **changes: Any) -> ModelConfig:
    """A config of two layers with an odd vocabulary; `changes` replace its fields."""
    fields: dict[str, Any] = {
        "architecture": architecture,
        "vocabulary": 131,  # prime: the last panel of 16 rows has 3
        "context_tokens": 2048,
        "layers": 2,
        "width": 64,
        "feed_forward": 96,
        "heads": 4,
        "kv_heads": 2,
        "head_size": 16,
        "norm_eps": 1e-5,
    }
    fields |= changes
    fields.setdefault("rotary", fields["head_size"])
    return ModelConfig(**fields)


def _add_metadata(writer: gguf.GGUFWriter, config: ModelConfig, extra: Mapping[str, Any]) -> None:
    writer.add_context_length(config.context_tokens)
    writer.add_embedding_length(config.width)
    writer.add_block_count(config.layers)
    writer.add_feed_forward_length(config.feed_forward)
    writer.add_head_count(config.heads)
    writer.add_head_count_kv(config.kv_heads)
    writer.add_key_length(config.head_size)
    writer.add_value_length(config.head_size)
    writer.add_rope_dimension_count(config.rotary)
    writer.add_rope_freq_base(config.rope_base)
    writer.add_layer_norm_rms_eps(config.norm_eps)
    metadata = dict(extra)
    if config.rope_scale != 1:
        metadata |= {"rope.scaling.type": "linear", "rope.scaling.factor": 1 / config.rope_scale}
    if config.window is not None:
        metadata["attention.sliding_window"] = config.window.tokens
        if config.window.period:
            metadata["attention.sliding_window_pattern"] = config.window.period
    if config.attention_softcap is not None:
        metadata["attn_logit_softcapping"] = config.attention_softcap
    if config.final_softcap is not None:
        metadata["final_logit_softcapping"] = config.final_softcap
    for key, value in metadata.items():
        add = {str: writer.add_string, int: writer.add_uint32, float: writer.add_float32}[type(value)]
        add(f"{config.architecture}.{key}", value)


def _add_tensor(
    writer: gguf.GGUFWriter, name: str, shape: tuple[int, ...], kind: str, generator: np.random.Generator
) -> None:
    """Random values of a size that makes attention choose and logits differ; norms around 1, some larger."""
    if kind in K_QUANTS:
        raw = random_k_blocks(kind, *shape, generator)
        writer.add_tensor(name, raw, raw_dtype=gguf.GGMLQuantizationType[kind])
        return
    values = generator.standard_normal(shape).astype(np.float32)
    if name == "rope_freqs.weight":
        values = np.linspace(1, 8, shape[0], dtype=np.float32)
    elif name.endswith("norm.weight"):
        values = 1 + np.float32(0.3) * values
        values[:: max(1, shape[0] // 2)] *= 8  # channels that stand out, as trained models have them
    elif len(shape) == 2 and name != "token_embd.weight":
        values *= np.float32(1.5 * shape[1] ** -0.5)
    elif len(shape) == 1:
        values *= np.float32(0.3)
    if kind == "F32":
        writer.add_tensor(name, values)
    else:
        quantised = gguf.GGMLQuantizationType[kind]
        writer.add_tensor(name, gguf.quants.quantize(values, quantised), raw_dtype=quantised)


def random_k_blocks(kind: str, rows: int, columns: int, generator: np.random.Generator) -> np.ndarray:
    """Any quants and sub-scales (the gguf package cannot quantise K types), fitting block scales; uint8."""
    _, block_bytes = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    blocks = generator.integers(0, 256, (rows, columns // 256, block_bytes), np.uint8)
    for offset, largest in _K_SCALES[kind]:
        size = 3 * columns**-0.5 / largest
        scales = (size * generator.uniform(0.7, 1.0, blocks.shape[:2])).astype(np.float16)
        blocks[:, :, offset : offset + 2] = scales[:, :, None].view(np.uint8)
    return blocks.reshape(rows, -1)


def open_native(
    path: Path,
    kv_type: KvType = "int8",
    *,
    threads: int = 1,
    batch_tokens: int = 1100,
    draft_layers: tuple[int, ...] = (),
) -> NativeInterpreter:
    """The model of a file. The KV cap is address space; what a test does not write costs nothing."""
    with GGUFFile.open(path) as file:
        return load_native(
            file,
            threads=threads,
            kv_bytes=1 << 28,
            batch_tokens=batch_tokens,
            kv_type=kv_type,
            draft_layers=draft_layers,
        )


@dataclass
class Story:
    """One sequence of a test: its ids, where its blocks lie, and how much of it has been computed."""

    token_ids: Sequence[int]
    blocks: Sequence[int]
    done: int = 0

    def next(self, count: int) -> tuple[Sequence[int], int, Sequence[int]]:
        """The entry of `make_batch` for its next `count` tokens, which then count as computed."""
        start, self.done = self.done, self.done + count
        return self.token_ids[start : self.done], start, self.blocks[: blocks_for(self.done)]


def in_chunks(total: int, size: int) -> list[int]:
    """`total` as chunks of `size` and a rest."""
    return [size] * (total // size) + ([total % size] if total % size else [])


def chunked_logits(
    interpreter: Interpreter,
    token_ids: Sequence[int],
    chunks: Sequence[int],
    blocks: Sequence[int] | None = None,
) -> np.ndarray:
    """Logits of every position, float32 [T, vocabulary], computed alone and in these chunks."""
    story = Story(token_ids, range(blocks_for(len(token_ids))) if blocks is None else blocks)
    rows = [interpreter.run(make_batch([story.next(count)])).copy() for count in chunks]
    return np.concatenate(rows)


def assert_same_bits(actual: np.ndarray, expected: np.ndarray) -> None:
    """Equal as bits, so that -0 differs from 0 and a NaN equals itself only."""
    assert actual.dtype == expected.dtype == np.float32
    assert actual.shape == expected.shape
    if not np.array_equal(
        np.ascontiguousarray(actual).view(np.uint32), np.ascontiguousarray(expected).view(np.uint32)
    ):
        rows = np.flatnonzero((actual.view(np.uint32) != expected.view(np.uint32)).any(axis=1))
        raise AssertionError(
            f"{len(rows)} of {len(actual)} rows differ, the first is {rows[0]}; "
            f"largest difference {np.nanmax(np.abs(actual - expected))}"
        )


def assert_informative(logits: np.ndarray) -> None:
    """Finite, spread out and different from row to row: equal bits of anything else would prove nothing."""
    assert np.isfinite(logits).all()
    assert logits.std() > 0.1
    assert len(np.unique(logits, axis=0)) == len(logits)
