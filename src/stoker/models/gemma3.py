"""Gemma 3, text: `gemma3` in GGUF."""

from __future__ import annotations

from dataclasses import replace

from stoker.api.errors import ModelFormatError
from stoker.kernels.program import Add, Program
from stoker.models.config import ModelConfig
from stoker.models.layers import AttentionStyle, Ops, attention, feed_forward, norm, transformer

DEFAULT_PERIOD = 6  # five layers with the window, then one without; files before 2025-11 do not say it
LAYERS_OF_27B = 62  # the one size whose logits are scaled by width / heads; metadata does not say so


def gemma3(config: ModelConfig) -> Program:
    """Program of a Gemma 3: four norms to a layer, GeGLU, head norms, a window on five layers of six.

    Norm weights in GGUF already hold Gemma's "+ 1". Layers with the window turn by their own rope base and
    without linear scaling. The embedding is scaled by sqrt(width), here in float32: a bfloat16 run of
    the same model rounds that factor (to 25.25 from 25.298 at width 640) and differs.
    """
    if config.window is None:
        raise ModelFormatError(
            "gemma3.attention.sliding_window is missing or 0; allowed: the window's positions, 1 or more"
        )
    if config.window.period == 0:
        config = replace(config, window=replace(config.window, period=DEFAULT_PERIOD))
    return transformer(config, _layer, embedding_scale=config.width**0.5)


def _style(config: ModelConfig, index: int) -> AttentionStyle:
    per_head = config.width / config.heads if config.layers == LAYERS_OF_27B else config.head_size
    style = AttentionStyle(
        scale=per_head**-0.5,
        pairing="half",
        rope_base=config.rope_base,
        rope_scale=config.rope_scale,
        head_norms=True,
    )
    if config.window is None or not config.window.covers(index):
        return style
    return replace(style, window=config.window.tokens, rope_base=config.window.rope_base, rope_scale=1.0)


def _layer(config: ModelConfig, index: int, x: str) -> Ops:
    attention_norm = norm(config, index, x, "attn_norm")
    attention_ops = attention(config, index, attention_norm.out, _style(config, index))
    post_attention = norm(config, index, attention_ops[-1].out, "post_attention_norm")
    middle = Add(f"{index}.attention_residual", x, post_attention.out)
    ffn_norm = norm(config, index, middle.out, "ffn_norm")
    ffn_ops = feed_forward(config, index, ffn_norm.out, "gelu_tanh")
    post_ffn = norm(config, index, ffn_ops[-1].out, "post_ffw_norm")
    result = Add(f"{index}.residual", middle.out, post_ffn.out)
    return (attention_norm, *attention_ops, post_attention, middle, ffn_norm, *ffn_ops, post_ffn, result)
