"""The pieces that all architectures share, as functions from a config to ops.

Names of activations: `{layer}.{what}`; weights have their GGUF names. A piece takes the name of its
input and returns ops, the last of which writes the piece's output.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

from stoker.api.errors import ModelFormatError
from stoker.kernels.program import (
    Add,
    Attention,
    Embed,
    GatedActivation,
    KvLayer,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    SelectRows,
    Softcap,
)
from stoker.models.config import ModelConfig

Ops = tuple[Op, ...]
Layer = Callable[[ModelConfig, int, str], Ops]  # (config, layer index, name of its input) -> ops


@dataclass(frozen=True, slots=True)
class AttentionStyle:
    """How one layer's attention differs from the plain kind."""

    scale: float  # of the logits
    pairing: Literal["interleaved", "half"]
    rope_base: float
    rope_scale: float = 1.0
    rope_factors: str | None = None
    window: int | None = None
    head_norms: bool = False  # RMS norm of each head of q and k before rope
    biases: bool = False  # q, k and v must have a bias; elsewhere it is added where the file has one


def transformer(config: ModelConfig, layer: Layer, *, embedding_scale: float = 1.0) -> Program:
    """Embedding, layers, final norm, output rows (those of the embedding if there is no output.weight)."""
    embed = Embed("embedding", "token_embd.weight", embedding_scale)
    ops: list[Op] = [embed]
    for index in range(config.layers):
        ops += layer(config, index, ops[-1].out)
    output = "output.weight" if config.has("output.weight") else "token_embd.weight"
    result = ops[-1].out
    ops += [
        # Rows are chosen before the norm, so that only wanted ones are normed and multiplied.
        SelectRows("hidden_selected", result, "hidden"),
        RmsNorm("hidden", "hidden_selected", "output_norm.weight", config.norm_eps),
        SelectRows("selected", result),
        RmsNorm("final_norm", "selected", "output_norm.weight", config.norm_eps),
    ]
    if config.final_softcap is None:
        ops.append(Linear("logits", "final_norm", output))
    else:
        ops.append(Linear("uncapped_logits", "final_norm", output))
        ops.append(Softcap("logits", "uncapped_logits", config.final_softcap))
    return Program(
        ops=tuple(ops),
        kv_layers=tuple(
            KvLayer(op.kv_heads, op.head_size, op.window) for op in ops if isinstance(op, Attention)
        ),
        vocabulary=config.vocabulary,
        context_tokens=config.context_tokens,
        architecture=config.architecture,
        hidden="hidden",
    )


def with_draft_states(program: Program, layers: tuple[int, ...]) -> Program:
    """The same program, which also gives what goes into these layers' attention, normed, as `draft_states`.

    Raises ModelFormatError for a layer that there is not.
    """
    ops = list(program.ops)
    selected: list[Op] = []
    for layer in layers:
        place = next((i for i, op in enumerate(ops) if op.out == f"{layer}.attn_norm"), None)
        if place is None:
            raise ModelFormatError(
                f"draft states of layer {layer} are wanted; allowed: 0 to {len(program.kv_layers) - 1}"
            )
        normed = ops[place]
        assert isinstance(normed, RmsNorm)
        # A norm of their own: one that is read as floats too has no columns kept out of its int8 groups, so
        # that the layer itself would be given other bits, and answers would depend on the head.
        ops.insert(place + 1, replace(normed, out=f"draft_norm.{layer}"))
        selected.append(SelectRows(f"draft_state.{layer}", f"draft_norm.{layer}", "hidden"))
    first = next(i for i, op in enumerate(ops) if isinstance(op, SelectRows))
    ops[first:first] = selected
    return replace(program, ops=tuple(ops), draft_states=tuple(op.out for op in selected))


def norm(config: ModelConfig, layer: int, x: str, kind: str) -> RmsNorm:
    """RMS norm over the row with weight `blk.N.{kind}.weight`."""
    return RmsNorm(f"{layer}.{kind}", x, f"blk.{layer}.{kind}.weight", config.norm_eps)


def linear(config: ModelConfig, layer: int, x: str, kind: str, *, biased: bool = False) -> Linear:
    """Product with `blk.N.{kind}.weight`, plus `blk.N.{kind}.bias` if `biased` or if the file has it."""
    bias = f"blk.{layer}.{kind}.bias"
    weight = f"blk.{layer}.{kind}.weight"
    return Linear(f"{layer}.{kind}", x, weight, bias if biased or config.has(bias) else None)


def attention(config: ModelConfig, layer: int, x: str, style: AttentionStyle) -> Ops:
    """Projections, optional head norms, rope, attention, output projection; x is already normed."""
    query_ops = _query_or_key(config, layer, x, "q", style)
    key_ops = _query_or_key(config, layer, x, "k", style)
    value = linear(config, layer, x, "attn_v", biased=style.biases)
    mixed = Attention(
        out=f"{layer}.attention",
        q=query_ops[-1].out,
        k=key_ops[-1].out,
        v=value.out,
        layer=layer,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        scale=style.scale,
        window=style.window,
        softcap=config.attention_softcap,
    )
    return (*query_ops, *key_ops, value, mixed, linear(config, layer, mixed.out, "attn_output"))


def _query_or_key(config: ModelConfig, layer: int, x: str, which: str, style: AttentionStyle) -> Ops:
    ops: list[Op] = [linear(config, layer, x, f"attn_{which}", biased=style.biases)]
    if style.head_norms:
        kind = f"attn_{which}_norm"
        weight = f"blk.{layer}.{kind}.weight"
        ops.append(RmsNorm(f"{layer}.{kind}", ops[-1].out, weight, config.norm_eps, config.head_size))
    turned = Rope(
        out=f"{layer}.{which}_rope",
        x=ops[-1].out,
        head_size=config.head_size,
        rotary=config.rotary,
        base=style.rope_base,
        pairing=style.pairing,
        linear_scale=style.rope_scale,
        factors=style.rope_factors,
    )
    return (*ops, turned)


def feed_forward(config: ModelConfig, layer: int, x: str, activation: Literal["silu", "gelu_tanh"]) -> Ops:
    """down(activation(gate(x)) · up(x)); x is already normed."""
    gate = linear(config, layer, x, "ffn_gate")
    up = linear(config, layer, x, "ffn_up")
    gated = GatedActivation(f"{layer}.ffn_gated", gate.out, up.out, activation)
    return (gate, up, gated, linear(config, layer, gated.out, "ffn_down"))


def pre_norm_layer(config: ModelConfig, layer: int, x: str, style: AttentionStyle) -> Ops:
    """x + attention(norm(x)), then + feed_forward(norm(that)), SwiGLU: Llama, Qwen."""
    attention_norm = norm(config, layer, x, "attn_norm")
    attention_ops = attention(config, layer, attention_norm.out, style)
    middle = Add(f"{layer}.attention_residual", x, attention_ops[-1].out)
    ffn_norm = norm(config, layer, middle.out, "ffn_norm")
    ffn_ops = feed_forward(config, layer, ffn_norm.out, "silu")
    result = Add(f"{layer}.residual", middle.out, ffn_ops[-1].out)
    return (attention_norm, *attention_ops, middle, ffn_norm, *ffn_ops, result)


def plain_style(
    config: ModelConfig,
    pairing: Literal["interleaved", "half"],
    *,
    rope_factors: str | None = None,
    window: int | None = None,
    head_norms: bool = False,
    biases: bool = False,
) -> AttentionStyle:
    """The same rope in every layer and logits scaled by 1/sqrt(head_size)."""
    return AttentionStyle(
        scale=config.head_size**-0.5,
        pairing=pairing,
        rope_base=config.rope_base,
        rope_scale=config.rope_scale,
        rope_factors=rope_factors,
        window=window,
        head_norms=head_norms,
        biases=biases,
    )


def refuse_window(config: ModelConfig) -> None:
    """Raise ModelFormatError for a window shorter than the context: nothing says which layers have it."""
    if config.window is not None and config.window.tokens < config.context_tokens:
        raise ModelFormatError(
            f"{config.architecture}.attention.sliding_window is {config.window.tokens}; allowed: none, or at "
            f"least the context of {config.context_tokens}, as GGUF does not say which layers have it"
        )
