"""Reading a config: what is right is kept, what is wrong is named."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.models.tiny import llama_metadata, llama_shapes

from stoker.api.errors import ModelFormatError
from stoker.models import ModelConfig, SlidingWindow, config_from_gguf

KEYS = sorted(key.removeprefix("llama.") for key in llama_metadata() if key.startswith("llama."))


def read(metadata: dict[str, Any], shapes: dict[str, tuple[int, ...]] | None = None) -> ModelConfig:
    """The config of the tiny llama with these changes to its metadata."""
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in (shapes or llama_shapes()).items()}
    return config_from_gguf(llama_metadata() | metadata, tensors)


def test_numbers_of_the_file() -> None:
    config = read({})
    assert config == ModelConfig(
        architecture="llama",
        vocabulary=50,
        context_tokens=128,
        layers=2,
        width=24,
        feed_forward=40,
        heads=6,
        kv_heads=2,
        head_size=4,
        norm_eps=1e-5,
        rope_base=10000.0,
        rotary=4,
    )


def test_defaults() -> None:
    metadata = llama_metadata()
    for key in ("llama.rope.freq_base", "llama.rope.dimension_count"):
        del metadata[key]
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in llama_shapes().items()}
    config = config_from_gguf(metadata, tensors)
    assert (config.rope_base, config.rotary, config.rope_scale) == (10000.0, config.head_size, 1.0)
    assert config.window is None


def test_kv_heads_default_to_heads() -> None:
    metadata = llama_metadata()
    del metadata["llama.attention.head_count_kv"]
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in llama_shapes(kv_heads=6).items()}
    assert config_from_gguf(metadata, tensors).kv_heads == 6


@pytest.mark.parametrize(
    ("metadata", "scale"),
    [
        ({"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}, 0.25),
        ({"llama.rope.scaling.factor": 4.0}, 0.25),
        ({"llama.rope.scale_linear": 2.0}, 0.5),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, 1.0),
    ],
)
def test_rope_scaling(metadata: dict[str, Any], scale: float) -> None:
    assert read(metadata).rope_scale == scale


def test_window_and_softcaps() -> None:
    config = read({"llama.attention.sliding_window": 8, "llama.final_logit_softcapping": 30.0})
    assert config.window == SlidingWindow(8)
    assert (config.final_softcap, config.attention_softcap) == (30.0, None)
    assert read({"llama.attention.sliding_window": 0}).window is None
    assert [SlidingWindow(8, period=3).covers(layer) for layer in range(6)] == [True, True, False] * 2
    assert all(SlidingWindow(8).covers(layer) for layer in range(6))


def test_arrays_with_one_number_per_layer() -> None:
    assert read({"llama.attention.head_count_kv": [2, 2], "llama.feed_forward_length": [40, 40]}) == read({})
    with pytest.raises(ModelFormatError, match=r"head_count_kv is \[2, 1\]; allowed: the same number"):
        read({"llama.attention.head_count_kv": [2, 1]})
    with pytest.raises(ModelFormatError, match=r"head_count_kv is \[2\]; allowed: .* each of the 2 layers"):
        read({"llama.attention.head_count_kv": [2]})
    with pytest.raises(ModelFormatError, match="head_count_kv is 'x'; allowed: a whole number from 1 to 6"):
        read({"llama.attention.head_count_kv": ["x", "x"]})


@pytest.mark.parametrize("key", [key for key in KEYS if not key.startswith("rope.")])
def test_missing_keys_are_named(key: str) -> None:
    metadata = llama_metadata()
    del metadata[f"llama.{key}"]
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in llama_shapes().items()}
    # head_count_kv has a default, with which the shapes do not agree
    said = "attn_k.weight" if key == "attention.head_count_kv" else rf"llama\.{key} is missing"
    with pytest.raises(ModelFormatError, match=said):
        config_from_gguf(metadata, tensors)


@pytest.mark.parametrize("key", KEYS)
@pytest.mark.parametrize("value", [0, -1, 2**40, "many", True, math.nan, math.inf, [], None, 10**400])
def test_absurd_values_are_named(key: str, value: object) -> None:
    with pytest.raises(ModelFormatError, match=rf"llama\.{key} is "):
        read({f"llama.{key}": value})


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        ({"general.architecture": None}, "general.architecture is None"),
        ({"llama.attention.head_count_kv": 4}, "head_count_kv is 4; allowed: a divisor of the 6 heads"),
        ({"llama.attention.head_count_kv": 7}, "head_count_kv is 7; allowed: a whole number from 1 to 6"),
        (
            {"llama.attention.head_count": 5, "llama.attention.head_count_kv": 5},
            "head_count is 5; allowed: a divisor of embedding_length 24",
        ),
        ({"llama.attention.key_length": 5}, "key_length is 5; allowed: an even number"),
        ({"llama.attention.head_count": 8, "llama.attention.head_count_kv": 2}, "key_length is 3; .* even"),
        ({"llama.attention.value_length": 8}, "value_length is 8; allowed: the key length, 4"),
        ({"llama.rope.dimension_count": 3}, "dimension_count is 3; allowed: an even number up to 4"),
        ({"llama.rope.dimension_count": 6}, "dimension_count is 6; allowed: a whole number from 2 to 4"),
        ({"llama.rope.scaling.type": "yarn"}, "scaling.type is 'yarn'; allowed: none or linear"),
        ({"llama.rope.scaling.type": "longrope"}, "'longrope'"),
        ({"llama.rope.scaling.factor": 0}, "scaling.factor is 0; allowed: above 0"),
        ({"llama.rope.scaling.attn_factor": 1.2}, "attn_factor is 1.2"),
        ({"llama.expert_count": 8}, "expert_count is 8"),
        ({"llama.attention.causal": False}, "causal is False"),
        ({"llama.attention.sliding_window": -4}, "sliding_window is -4"),
        ({"llama.attention.sliding_window": [True, False]}, "sliding_window is "),
        ({"llama.attn_logit_softcapping": -1.0}, "attn_logit_softcapping is -1.0"),
        ({"llama.feed_forward_length": 41}, r"'blk\.0\.ffn_gate\.weight' has shape \(40, 24\).*\(41, 24\)"),
        ({"llama.embedding_length": 48}, r"'token_embd\.weight' has shape \(50, 24\).*\(50, 48\)"),
        ({"llama.block_count": 1}, r"'blk\.1\.attn_norm\.weight': llama\.block_count is 1"),
        ({"tokenizer.ggml.tokens": ["x"] * 51}, "51 tokens, but 'token_embd.weight' has only 50"),
    ],
)
def test_what_does_not_fit_is_refused(metadata: dict[str, Any], said: str) -> None:
    with pytest.raises(ModelFormatError, match=said):
        read(metadata)


@pytest.mark.parametrize(
    ("name", "shape", "said"),
    [
        ("token_embd.weight", (50,), r"token_embd\.weight' has shape \(50,\)"),
        ("token_embd.weight", (0, 24), "vocabulary from 1"),
        ("token_embd.weight", (1 << 30, 24), "vocabulary from 1"),
        ("output.weight", (49, 24), r"must be \(50, 24\)"),
        ("blk.0.attn_q.weight", (24, 23), r"blk\.0\.attn_q\.weight.*must be \(24, 24\)"),
        ("blk.0.attn_q.bias", (23,), r"must be \(24,\)"),
        ("rope_freqs.weight", (4,), r"must be \(2,\)"),
        ("blk.0.attn_norm.weight", (24, 1), r"must be \(24,\)"),
        ("blk.0.ffn_gate_inp.weight", (8, 24), "not part of any model"),
        ("blk.00.attn_norm.weight", (24,), "not part of any model"),
        ("blk.2.attn_norm.weight", (24,), "block_count is 2"),
        ("blk." + "9" * 200 + ".attn_norm.weight", (24,), "not part of any model"),
    ],
)
def test_tensors_that_do_not_fit_are_named(name: str, shape: tuple[int, ...], said: str) -> None:
    with pytest.raises(ModelFormatError, match=said):
        read({}, llama_shapes() | {name: shape})


def test_missing_embedding() -> None:
    shapes = llama_shapes()
    del shapes["token_embd.weight"]
    with pytest.raises(ModelFormatError, match=r"'token_embd\.weight' is missing"):
        read({}, shapes)


VALUES = st.one_of(
    st.integers(),
    st.floats(),
    st.booleans(),
    st.text(max_size=3),
    st.none(),
    st.lists(st.integers(-1, 50), max_size=3),
    st.sampled_from([1, 2, 4, 6, 24, 40]),
)
OTHER_KEYS = [
    "attention.key_length",
    "attention.value_length",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "rope.scaling.type",
    "rope.scaling.factor",
    "attn_logit_softcapping",
    "expert_count",
]


@settings(max_examples=300, deadline=None)
@given(st.dictionaries(st.sampled_from(KEYS + OTHER_KEYS), VALUES, max_size=4))
def test_any_metadata_is_read_or_refused(changes: dict[str, Any]) -> None:
    try:
        config = read({f"llama.{key}": value for key, value in changes.items()})
    except ModelFormatError:
        return
    assert config.heads * config.head_size == 24
    assert config.heads % config.kv_heads == 0
    assert 0 < config.rotary <= config.head_size
