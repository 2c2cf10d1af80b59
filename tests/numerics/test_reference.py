"""The numpy ops against formulas written out one number at a time in float64."""

from __future__ import annotations

import cmath
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.numerics.reference_models import make_batch

from stoker.kernels import reference
from stoker.kernels.program import BLOCK_TOKENS

EPSILON = float(np.finfo(np.float32).eps)
SEEDS = st.integers(0, 2**32 - 1)


def normal(seed: int, *shape: int) -> np.ndarray:
    """Standard normal float32."""
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def assert_close(actual: np.ndarray, expected: np.ndarray, roundings: float, scale: float) -> None:
    """Within `roundings` float32 roundings of numbers of size `scale`; both float32 and of one shape."""
    assert actual.dtype == np.float32
    assert actual.shape == expected.shape
    np.testing.assert_allclose(actual, expected, rtol=0, atol=roundings * EPSILON * scale)


@settings(max_examples=25, deadline=None)
@given(SEEDS, st.integers(1, 4), st.integers(1, 5), st.sampled_from([2, 16, 33]), st.booleans())
def test_rms_norm(seed: int, tokens: int, heads: int, head_size: int, per_head: bool) -> None:
    x = normal(seed, tokens, heads * head_size) * 10
    size = head_size if per_head else heads * head_size
    weight = normal(seed + 1, size)
    expected = np.empty(x.shape)
    for t in range(tokens):
        for start in range(0, x.shape[1], size):
            part = x[t, start : start + size].astype(float)
            expected[t, start : start + size] = part * weight / math.sqrt((part @ part) / size + 1e-5)
    actual = reference.rms_norm(x, weight, 1e-5, head_size if per_head else None)
    assert_close(actual, expected, size, float(np.abs(expected).max()))


@settings(max_examples=40, deadline=None)
@given(
    SEEDS,
    st.sampled_from([(2, 2), (16, 16), (16, 6), (64, 32)]),
    st.sampled_from(["interleaved", "half"]),
    st.booleans(),
    st.sampled_from([1.0, 0.125]),
)
def test_rope_turns_pairs_as_complex_numbers(
    seed: int, sizes: tuple[int, int], pairing: str, with_factors: bool, linear_scale: float
) -> None:
    head_size, rotary = sizes
    positions = np.array([0, 1, 17, 8191], np.int32)
    x = normal(seed, len(positions), 3 * head_size)
    factors = 1 + np.abs(normal(seed + 1, rotary // 2)) if with_factors else None
    expected = x.astype(float)
    for t, position in enumerate(positions):
        for head in range(3):
            for i in range(rotary // 2):
                pair = (2 * i, 2 * i + 1) if pairing == "interleaved" else (i, i + rotary // 2)
                a, b = (head * head_size + column for column in pair)
                divisor = 1.0 if factors is None else float(factors[i])
                angle = float(position) * 10000.0 ** (-2 * i / rotary) / divisor * linear_scale
                turned = complex(x[t, a], x[t, b]) * cmath.exp(1j * angle)
                expected[t, a], expected[t, b] = turned.real, turned.imag
    actual = reference.rope(
        x,
        positions,
        head_size=head_size,
        rotary=rotary,
        base=10000.0,
        pairing=pairing,  # type: ignore[arg-type]
        linear_scale=linear_scale,
        factors=factors,
    )
    assert_close(actual, expected, 4, float(np.abs(x).max()))
    assert np.array_equal(actual[0], x[0])  # position 0 turns nothing


def attend_one(
    q: np.ndarray, keys: np.ndarray, values: np.ndarray, scale: float, window: int | None, cap: float | None
) -> np.ndarray:
    """One query at the last of n positions and one head: q [d], keys and values [n, d], float64."""
    seen = range(max(0, len(keys) - window) if window else 0, len(keys))
    logits = [scale * float(q @ keys[p]) for p in seen]
    if cap is not None:
        logits = [cap * math.tanh(logit / cap) for logit in logits]
    weights = [math.exp(logit - max(logits)) for logit in logits]
    mixed = sum(weight * values[p] for weight, p in zip(weights, seen, strict=True))
    return np.asarray(mixed / sum(weights))


@settings(max_examples=30, deadline=None)
@given(
    seed=SEEDS,
    lengths=st.lists(st.tuples(st.integers(0, 40), st.integers(1, 20)), min_size=1, max_size=3),
    kv_heads=st.integers(1, 3),
    group=st.integers(1, 3),
    window=st.sampled_from([None, 1, 8, 17]),
    cap=st.sampled_from([None, 2.0]),
)
def test_attention_over_scattered_blocks(
    seed: int,
    lengths: list[tuple[int, int]],
    kv_heads: int,
    group: int,
    window: int | None,
    cap: float | None,
) -> None:
    head_size, scale, generator = 4, 0.7, np.random.default_rng(seed)
    totals = [past + new for past, new in lengths]
    needed = [-(-total // BLOCK_TOKENS) for total in totals]
    order = generator.permutation(sum(needed) + 2).tolist()
    tables = [order[sum(needed[:i]) : sum(needed[: i + 1])] for i in range(len(needed))]
    # Slots that no sequence wrote hold NaN: reading one would show.
    caches = [np.full((len(order), BLOCK_TOKENS, kv_heads, head_size), np.nan, np.float32) for _ in "kv"]
    known = [normal(seed + 1 + i, 2, total, kv_heads, head_size) for i, total in enumerate(totals)]
    for table, (past, _), kv in zip(tables, lengths, known, strict=True):
        for position in range(past):
            for cache, array in zip(caches, kv, strict=True):
                cache[table[position // BLOCK_TOKENS], position % BLOCK_TOKENS] = array[position]
    batch = make_batch([([0] * new, past, table) for table, (past, new) in zip(tables, lengths, strict=True)])
    fresh = [
        np.concatenate([kv[part, past:] for kv, (past, _) in zip(known, lengths, strict=True)])
        for part in (0, 1)
    ]
    q = normal(seed + 99, batch.tokens, kv_heads * group * head_size)
    k, v = (part.reshape(batch.tokens, -1) for part in fresh)
    actual = reference.attention(q, k, v, *caches, batch, scale=scale, window=window, softcap=cap)
    expected = np.empty(q.shape)
    row = 0
    for (past, new), (keys, values) in zip(lengths, known, strict=True):
        for position in range(past, past + new):
            for head in range(kv_heads * group):
                columns = slice(head * head_size, (head + 1) * head_size)
                kv_head = head // group
                expected[row, columns] = attend_one(
                    q[row, columns].astype(float),
                    keys[: position + 1, kv_head].astype(float),
                    values[: position + 1, kv_head].astype(float),
                    scale,
                    window,
                    cap,
                )
            row += 1
    assert_close(actual, expected, 200, float(max(np.abs(kv).max() for kv in known)))


def test_gated_activations_at_the_ends_of_the_range() -> None:
    gate = np.array([[-1e30, -200, -5, -0.0, 0, 1e-3, 3, 200]], np.float32)
    up = np.full_like(gate, 2)
    silu = [2 * g / (1 + math.exp(-g)) if g > -700 else 0.0 for g in gate[0].tolist()]
    assert_close(reference.gated_activation(gate, up, "silu"), np.array([silu]), 4, 400)
    gate = gate[:, 1:]
    gelu = [g * (1 + math.tanh(math.sqrt(2 / math.pi) * (g + 0.044715 * g**3))) for g in map(float, gate[0])]
    assert_close(reference.gated_activation(gate, up[:, 1:], "gelu_tanh"), np.array([gelu]), 4, 400)


def test_small_ops() -> None:
    x = normal(1, 3, 5)
    assert np.array_equal(reference.add(x, x), 2 * x)
    assert np.array_equal(reference.scale(x, 0.1), x * np.float32(0.1))
    assert np.array_equal(reference.select_rows(x, np.array([0, 2], np.int32)), x[[0, 2]])
    assert_close(reference.softcap(x * 10, 2.0), 2 * np.tanh(5 * x.astype(float)), 4, 2)
    table = normal(2, 7, 5)
    looked_up = reference.embed(np.array([6, 0], np.int32), table, 640**0.5)
    assert np.array_equal(looked_up, table[[6, 0]] * np.float32(640**0.5))
    assert np.array_equal(table, normal(2, 7, 5))  # the table itself is not scaled
    bias = normal(3, 7)
    expected = x.astype(float) @ table.T.astype(float) + bias
    assert_close(reference.linear(x, table, bias), expected, 8, float(np.abs(expected).max()))


@pytest.mark.parametrize("kind", ["silu", "gelu_tanh"])
def test_activations_pass_nan_on(kind: str) -> None:
    gate = np.array([[np.nan]], np.float32)
    assert np.isnan(reference.gated_activation(gate, gate, kind)).all()  # type: ignore[arg-type]
