"""From config to Program: which ops, with which numbers, and what is refused."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
from tests.unit.models.tiny import llama_metadata, llama_shapes

from stoker.api.errors import ModelFormatError
from stoker.kernels.program import Attention, Embed, KvLayer, Linear, Program, RmsNorm, Rope, SelectRows
from stoker.models import ARCHITECTURES, ModelConfig, SlidingWindow, build_program, program_from_gguf

CONFIG = ModelConfig(
    architecture="llama",
    vocabulary=50,
    context_tokens=128,
    layers=7,
    width=24,
    feed_forward=40,
    heads=6,
    kv_heads=2,
    head_size=8,
    norm_eps=1e-6,
    rope_base=1e6,
    rotary=8,
    rope_scale=0.125,
)
WINDOWED = replace(CONFIG, window=SlidingWindow(16))


def config_of(architecture: str) -> ModelConfig:
    """The config above, with a window where the architecture must have one."""
    return replace(WINDOWED if architecture == "gemma3" else CONFIG, architecture=architecture)


def ops_of(program: Program, kind: type) -> list[Any]:
    """The ops of one kind, in order."""
    return [op for op in program.ops if isinstance(op, kind)]


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_programs_are_well_formed(architecture: str) -> None:
    program = build_program(config_of(architecture))
    written: set[str] = set()
    read: set[str] = set()
    for op in program.ops:
        inputs = {
            getattr(op, field) for field in ("x", "q", "k", "v", "gate", "up", "a", "b") if hasattr(op, field)
        }
        assert inputs <= written, op
        assert op.out not in written, op
        read |= inputs
        written.add(op.out)
    assert written - read == {"logits", "hidden"}
    assert program.hidden == "hidden"
    assert program.ops[-1].out == "logits"
    assert isinstance(program.ops[0], Embed)
    assert [op.layer for op in ops_of(program, Attention)] == list(range(7))
    assert len(program.kv_layers) == 7
    assert (program.vocabulary, program.context_tokens, program.architecture) == (50, 128, architecture)
    assert len(set(program.weights)) == len(program.weights)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_only_wanted_rows_are_normed_and_multiplied(architecture: str) -> None:
    *_, select, norm, output = build_program(config_of(architecture)).ops
    assert (select.out, norm.out, output.out) == (norm.x, output.x, "logits")
    assert isinstance(select, SelectRows)
    assert isinstance(norm, RmsNorm)
    assert norm.weight == "output_norm.weight"
    assert isinstance(output, Linear)


@pytest.mark.parametrize("architecture", sorted(ARCHITECTURES))
def test_hidden_states_are_what_the_output_matrix_is_given(architecture: str) -> None:
    *_, hidden_select, hidden_norm, select, norm, _ = build_program(config_of(architecture)).ops
    assert (hidden_select.x, hidden_select.rows, select.rows) == (select.x, "hidden", "logits")
    assert hidden_norm == replace(norm, out="hidden", x=hidden_select.out)


def test_output_is_tied_unless_the_file_has_one() -> None:
    assert build_program(CONFIG).ops[-1].weight == "token_embd.weight"  # type: ignore[union-attr]
    untied = replace(CONFIG, optional_tensors=frozenset({"output.weight"}))
    assert build_program(untied).ops[-1].weight == "output.weight"  # type: ignore[union-attr]


def test_gemma3_windows_and_ropes_alternate() -> None:
    program = build_program(config_of("gemma3"))
    windows = [16, 16, 16, 16, 16, None, 16]
    assert [op.window for op in ops_of(program, Attention)] == windows
    assert program.kv_layers == tuple(KvLayer(2, 8, window) for window in windows)
    bases = [(op.base, op.linear_scale) for op in ops_of(program, Rope)][::2]
    assert bases == [(1e4, 1.0) if window else (1e6, 0.125) for window in windows]
    assert program.ops[0].scale == 24**0.5  # type: ignore[union-attr]


def test_gemma3_scales_the_largest_by_width_per_head() -> None:
    small = build_program(config_of("gemma3"))
    large = build_program(replace(config_of("gemma3"), layers=62, width=48))
    assert {op.scale for op in ops_of(small, Attention)} == {8**-0.5}
    assert {op.scale for op in ops_of(large, Attention)} == {(48 / 6) ** -0.5}
    assert {op.scale for op in ops_of(build_program(CONFIG), Attention)} == {8**-0.5}


def test_gemma3_needs_a_window() -> None:
    with pytest.raises(ModelFormatError, match="sliding_window is missing"):
        build_program(replace(CONFIG, architecture="gemma3"))


def test_llama_may_have_a_window_in_every_layer() -> None:
    assert {op.window for op in ops_of(build_program(WINDOWED), Attention)} == {16}
    assert {op.window for op in ops_of(build_program(CONFIG), Attention)} == {None}


@pytest.mark.parametrize("architecture", ["qwen2", "qwen3"])
def test_qwen_windows_are_refused_unless_they_hide_nothing(architecture: str) -> None:
    config = replace(CONFIG, architecture=architecture)
    with pytest.raises(ModelFormatError, match=r"sliding_window is 127; allowed: none, or at least .* 128"):
        build_program(replace(config, window=SlidingWindow(127)))
    assert build_program(replace(config, window=SlidingWindow(128))) == build_program(config)


def test_pairing_biases_and_head_norms() -> None:
    programs = {name: build_program(config_of(name)) for name in ARCHITECTURES}
    pairings = {name: {op.pairing for op in ops_of(program, Rope)} for name, program in programs.items()}
    assert pairings == {"llama": {"interleaved"}, "qwen2": {"half"}, "qwen3": {"half"}, "gemma3": {"half"}}
    assert "blk.0.attn_q.bias" in programs["qwen2"].weights
    assert [name for name in sorted(programs) if "blk.0.attn_k_norm.weight" in programs[name].weights] == [
        "gemma3",
        "qwen3",
    ]


def from_tiny(changes: dict[str, tuple[int, ...] | None], **metadata: object) -> Program:
    """Program of the tiny llama with tensors added, or removed (None)."""
    shapes = {**llama_shapes(), **changes}
    tensors = {name: SimpleNamespace(shape=shape) for name, shape in shapes.items() if shape is not None}
    return program_from_gguf(llama_metadata() | metadata, tensors)


def test_a_file_uses_each_of_its_tensors() -> None:
    program = from_tiny({"rope_freqs.weight": (2,), "output.weight": (50, 24), "blk.1.ffn_down.bias": (24,)})
    assert set(program.weights) == {
        *llama_shapes(),
        "rope_freqs.weight",
        "output.weight",
        "blk.1.ffn_down.bias",
    }
    assert {op.factors for op in ops_of(program, Rope)} == {"rope_freqs.weight"}


@pytest.mark.parametrize("name", sorted(llama_shapes()))
def test_missing_tensors_are_named(name: str) -> None:
    with pytest.raises(ModelFormatError, match=f"tensor '{name}' is missing"):
        from_tiny({name: None})


@pytest.mark.parametrize(
    ("name", "shape"),
    [("blk.0.attn_q_norm.weight", (4,)), ("blk.0.post_ffw_norm.weight", (24,)), ("attn_q.weight", (24, 24))],
)
def test_tensors_without_a_use_are_refused(name: str, shape: tuple[int, ...]) -> None:
    with pytest.raises(ModelFormatError, match=f"tensor '{name}' is not part of a llama model"):
        from_tiny({name: shape})


@pytest.mark.parametrize("architecture", ["gpt2", "Llama", "", None, 3, ["llama"]])
def test_unknown_architectures_are_refused_with_the_known_names(architecture: object) -> None:
    with pytest.raises(ModelFormatError, match="allowed: gemma3, llama, qwen2, qwen3"):
        from_tiny({}, **{"general.architecture": architecture})
