"""Philox against its published vectors, exact fused multiply-adds, and the noise's accuracy into the tail."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.sampling import float32, noise

ONES = 0xFFFFFFFF
# kat_vectors of Random123 1.14: philox4x32, 10 rounds.
KNOWN_ANSWERS = (
    ([0, 0, 0, 0], (0, 0), [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([ONES] * 4, (ONES, ONES), [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        (0xA4093822, 0x299F31D0),
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
)


@pytest.mark.parametrize(("counter", "key", "expected"), KNOWN_ANSWERS)
def test_philox_known_answers(counter: list[int], key: tuple[int, int], expected: list[int]) -> None:
    assert noise.philox(np.array([counter], np.uint32), key)[0].tolist() == expected


def test_words_of_tokens_use_each_counter_word_once() -> None:
    words = noise.random_words(5, 9, np.arange(256))
    counters = np.zeros((64, 4), np.uint32)
    counters[:, 0], counters[:, 1], counters[:, 3] = np.arange(64), 9, noise.NOISE_DOMAIN
    direct = noise.philox(counters, (5, 0))
    assert sorted(words.tolist()) == sorted(direct.reshape(-1).tolist())
    assert words[64 + 16 * 2 + 7] == direct[16 + 7, 2]


def test_seed_and_position_use_all_64_bits() -> None:
    ids = np.arange(64)
    base = noise.random_words(1, 2, ids)
    for seed, position in ((1 + 2**32, 2), (1, 2 + 2**32), (2, 2), (1, 3)):
        assert not np.any(noise.random_words(seed, position, ids) == base)


def test_order_of_tokens_does_not_matter() -> None:
    ids = np.random.default_rng(0).permutation(1000)
    assert np.array_equal(noise.gumbel(3, 4, ids), noise.gumbel(3, 4, np.arange(1000))[ids])


def test_gumbel_is_accurate_into_both_tails() -> None:
    edge = np.array([0, 1, 2, 255, 256, ONES, ONES - 1, 1257966796, 1257966797, 1257966798], np.uint32)
    words = np.concatenate([edge, np.random.default_rng(1).integers(0, 2**32, 100000, dtype=np.uint32)])
    v = (words.astype(np.longdouble) + 0.5) / 2**32
    exact = -np.log(-np.log1p(-v))
    got = noise.gumbel_of_words(words)
    assert np.max(np.abs(got - exact)) < 1.2e-6
    assert np.max(got) == pytest.approx(33 * np.log(2), abs=1e-5)
    assert np.max(got) < 22.874  # kGumbelTop, on which the native kernel's skipping rests


@given(
    a=st.floats(width=32, min_value=-(2.0**50), max_value=2.0**50),
    b=st.floats(width=32, min_value=-(2.0**50), max_value=2.0**50),
    c=st.floats(width=32, min_value=-(2.0**100), max_value=2.0**100),
)
def test_fma_rounds_once(a: float, b: float, c: float) -> None:
    got = float32.fma(np.float32(a), np.float32(b), np.float32(c))
    exact = Fraction(a) * Fraction(b) + Fraction(c)
    nearest = abs(Fraction(float(got)) - exact)
    for neighbour in (np.nextafter(np.float32(got), np.float32(s)) for s in (-np.inf, np.inf)):
        assert nearest <= abs(Fraction(float(neighbour)) - exact)


def test_exp_and_log_are_close() -> None:
    rng = np.random.default_rng(0)
    x = -rng.random(50000).astype(np.float32) * 87
    assert np.max(np.abs(float32.exp(x) / np.exp(x.astype(np.float64)) - 1)) < 2.5e-7
    y = np.exp(rng.uniform(-80, 80, 50000)).astype(np.float32)
    near_one = (1 + rng.uniform(-0.29, 0.41, 50000)).astype(np.float32)
    for z in (y, near_one[near_one != 1]):
        assert np.max(np.abs(float32.log(z) / np.log(z.astype(np.float64)) - 1)) < 1.5e-7
    assert float32.log(np.float32(1)) == 0
    assert float32.exp(np.array([-np.inf, -88, 0], np.float32)).tolist() == [0, 0, 1]
