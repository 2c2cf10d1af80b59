"""Llama 1 to 3, SmolLM, SmolLM2, Mistral: `llama` in GGUF."""

from __future__ import annotations

from stoker.kernels.program import Program
from stoker.models.config import ModelConfig
from stoker.models.layers import Ops, plain_style, pre_norm_layer, transformer

ROPE_FACTORS = "rope_freqs.weight"  # Llama 3.1's stretch of the slow pairs, one divisor per pair


def llama(config: ModelConfig) -> Program:
    """Program of a Llama: pre-norm layers, SwiGLU, rope on interleaved pairs (GGUF permutes q and k for it).

    `llama.attention.sliding_window`, where a file has it, holds for every layer, as in Mistral 7B v0.1.
    """
    return transformer(config, _layer)


def _layer(config: ModelConfig, index: int, x: str) -> Ops:
    factors = ROPE_FACTORS if config.has(ROPE_FACTORS) else None
    window = config.window.tokens if config.window is not None and config.window.covers(index) else None
    style = plain_style(config, "interleaved", rope_factors=factors, window=window)
    return pre_norm_layer(config, index, x, style)
