"""Random rows and logits for the sampler's tests. Run as a program: prints the digest of what the native
sampler makes of the fixed cases on the target STOKER_TARGET names, with as many threads as the argument says.
"""

from __future__ import annotations

import hashlib
import json
import sys

import numpy as np

from stoker.api.request import SamplingParams
from stoker.sampling import SampleResult, SampleRow, pack_params

FIXED_CASES = tuple((seed, size) for seed in range(12) for size in (1, 3, 15, 16, 17, 31, 64, 65, 1000, 4097))
LARGE_CASES = ((1, 49152), (2, 49152), (3, 262144))


def random_logits(rng: np.random.Generator, rows: int, vocabulary: int) -> np.ndarray:
    """float32 [rows, vocabulary]: ordinary, tied, very large, all equal, or with -inf, +inf or NaN in it."""
    x = rng.standard_normal((rows, vocabulary)).astype(np.float32) * np.float32(rng.choice([1, 3, 10, 0.01]))
    kind = int(rng.integers(0, 8))
    holes = rng.random((rows, vocabulary))
    if kind == 1:
        x = np.round(x)
    elif kind == 2:
        x[holes < 0.5] = -np.inf
    elif kind == 3:
        x *= np.float32(1e30)
    elif kind == 4:
        x[:] = 0
    elif kind == 5:
        x[holes < 0.1] = np.nan
    elif kind == 6:
        x[holes < 0.01] = np.inf
    return x


def random_params(rng: np.random.Generator, vocabulary: int) -> SamplingParams:
    """Any mix of filters and penalties, ordinary and extreme values."""

    def maybe(chance: float, values: list, otherwise: object) -> object:
        return values[int(rng.integers(len(values)))] if rng.random() < chance else otherwise

    bias = {
        int(i): float(b)
        for i, b in zip(rng.integers(0, vocabulary, 5), (5, -3, 100, -np.inf, 0.5), strict=True)
    }
    return SamplingParams(
        temperature=maybe(0.85, [0.8, 1.0, 0.1, 2.0, 1e-5, 100.0, 1e-40], 0.0),
        top_k=maybe(0.4, [1, 2, 5, 40, 1000, 100000], 0),
        top_p=maybe(0.4, [0.95, 0.5, 0.1, 1e-9, 0.999999, 1 - 1e-16], 1.0),
        min_p=maybe(0.3, [0.05, 0.5, 1.0, 1e-6, 1e-38, 1e-50], 0.0),
        typical_p=maybe(0.3, [0.9, 0.2, 0.999], 1.0),
        repetition_penalty=maybe(0.2, [1.2, 0.8], 1.0),
        frequency_penalty=maybe(0.2, [0.5, -1.3], 0.0),
        presence_penalty=maybe(0.2, [0.7, -0.2], 0.0),
        logit_bias=bias if rng.random() < 0.2 else {},
        logprobs=maybe(0.4, [0, 1, 5, 20], None),
    )


def random_row(rng: np.random.Generator, vocabulary: int) -> SampleRow:
    """One row with parameters of its own, sometimes with bans, a mask or a forced token."""
    packed = pack_params(
        random_params(rng, vocabulary), int(rng.integers(0, 2**64, dtype=np.uint64)), vocabulary
    )
    tokens = int(rng.integers(0, 60))
    history = rng.integers(0, min(vocabulary, 50), tokens).astype(np.int32)
    words = (vocabulary + 31) // 32
    return SampleRow(
        packed,
        int(rng.integers(0, 2**40)),
        history=history if packed.needs_history else None,
        prompt_tokens=tokens // 2 if packed.needs_history else 0,
        banned_ids=tuple(int(i) for i in rng.integers(0, vocabulary, 3)) if rng.random() < 0.2 else (),
        allowed_mask=rng.integers(0, 2**32, words, dtype=np.uint32) if rng.random() < 0.2 else None,
        forced_token=int(rng.integers(0, vocabulary)) if rng.random() < 0.1 else None,
    )


def random_case(seed: int, vocabulary: int, most_rows: int) -> tuple[np.ndarray, list[SampleRow]]:
    """Logits float32 [R, vocabulary] and their R rows, 1 <= R <= most_rows."""
    rng = np.random.default_rng([seed, vocabulary])
    rows = int(rng.integers(1, most_rows + 1))
    return random_logits(rng, rows, vocabulary), [random_row(rng, vocabulary) for _ in range(rows)]


def result_bytes(result: SampleResult) -> bytes:
    """Every bit of a result, all NaN alike."""
    floats = [np.where(np.isnan(a), np.float32(np.nan), a) for a in (result.logprobs, result.top_logprobs)]
    return b"".join(np.ascontiguousarray(a).tobytes() for a in (result.token_ids, result.top_ids, *floats))


def fixed_digest(sampler: object) -> str:
    """SHA-256 of a sampler's results for the fixed and the large cases."""
    digest = hashlib.sha256()
    for seed, size in FIXED_CASES:
        digest.update(result_bytes(sampler.sample(*random_case(seed, size, 33))))
    for seed, size in LARGE_CASES:
        digest.update(result_bytes(sampler.sample(*random_case(seed, size, 2))))
    return digest.hexdigest()


if __name__ == "__main__":
    from stoker import _native
    from stoker.sampling import Sampler

    native = Sampler(_native.SampleWorkspace(_native.ThreadPool(int(sys.argv[1]))))
    json.dump({"target": _native.target, "digest": fixed_digest(native)}, sys.stdout)
