"""Qwen 3, dense: `qwen3` in GGUF."""

from __future__ import annotations

from stoker.kernels.program import Program
from stoker.models.config import ModelConfig
from stoker.models.layers import Ops, plain_style, pre_norm_layer, refuse_window, transformer


def qwen3(config: ModelConfig) -> Program:
    """Program of a Qwen 3: as Qwen 2, with an RMS norm on each head of q and k in place of the biases."""
    refuse_window(config)
    return transformer(config, _layer)


def _layer(config: ModelConfig, index: int, x: str) -> Ops:
    return pre_norm_layer(config, index, x, plain_style(config, "half", head_norms=True))
