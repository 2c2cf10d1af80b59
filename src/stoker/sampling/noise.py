"""Keyed noise: a Gumbel number for every (seed, position, token), from a counter-based generator.

No state travels: whoever knows the three numbers can make the noise again, in any order, on any machine.
Generator: Philox-4x32-10 (Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", 2011).
docs/concepts/sampling.md describes the layout of the counter.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from stoker.sampling import float32

UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]

NOISE_DOMAIN = 0x53544F4B  # fourth counter word; other uses of the same seed would take another number
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))  # Philox-4x32 constants of the paper
_WEYL = (0x9E3779B9, 0xBB67AE85)  # golden ratio and sqrt(3) - 1: the key's step from round to round
_ROUNDS = 10
_LOW = np.uint64(0xFFFFFFFF)
_SMALL = np.float32(0.29289323)  # 1 - sqrt(1/2): below it log(1 - v) needs no change of exponent


def philox(counter: UInt32, key: tuple[int, int]) -> UInt32:
    """Philox-4x32-10. counter: uint32 [N, 4], key: two 32-bit words; returns uint32 [N, 4]."""
    c0, c1, c2, c3 = (counter[:, i].astype(np.uint64) for i in range(4))
    k0, k1 = key
    for _ in range(_ROUNDS):
        product0, product1 = c0 * _MULTIPLIERS[0], c2 * _MULTIPLIERS[1]
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & _LOW,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & _LOW,
        )
        k0, k1 = (k0 + _WEYL[0]) & 0xFFFFFFFF, (k1 + _WEYL[1]) & 0xFFFFFFFF
    return np.stack([c0, c1, c2, c3], axis=1).astype(np.uint32)


def random_words(seed: int, position: int, token_ids: npt.NDArray[np.int64]) -> UInt32:
    """The 32 random bits of each token: uint32 [N] for token_ids int64 [N], seed and position below 2^64.

    Sixteen counters serve 64 consecutive tokens, so that a 16-lane generator's four output words are four
    runs of neighbouring tokens: token t takes word (t / 16) mod 4 of counter (t / 64) * 16 + t mod 16.
    """
    first = token_ids // 64 * 16 + token_ids % 16
    counters, back = np.unique(first, return_inverse=True)
    counter = np.empty((len(counters), 4), np.uint32)
    counter[:, 0] = counters
    counter[:, 1] = position & 0xFFFFFFFF
    counter[:, 2] = position >> 32
    counter[:, 3] = NOISE_DOMAIN
    words = philox(counter, (seed & 0xFFFFFFFF, seed >> 32))
    chosen: UInt32 = words[back.reshape(-1), token_ids // 16 % 4]
    return chosen


def gumbel_of_words(words: UInt32) -> Float32:
    """Standard Gumbel numbers of 32-bit words: float32 [N] in [-3.14, 22.88].

    With v = (word + 1/2) / 2^32: exponential e = -log(1 - v), Gumbel = -log(e). Large noise comes from small
    v, where float32 is finest, so the tail keeps all 32 bits: the largest value is 33 ln 2, one time in 2^32.
    """
    scale = np.float32(2.0**-32)
    v = (words.astype(np.float64) + 0.5).astype(np.float32) * scale
    rest = ((~words).astype(np.float64) + 0.5).astype(np.float32) * scale  # 1 - v, without its rounding
    e, f = float32.split(rest)
    small = v < _SMALL
    exponential = -float32.log_of_split(
        np.where(small, np.float32(0), e).astype(np.float32), np.where(small, -v, f).astype(np.float32)
    )
    return -float32.log(exponential)


def gumbel(seed: int, position: int, token_ids: npt.NDArray[np.int64]) -> Float32:
    """The noise of tokens token_ids int64 [N] at one position of one request: float32 [N]."""
    return gumbel_of_words(random_words(seed, position, token_ids))
