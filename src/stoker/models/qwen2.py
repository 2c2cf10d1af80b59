"""Qwen 2 and 2.5: `qwen2` in GGUF."""

from __future__ import annotations

from stoker.kernels.program import Program
from stoker.models.config import ModelConfig
from stoker.models.layers import Ops, plain_style, pre_norm_layer, refuse_window, transformer


def qwen2(config: ModelConfig) -> Program:
    """Program of a Qwen 2: as Llama, with biases on q, k and v and rope on the two halves of a head."""
    refuse_window(config)
    return transformer(config, _layer)


def _layer(config: ModelConfig, index: int, x: str) -> Ops:
    return pre_norm_layer(config, index, x, plain_style(config, "half", biases=True))
