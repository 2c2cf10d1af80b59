"""The native sampler is the numpy sampler, bit for bit, and both draw from the distribution they should."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.numerics import sample_cases

from stoker import _native
from stoker.api.request import SamplingParams
from stoker.sampling import ReferenceSampler, Sampler, SampleRow, pack_params

SIZES = (1, 3, 15, 16, 17, 31, 33, 63, 64, 65, 127, 1000, 4097)


@pytest.fixture(scope="module")
def sampler() -> Sampler:
    return Sampler(_native.SampleWorkspace(_native.ThreadPool(1)))


@pytest.fixture(scope="module")
def reference_digest() -> str:
    return sample_cases.fixed_digest(ReferenceSampler())


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), size=st.sampled_from(SIZES))
def test_native_equals_numpy(sampler: Sampler, seed: int, size: int) -> None:
    logits, rows = sample_cases.random_case(seed, size, 8)
    before = logits.copy()
    native = sampler.sample(logits, rows)
    assert sample_cases.result_bytes(native) == sample_cases.result_bytes(
        ReferenceSampler().sample(logits, rows)
    )
    assert np.array_equal(logits, before, equal_nan=True)


@pytest.mark.parametrize("target", ["scalar", "avx2", "avx512", "neon"])
@pytest.mark.parametrize("threads", [1, 2])
def test_every_target_equals_numpy(target: str, threads: int, reference_digest: str) -> None:
    if target not in _native.available_targets.split(", "):
        pytest.skip(f"this machine runs {_native.available_targets}")
    done = subprocess.run(
        [sys.executable, str(Path(sample_cases.__file__)), str(threads)],
        env={**os.environ, "STOKER_TARGET": target},
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == {"target": target, "digest": reference_digest}


def test_batch_and_order_change_nothing(sampler: Sampler) -> None:
    rng = np.random.default_rng(5)
    logits = rng.standard_normal((33, 1000)).astype(np.float32) * 3
    rows = [sample_cases.random_row(rng, 1000) for _ in range(33)]
    together = sampler.sample(logits, rows)
    order = rng.permutation(33)
    shuffled = sampler.sample(logits[order], [rows[i] for i in order])
    assert np.array_equal(shuffled.token_ids, together.token_ids[order])
    for i, row in enumerate(rows):
        alone = sampler.sample(logits[i : i + 1], [row])
        assert alone.token_ids[0] == together.token_ids[i]
        assert np.array_equal(alone.logprobs[0], together.logprobs[i], equal_nan=True)


def test_rows_of_a_wider_buffer(sampler: Sampler) -> None:
    buffer = np.random.default_rng(0).standard_normal((4, 128)).astype(np.float32)
    packed = pack_params(SamplingParams(temperature=0.9), 3, 100)
    rows = [SampleRow(packed, i) for i in range(4)]
    view = sampler.sample(buffer[:, :100], rows)
    assert np.array_equal(view.token_ids, sampler.sample(buffer[:, :100].copy(), rows).token_ids)


# --- distribution ----------------------------------------------------------------------------------------


def probabilities(logits: np.ndarray, temperature: float) -> np.ndarray:
    p = np.exp((logits.astype(np.float64) - logits.max()) / temperature)
    return p / p.sum()


def kept_top_k(p: np.ndarray, k: int) -> np.ndarray:
    keep = np.zeros(len(p), bool)
    keep[np.lexsort((np.arange(len(p)), -p))[:k]] = True
    return keep


def kept_top_p(p: np.ndarray, share: float) -> np.ndarray:
    order = np.argsort(-p, kind="stable")
    keep = np.zeros(len(p), bool)
    keep[order[np.cumsum(p[order]) - p[order] < share]] = True
    return keep


def kept_typical(p: np.ndarray, share: float) -> np.ndarray:
    distance = np.abs(-np.log(p) + (p * np.log(p)).sum())
    order = np.argsort(distance, kind="stable")
    keep = np.zeros(len(p), bool)
    keep[order[np.cumsum(p[order]) - p[order] < share]] = True
    return keep


FILTERS = {
    "none": (SamplingParams(temperature=1.0), lambda p: p > 0),
    "top_k": (SamplingParams(temperature=1.0, top_k=12), lambda p: kept_top_k(p, 12)),
    "top_p": (SamplingParams(temperature=1.0, top_p=0.8), lambda p: kept_top_p(p, 0.8)),
    "min_p": (SamplingParams(temperature=1.0, min_p=0.03), lambda p: p >= 0.03 * p.max()),
    "typical_p": (SamplingParams(temperature=1.0, typical_p=0.7), lambda p: kept_typical(p, 0.7)),
}


def chi_square_z(counts: np.ndarray, expected: np.ndarray) -> float:
    """How many standard deviations the chi-square statistic lies above its mean."""
    free = len(counts) - 1
    return float((((counts - expected) ** 2 / expected).sum() - free) / np.sqrt(2 * free))


def draw_many(
    params: SamplingParams, logits: np.ndarray, seeds: np.ndarray, positions: np.ndarray
) -> np.ndarray:
    native = Sampler(_native.SampleWorkspace(_native.ThreadPool(1)))
    packed = {int(s): pack_params(params, int(s), len(logits)) for s in np.unique(seeds)}
    rows = [SampleRow(packed[int(s)], int(p)) for s, p in zip(seeds, positions, strict=True)]
    return native.sample(np.broadcast_to(logits, (len(rows), len(logits))), rows).token_ids


@pytest.mark.parametrize("vary", ["seed", "position"])
@pytest.mark.parametrize("name", FILTERS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_frequencies_are_the_softmax(name: str, vary: str, temperature: float) -> None:
    params, kept = FILTERS[name]
    params = SamplingParams(
        **{
            **{f: getattr(params, f) for f in ("top_k", "top_p", "min_p", "typical_p")},
            "temperature": temperature,
        }
    )
    logits = np.random.default_rng(11).standard_normal(80).astype(np.float32) * 1.5
    p = probabilities(logits, temperature)
    keep = kept(p)
    p = np.where(keep, p, 0) / p[keep].sum()
    draws = 20000
    run = np.arange(draws)
    fixed = np.full(draws, 123456789)
    tokens = draw_many(params, logits, *((run, fixed) if vary == "seed" else (fixed, run)))
    counts = np.bincount(tokens, minlength=80)
    assert counts[~keep].sum() == 0
    assert abs(chi_square_z(counts[keep], p[keep] * draws)) < 4


@pytest.mark.parametrize("vary", ["seed", "position"])
def test_neighbours_are_independent(vary: str) -> None:
    draws = 20001
    run, fixed = np.arange(draws), np.full(draws, 7)
    tokens = draw_many(
        SamplingParams(temperature=1.0),
        np.zeros(8, np.float32),
        *((run, fixed) if vary == "seed" else (fixed, run)),
    )
    pairs = np.bincount(tokens[:-1] * 8 + tokens[1:], minlength=64)
    assert abs(chi_square_z(pairs, np.full(64, (draws - 1) / 64))) < 4


def test_rare_tokens_of_a_large_vocabulary() -> None:
    logits = np.zeros(262144, np.float32)
    logits[100000] = np.log(262143.0)  # half of the probability; the rest has 1.9e-6 each
    tokens = draw_many(SamplingParams(temperature=1.0), logits, np.arange(2000), np.full(2000, 5))
    rare = tokens[tokens != 100000]
    assert abs(len(rare) - 1000) < 4 * np.sqrt(500)
    assert abs(chi_square_z(np.bincount(rare // 8192, minlength=32), np.full(32, len(rare) / 32))) < 4


def test_logprobs_are_the_log_softmax(sampler: Sampler) -> None:
    logits = np.random.default_rng(2).standard_normal((3, 49152)).astype(np.float32) * 4
    packed = pack_params(SamplingParams(temperature=0.5, logprobs=20, presence_penalty=1.0), 1, 49152)
    rows = [SampleRow(packed, i, history=np.arange(9, dtype=np.int32)) for i in range(3)]
    result = sampler.sample(logits, rows)
    x = logits.astype(np.float64)
    exact = x - x.max(1, keepdims=True)
    exact -= np.log(np.exp(exact).sum(1, keepdims=True))
    for r in range(3):
        assert result.logprobs[r] == pytest.approx(exact[r, result.token_ids[r]], abs=4e-6)
        assert result.top_logprobs[r] == pytest.approx(exact[r, result.top_ids[r]], abs=4e-6)
        assert set(result.top_ids[r]) == set(np.argsort(-x[r])[:20])


def test_the_workspace_refuses_what_does_not_fit() -> None:
    workspace = _native.SampleWorkspace(_native.ThreadPool(1))
    none, floats = np.zeros(0, np.int32), np.zeros(0, np.float32)
    outputs = (
        np.zeros(1, np.int32),
        np.zeros(1, np.float32),
        np.zeros((1, 0), np.int32),
        np.zeros((1, 0), np.float32),
    )
    logits = np.zeros((1, 8), np.float32)
    masks = np.zeros((0, 1), np.uint32)
    record = pack_params(SamplingParams(), 0, 8).record
    with pytest.raises(ValueError, match="record"):
        workspace.sample(logits, record[:-1], none, floats, none, none, masks, *outputs)
    with pytest.raises(ValueError, match="vocabulary"):
        workspace.sample(logits, record, none, floats, np.array([8], np.int32), none, masks, *outputs)
    biased = pack_params(SamplingParams(logit_bias={1: 2.0}), 0, 8).record
    with pytest.raises(ValueError, match="bias"):
        workspace.sample(logits, biased, none, floats, none, none, masks, *outputs)
