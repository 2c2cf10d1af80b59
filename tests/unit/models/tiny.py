"""Metadata and tensor shapes of a llama of 2 layers, width 24, for tests that need no weights."""

from __future__ import annotations

from typing import Any


def llama_metadata() -> dict[str, Any]:
    """Every key that a plain llama file has."""
    return {
        "general.architecture": "llama",
        "llama.block_count": 2,
        "llama.context_length": 128,
        "llama.embedding_length": 24,
        "llama.feed_forward_length": 40,
        "llama.attention.head_count": 6,
        "llama.attention.head_count_kv": 2,
        "llama.attention.layer_norm_rms_epsilon": 1e-5,
        "llama.rope.freq_base": 10000.0,
        "llama.rope.dimension_count": 4,
    }


def llama_shapes(*, layers: int = 2, kv_heads: int = 2) -> dict[str, tuple[int, ...]]:
    """Shapes, rows first, of all its tensors; the output is tied."""
    width, feed_forward, kv = 24, 40, kv_heads * 4
    shapes: dict[str, tuple[int, ...]] = {"token_embd.weight": (50, width), "output_norm.weight": (width,)}
    for layer in range(layers):
        shapes |= {
            f"blk.{layer}.{name}": shape
            for name, shape in {
                "attn_norm.weight": (width,),
                "attn_q.weight": (width, width),
                "attn_k.weight": (kv, width),
                "attn_v.weight": (kv, width),
                "attn_output.weight": (width, width),
                "ffn_norm.weight": (width,),
                "ffn_gate.weight": (feed_forward, width),
                "ffn_up.weight": (feed_forward, width),
                "ffn_down.weight": (width, feed_forward),
            }.items()
        }
    return shapes
