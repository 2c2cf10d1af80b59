"""What a GGUF file says about a model: every number checked, then frozen.

Keys are those of the GGUF specification, under the architecture's name: `llama.block_count`, and so on.
A model is refused here, by key or tensor name, rather than computed wrongly later.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from stoker.api.errors import ModelFormatError

# Limits several times past the largest open-weight models (Llama 3.1 405B: 126 layers, width 16 384,
# feed-forward 53 248, 128 heads; contexts to 10 million). They keep a broken number from becoming a giant
# allocation.
MAX_LAYERS = 1024
MAX_WIDTH = 1 << 17
MAX_FEED_FORWARD = 1 << 20
MAX_HEADS = 1 << 11
MAX_HEAD_SIZE = 1 << 12
MAX_CONTEXT_TOKENS = 1 << 25
MAX_VOCABULARY = 1 << 24

DEFAULT_ROPE_BASE = 10000.0  # Su et al. 2021; GGUF leaves the key out for it
SUPPORTED_ROPE_SCALING = ("none", "linear")

_LAYER_NAME = re.compile(r"blk\.(0|[1-9][0-9]{0,5})\.(.+)")

# Keys that change what a model computes and that no program here expresses, with the value that means
# "not used".
_REFUSED_UNLESS: tuple[tuple[str, float], ...] = (
    ("expert_count", 0),
    ("attention.causal", 1),
    ("attention.clamp_kqv", 0),
    ("attention.max_alibi_bias", 0),
    ("attention.scale", 0),
    ("embedding_scale", 0),
    ("logit_scale", 0),
    ("residual_scale", 0),
    ("rope.scaling.attn_factor", 1),
    ("use_parallel_residual", 0),
)


class Shaped(Protocol):
    """A tensor as far as a config cares: GGUFFile's TensorInfo, or a numpy array."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Numpy order: (rows, columns), or (length,)."""
        ...


@dataclass(frozen=True, slots=True)
class SlidingWindow:
    """Which layers see only the last `tokens` positions: all but every `period`-th (all, if period is 0)."""

    tokens: int
    period: int = 0
    rope_base: float = DEFAULT_ROPE_BASE  # of the layers with the window; only Gemma 3 tells them apart

    def covers(self, layer: int) -> bool:
        """Whether layer (from 0) has the window."""
        return self.period == 0 or (layer + 1) % self.period != 0


@dataclass(frozen=True, slots=True)
class ModelConfig:
    """The numbers of one model. Shapes of tensors follow from it (`tensor_shapes`)."""

    architecture: str
    vocabulary: int  # rows of token_embd.weight
    context_tokens: int
    layers: int
    width: int
    feed_forward: int
    heads: int
    kv_heads: int
    head_size: int
    norm_eps: float
    rope_base: float = DEFAULT_ROPE_BASE
    rotary: int = 0  # columns of a head that are turned
    rope_scale: float = 1.0  # 1 / rope.scaling.factor
    window: SlidingWindow | None = None
    attention_softcap: float | None = None
    final_softcap: float | None = None
    optional_tensors: frozenset[str] = frozenset()  # of biases, output.weight, rope_freqs.weight

    def has(self, tensor: str) -> bool:
        """Whether the file has this optional tensor."""
        return tensor in self.optional_tensors


def config_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> ModelConfig:
    """Read and check the config of a model from its GGUF metadata and tensor shapes (`GGUFFile.tensors`).

    Raises ModelFormatError naming the key or tensor, its value, and what is allowed.
    """
    architecture = metadata.get("general.architecture")
    if not isinstance(architecture, str) or not architecture:
        raise ModelFormatError(
            f"general.architecture is {architecture!r}; allowed: the name of an architecture"
        )
    keys = _Keys(metadata, architecture)
    keys.refuse_unsupported()
    layers = keys.integer("block_count", 1, MAX_LAYERS)
    width = keys.integer("embedding_length", 1, MAX_WIDTH)
    heads = keys.per_layer("attention.head_count", layers, 1, MAX_HEADS)
    kv_heads = keys.per_layer("attention.head_count_kv", layers, 1, heads, default=heads)
    if heads % kv_heads:
        raise keys.wrong("attention.head_count_kv", kv_heads, f"a divisor of the {heads} heads")
    head_size = _head_size(keys, width, heads)
    config = ModelConfig(
        architecture=architecture,
        vocabulary=_vocabulary(metadata, tensors),
        context_tokens=keys.integer("context_length", 1, MAX_CONTEXT_TOKENS),
        layers=layers,
        width=width,
        feed_forward=keys.per_layer("feed_forward_length", layers, 1, MAX_FEED_FORWARD),
        heads=heads,
        kv_heads=kv_heads,
        head_size=head_size,
        norm_eps=keys.positive("attention.layer_norm_rms_epsilon", at_most=0.1),
        rope_base=keys.positive("rope.freq_base", at_most=1e12, default=DEFAULT_ROPE_BASE),
        rotary=_rotary(keys, head_size),
        rope_scale=_rope_scale(keys),
        window=_window(keys),
        attention_softcap=keys.optional_positive("attn_logit_softcapping"),
        final_softcap=keys.optional_positive("final_logit_softcapping"),
        optional_tensors=frozenset(name for name in tensors if _is_optional(name)),
    )
    check_tensors(config, tensors)
    return config


def tensor_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Shapes that tensors must have, by name; per-layer tensors under their name after `blk.N.`."""
    query, kv, width = config.heads * config.head_size, config.kv_heads * config.head_size, config.width
    per_head = (config.head_size,)
    return {
        "token_embd.weight": (config.vocabulary, width),
        "output.weight": (config.vocabulary, width),
        "output_norm.weight": (width,),
        "rope_freqs.weight": (config.rotary // 2,),
        "attn_norm.weight": (width,),
        "attn_q.weight": (query, width),
        "attn_k.weight": (kv, width),
        "attn_v.weight": (kv, width),
        "attn_output.weight": (width, query),
        "attn_q.bias": (query,),
        "attn_k.bias": (kv,),
        "attn_v.bias": (kv,),
        "attn_output.bias": (width,),
        "attn_q_norm.weight": per_head,
        "attn_k_norm.weight": per_head,
        "post_attention_norm.weight": (width,),
        "ffn_norm.weight": (width,),
        "ffn_gate.weight": (config.feed_forward, width),
        "ffn_up.weight": (config.feed_forward, width),
        "ffn_down.weight": (width, config.feed_forward),
        "ffn_gate.bias": (config.feed_forward,),
        "ffn_up.bias": (config.feed_forward,),
        "ffn_down.bias": (width,),
        "post_ffw_norm.weight": (width,),
    }


def check_tensors(config: ModelConfig, tensors: Mapping[str, Shaped]) -> None:
    """Raise ModelFormatError for the first tensor that is unknown, or whose shape does not fit the config."""
    shapes = tensor_shapes(config)
    for name, tensor in tensors.items():
        layer, kind = _split_name(name)
        expected = shapes.get(kind)
        if expected is None:
            raise ModelFormatError(
                f"tensor {name!r} {tuple(tensor.shape)} is not part of any model known here",
                hint="computing without it would give wrong answers",
            )
        if layer is not None and layer >= config.layers:
            raise ModelFormatError(
                f"tensor {name!r}: {config.architecture}.block_count is {config.layers}, "
                f"so layers are 0 to {config.layers - 1}"
            )
        if tuple(tensor.shape) != expected:
            raise ModelFormatError(
                f"tensor {name!r} has shape {tuple(tensor.shape)} (rows, columns); "
                f"by the metadata of {config.architecture} it must be {expected}"
            )


def _split_name(name: str) -> tuple[int | None, str]:
    """("blk.3.attn_q.weight") -> (3, "attn_q.weight"); names without a layer -> (None, name)."""
    match = _LAYER_NAME.fullmatch(name)
    return (int(match[1]), match[2]) if match else (None, name)


def _is_optional(name: str) -> bool:
    return name.endswith(".bias") or name in ("output.weight", "rope_freqs.weight")


def _head_size(keys: _Keys, width: int, heads: int) -> int:
    if keys.missing("attention.key_length") and width % heads:
        raise keys.wrong(
            "attention.head_count", heads, f"a divisor of embedding_length {width}, or a key_length"
        )
    head_size = keys.integer("attention.key_length", 2, MAX_HEAD_SIZE, default=width // heads)
    if head_size % 2:
        raise keys.wrong("attention.key_length", head_size, "an even number, as rotary embedding turns pairs")
    value_length = keys.integer("attention.value_length", 1, MAX_HEAD_SIZE, default=head_size)
    if value_length != head_size:
        raise keys.wrong("attention.value_length", value_length, f"the key length, {head_size}")
    return head_size


def _rotary(keys: _Keys, head_size: int) -> int:
    rotary = keys.integer("rope.dimension_count", 2, head_size, default=head_size)
    if rotary % 2:
        raise keys.wrong("rope.dimension_count", rotary, f"an even number up to {head_size}")
    return rotary


def _rope_scale(keys: _Keys) -> float:
    """1 / factor. Files of 2023 say `rope.scale_linear`; a factor without a type means linear."""
    kind = keys.raw("rope.scaling.type", "linear")
    if kind not in SUPPORTED_ROPE_SCALING:
        raise keys.wrong("rope.scaling.type", kind, " or ".join(SUPPORTED_ROPE_SCALING))
    if kind == "none":
        return 1.0
    key = "rope.scale_linear" if keys.missing("rope.scaling.factor") else "rope.scaling.factor"
    return 1.0 / keys.positive(key, at_most=1e6, default=1.0)


def _window(keys: _Keys) -> SlidingWindow | None:
    tokens = keys.integer("attention.sliding_window", 0, MAX_CONTEXT_TOKENS, default=0)
    if tokens == 0:
        return None
    return SlidingWindow(
        tokens=tokens,
        period=keys.integer("attention.sliding_window_pattern", 0, MAX_LAYERS, default=0),
        rope_base=keys.positive("rope.freq_base_swa", at_most=1e12, default=DEFAULT_ROPE_BASE),
    )


def _vocabulary(metadata: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> int:
    """Rows of the embedding table: the only count that bounds which ids can be looked up."""
    table = tensors.get("token_embd.weight")
    if table is None:
        raise ModelFormatError("tensor 'token_embd.weight' is missing")
    if len(table.shape) != 2 or not 1 <= table.shape[0] <= MAX_VOCABULARY:
        raise ModelFormatError(
            f"tensor 'token_embd.weight' has shape {tuple(table.shape)}; "
            f"allowed: (vocabulary from 1 to {MAX_VOCABULARY}, embedding_length)"
        )
    rows = int(table.shape[0])
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is not None and len(tokens) > rows:
        raise ModelFormatError(
            f"tokenizer.ggml.tokens has {len(tokens)} tokens, but 'token_embd.weight' has only {rows} rows"
        )
    return rows


class _Keys:
    """Checked reading of one architecture's keys."""

    def __init__(self, metadata: Mapping[str, Any], architecture: str) -> None:
        self._metadata = metadata
        self._architecture = architecture

    def raw(self, key: str, default: object = None) -> Any:
        return self._metadata.get(f"{self._architecture}.{key}", default)

    def missing(self, key: str) -> bool:
        return f"{self._architecture}.{key}" not in self._metadata

    def wrong(self, key: str, value: object, allowed: str) -> ModelFormatError:
        shown = repr(value)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        return ModelFormatError(f"{self._architecture}.{key} is {shown}; allowed: {allowed}")

    def refuse_unsupported(self) -> None:
        for key, unused in _REFUSED_UNLESS:
            value = self.raw(key, unused)
            if not isinstance(value, (bool, int, float)) or value != unused:
                raise self.wrong(key, value, f"{unused}, as the feature is not supported")

    def integer(self, key: str, low: int, high: int, *, default: int | None = None) -> int:
        return self._checked_integer(key, self._required(key, default), low, high)

    def per_layer(self, key: str, layers: int, low: int, high: int, *, default: int | None = None) -> int:
        """A number, or one number per layer when all are equal."""
        value = self._required(key, default)
        if isinstance(value, (bool, int, float, str)):
            return self._checked_integer(key, value, low, high)
        if not isinstance(value, Sequence) or len(value) != layers:
            raise self.wrong(key, value, f"one number, or one for each of the {layers} layers")
        values = list(value)
        if any(other != values[0] for other in values):
            raise self.wrong(key, values, "the same number for every layer")
        return self._checked_integer(key, values[0], low, high)

    def positive(self, key: str, *, at_most: float, default: float | None = None) -> float:
        value = self._required(key, default)
        if isinstance(value, bool) or not isinstance(value, (int, float)):
            raise self.wrong(key, value, "a number")
        if not 0 < value <= at_most:  # false for NaN too
            raise self.wrong(key, value, f"above 0, up to {at_most:g}")
        return float(value)

    def optional_positive(self, key: str) -> float | None:
        """None when missing or 0."""
        value = self.raw(key, 0)
        return None if value == 0 and not isinstance(value, bool) else self.positive(key, at_most=1e6)

    def _required(self, key: str, default: object) -> Any:
        value = self.raw(key, default)
        if value is None:
            raise ModelFormatError(f"{self._architecture}.{key} is missing from the metadata")
        return value

    def _checked_integer(self, key: str, value: object, low: int, high: int) -> int:
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            raise self.wrong(key, value, f"a whole number from {low} to {high}")
        return value
