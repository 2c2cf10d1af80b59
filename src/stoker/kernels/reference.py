"""Every op in plain numpy float32, and an interpreter made of them: what faster ones are tested against.

Written to be read. Matrix products go to numpy's BLAS, whose order of summation may change with the number
of rows: results agree with other interpreters, and with themselves in another batch, to rounding only.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from stoker.api.errors import EngineError, ModelFormatError
from stoker.kernels.interpreter import check_batch, copied_slots, written_slots
from stoker.kernels.program import (
    BLOCK_TOKENS,
    Add,
    Attention,
    Batch,
    Embed,
    Float32,
    GatedActivation,
    Input,
    Int32,
    Linear,
    Program,
    RmsNorm,
    Rope,
    Scale,
    SelectRows,
    Softcap,
    UInt8,
)

Weight = Float32 | Callable[[], Float32]  # an array, or a function that makes it each time it is needed
KvArray = npt.NDArray[Any]  # [blocks, BLOCK_TOKENS, kv_heads, head_size], float32 or float16

# --- the ops ---------------------------------------------------------------------------------------


def embed(token_ids: Int32, table: Float32, scale: float = 1.0) -> Float32:
    """[T], [vocabulary, width] -> [T, width]."""
    rows: Float32 = table[token_ids]  # a copy, as the index is an array
    rows *= np.float32(scale)
    return rows


def rms_norm(x: Float32, weight: Float32, eps: float, head_size: int | None = None) -> Float32:
    """[T, width] -> [T, width]; normed over the row, or over each run of head_size columns."""
    size = head_size or x.shape[1]
    heads = x.reshape(len(x), x.shape[1] // size, size)  # no -1, which x without rows would not settle
    mean_square = np.mean(heads * heads, axis=-1, keepdims=True, dtype=np.float32)
    root: Float32 = np.sqrt(mean_square + np.float32(eps))
    normed: Float32 = heads / root * weight
    return normed.reshape(x.shape)


def linear(x: Float32, weight: Float32, bias: Float32 | None = None) -> Float32:
    """[T, columns], [rows, columns] -> [T, rows]."""
    product = x @ weight.T
    return product if bias is None else product + bias


def rope(
    x: Float32,
    positions: Int32,
    *,
    head_size: int,
    rotary: int,
    base: float,
    pairing: Literal["interleaved", "half"],
    linear_scale: float = 1.0,
    factors: Float32 | None = None,
) -> Float32:
    """[T, heads · head_size] -> the same shape; see `program.Rope`.

    Angles are made in float64 and only their cosines and sines are rounded: at position 10 000 a float32
    angle is off by up to 5e-4, which would be this function's error and not the tested kernel's.
    """
    frequencies = base ** (-2.0 * np.arange(rotary // 2) / rotary) * linear_scale
    if factors is not None:
        frequencies = frequencies / factors.astype(np.float64)
    angles = positions[:, None, None] * frequencies  # [T, 1, rotary/2]
    cos, sin = np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)
    heads = x.reshape(len(x), -1, head_size)
    if pairing == "interleaved":
        first, second = slice(0, rotary, 2), slice(1, rotary, 2)
    else:
        first, second = slice(0, rotary // 2), slice(rotary // 2, rotary)
    turned = heads.copy()
    turned[..., first] = heads[..., first] * cos - heads[..., second] * sin
    turned[..., second] = heads[..., first] * sin + heads[..., second] * cos
    return turned.reshape(x.shape)


def attention(
    q: Float32,
    k: Float32,
    v: Float32,
    k_cache: KvArray,
    v_cache: KvArray,
    batch: Batch,
    *,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Float32:
    """[T, heads · head_size], [T, kv_heads · head_size] twice -> [T, heads · head_size].

    Writes k and v into the caches (rounding to their type), then reads all positions back from there.
    """
    _, _, kv_heads, head_size = k_cache.shape
    slots, copied = written_slots(batch), copied_slots(batch)
    for cache, new in ((k_cache, k), (v_cache, v)):
        flat, heads = cache.reshape(-1, kv_heads, head_size), new.reshape(-1, kv_heads, head_size)
        flat[slots] = heads
        flat[copied] = heads[batch.kv_copies[:, 0]]
    out = np.empty_like(q)
    for sequence in range(batch.sequences):
        rows = slice(batch.query_start[sequence], batch.query_start[sequence + 1])
        length = int(batch.kv_tokens[sequence])
        blocks = batch.block_tables[sequence, : -(-length // BLOCK_TOKENS)]
        keys, values = (
            cache[blocks].reshape(-1, kv_heads, head_size)[:length].astype(np.float32)
            for cache in (k_cache, v_cache)
        )
        out[rows] = _attend(q[rows], keys, values, batch.positions[rows], scale, window, softcap)
    return out


def _attend(
    q: Float32,
    keys: Float32,
    values: Float32,
    positions: Int32,
    scale: float,
    window: int | None,
    cap: float | None,
) -> Float32:
    """One sequence: q [t, heads · head_size]; keys, values [n, kv_heads, head_size]; positions [t] of q."""
    length, kv_heads, head_size = keys.shape
    queries = q.reshape(len(q), -1, head_size).transpose(1, 0, 2)  # [heads, t, head_size]
    group = len(queries) // kv_heads  # query heads g · group .. (g + 1) · group - 1 share KV head g
    keys = np.repeat(keys.transpose(1, 2, 0), group, axis=0)  # [heads, head_size, n]
    values = np.repeat(values.transpose(1, 0, 2), group, axis=0)  # [heads, n, head_size]
    logits = (queries @ keys) * np.float32(scale)  # [heads, t, n]
    if cap is not None:
        logits = softcap(logits, cap)
    distance = positions[:, None] - np.arange(length)  # [t, n]
    visible = distance >= 0
    if window is not None:
        visible &= distance < window
    logits = np.where(visible, logits, np.float32(-np.inf))
    weights = np.exp(logits - logits.max(axis=-1, keepdims=True))
    weights /= weights.sum(axis=-1, keepdims=True, dtype=np.float32)
    mixed: Float32 = (weights @ values).transpose(1, 0, 2).reshape(q.shape)
    return mixed


def gated_activation(gate: Float32, up: Float32, activation: Literal["silu", "gelu_tanh"]) -> Float32:
    """[T, n], [T, n] -> [T, n]."""
    if activation == "silu":
        with np.errstate(over="ignore"):  # exp(-gate) may be inf, and gate / inf is the limit, -0
            denominator: Float32 = np.float32(1) + np.exp(-gate)
        return gate / denominator * up
    inner = np.float32(np.sqrt(2 / np.pi)) * (gate + np.float32(0.044715) * gate * gate * gate)
    rise: Float32 = np.float32(1) + np.tanh(inner)
    return np.float32(0.5) * gate * rise * up


def add(a: Float32, b: Float32) -> Float32:
    """[T, n], [T, n] -> [T, n]."""
    return a + b


def select_rows(x: Float32, rows: Int32) -> Float32:
    """[T, n], [R] -> [R, n]."""
    return x[rows]


def scale(x: Float32, factor: float) -> Float32:
    """[T, n] -> [T, n]."""
    return x * np.float32(factor)


def softcap(x: Float32, cap: float) -> Float32:
    """Any shape -> the same, within (-cap, cap)."""
    capped: Float32 = np.float32(cap) * np.tanh(x / np.float32(cap))
    return capped


# --- the interpreter -------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Step:
    """What an op may look at while a batch runs."""

    batch: Batch
    values: dict[str, Float32]  # activations that are still needed, by name
    weight: Callable[[str], Float32]
    k_caches: list[KvArray]  # by KV layer
    v_caches: list[KvArray]


def _run_input(op: Input, step: _Step) -> Float32:
    inputs = step.batch.inputs
    if inputs is None or inputs.shape != (step.batch.tokens, op.width):
        found = "no" if inputs is None else inputs.shape
        raise EngineError(f"batch.inputs are {found}; allowed: {(step.batch.tokens, op.width)}")
    return inputs


def _run_embed(op: Embed, step: _Step) -> Float32:
    return embed(step.batch.token_ids, step.weight(op.table), op.scale)


def _run_rms_norm(op: RmsNorm, step: _Step) -> Float32:
    return rms_norm(step.values[op.x], step.weight(op.weight), op.eps, op.head_size)


def _run_linear(op: Linear, step: _Step) -> Float32:
    bias = None if op.bias is None else step.weight(op.bias)
    return linear(step.values[op.x], step.weight(op.weight), bias)


def _run_rope(op: Rope, step: _Step) -> Float32:
    return rope(
        step.values[op.x],
        step.batch.positions,
        head_size=op.head_size,
        rotary=op.rotary,
        base=op.base,
        pairing=op.pairing,
        linear_scale=op.linear_scale,
        factors=None if op.factors is None else step.weight(op.factors),
    )


def _run_attention(op: Attention, step: _Step) -> Float32:
    return attention(
        step.values[op.q],
        step.values[op.k],
        step.values[op.v],
        step.k_caches[op.layer],
        step.v_caches[op.layer],
        step.batch,
        scale=op.scale,
        window=op.window,
        softcap=op.softcap,
    )


def _run_gated_activation(op: GatedActivation, step: _Step) -> Float32:
    return gated_activation(step.values[op.gate], step.values[op.up], op.activation)


def _run_add(op: Add, step: _Step) -> Float32:
    return add(step.values[op.a], step.values[op.b])


def _run_select_rows(op: SelectRows, step: _Step) -> Float32:
    rows = step.batch.logit_rows if op.rows == "logits" else step.batch.hidden_rows
    return select_rows(step.values[op.x], rows)


def _run_scale(op: Scale, step: _Step) -> Float32:
    return scale(step.values[op.x], op.factor)


def _run_softcap(op: Softcap, step: _Step) -> Float32:
    return softcap(step.values[op.x], op.cap)


OPS: Mapping[type, Callable[[Any, _Step], Float32]] = MappingProxyType(
    {
        Embed: _run_embed,
        Input: _run_input,
        RmsNorm: _run_rms_norm,
        Linear: _run_linear,
        Rope: _run_rope,
        Attention: _run_attention,
        GatedActivation: _run_gated_activation,
        Add: _run_add,
        SelectRows: _run_select_rows,
        Scale: _run_scale,
        Softcap: _run_softcap,
    }
)


class ReferenceInterpreter:
    """Runs a Program in float32. Owns its KV memory, num_blocks · block_bytes, in float32 or float16."""

    def __init__(
        self,
        program: Program,
        weights: Mapping[str, Weight],
        *,
        num_blocks: int,
        kv_type: Literal["float32", "float16"] = "float32",
    ) -> None:
        """`weights` has every name of `program.weights`; ModelFormatError for the first that it lacks."""
        for name in program.weights:
            if name not in weights:
                raise ModelFormatError(f"weight {name!r} is missing; {program.architecture} needs it")
        self._program = program
        self._weights = weights
        self._num_blocks = num_blocks
        shapes = [(num_blocks, BLOCK_TOKENS, kv.kv_heads, kv.head_size) for kv in program.kv_layers]
        self._k_caches: list[KvArray] = [np.zeros(shape, np.dtype(kv_type)) for shape in shapes]
        self._v_caches: list[KvArray] = [np.zeros(shape, np.dtype(kv_type)) for shape in shapes]
        self._last_use = _last_uses(program)
        self._states: tuple[Float32, ...] = ()

    @property
    def vocabulary(self) -> int:
        """Columns of the logits."""
        return self._program.vocabulary

    @property
    def num_blocks(self) -> int:
        """KV blocks, numbered from 0."""
        return self._num_blocks

    @property
    def block_bytes(self) -> int:
        """Memory of one block over all layers, keys and values."""
        per_token = sum(kv.kv_heads * kv.head_size for kv in self._program.kv_layers)
        return 2 * BLOCK_TOKENS * per_token * self._k_caches[0].itemsize

    def run(self, batch: Batch) -> Float32:
        """One step -> logits [R, vocabulary]; K and V of its tokens are then in the blocks.

        Raises EngineError for a batch that contradicts itself, before anything is written.
        """
        check_batch(
            batch,
            vocabulary=self.vocabulary,
            num_blocks=self._num_blocks,
            context_tokens=self._program.context_tokens,
        )
        step = _Step(batch, {}, self._weight, self._k_caches, self._v_caches)
        for index, op in enumerate(self._program.ops):
            step.values[op.out] = OPS[type(op)](op, step)
            for name in [name for name in step.values if self._last_use.get(name, index) < index]:
                del step.values[name]
        program = self._program
        names = () if program.hidden is None else (program.hidden, *program.draft_states)
        self._states = tuple(step.values[name] for name in names)
        return step.values[self._program.ops[-1].out]

    @property
    def hidden_states(self) -> Float32:
        """[H, width] of the last run. Raises EngineError for a program that has none."""
        if not self._states:
            raise EngineError(f"{self._program.architecture} has no hidden states, or nothing was run")
        return self._states[0]

    @property
    def draft_states(self) -> Float32:
        """[H, all widths] of the last run. Raises the same."""
        return np.concatenate([self.hidden_states, *self._states[1:]], axis=1)

    def copy_block(self, source: int, destination: int) -> None:
        """Copy every layer's keys and values of one block to another."""
        self._check_block(source)
        self._check_block(destination)
        for cache in (*self._k_caches, *self._v_caches):
            cache[destination] = cache[source]

    def read_block(self, block: int) -> UInt8:
        """[block_bytes] keys, then values, layer by layer."""
        self._check_block(block)
        parts = [cache[block].reshape(-1).view(np.uint8) for cache in (*self._k_caches, *self._v_caches)]
        return np.concatenate(parts)

    def write_block(self, block: int, payload: UInt8) -> None:
        """Put what `read_block` gave into a block."""
        self._check_block(block)
        if payload.shape != (self.block_bytes,):
            raise EngineError(f"a block of {payload.nbytes} bytes; allowed: {self.block_bytes}")
        start = 0
        for cache in (*self._k_caches, *self._v_caches):
            part = payload[start : start + cache[block].nbytes]
            cache[block] = part.view(cache.dtype).reshape(cache.shape[1:])
            start += len(part)

    def _check_block(self, block: int) -> None:
        if not 0 <= block < self._num_blocks:
            raise EngineError(f"block {block}; allowed: 0 to {self._num_blocks - 1}")

    def _weight(self, name: str) -> Float32:
        weight = self._weights[name]
        return weight() if callable(weight) else weight


def _last_uses(program: Program) -> dict[str, int]:
    """Index of the last op that reads each activation, so that a long prompt does not keep all of them."""
    inputs = ("x", "q", "k", "v", "gate", "up", "a", "b")
    return {
        getattr(op, field): index
        for index, op in enumerate(program.ops)
        for field in inputs
        if hasattr(op, field)
    }
