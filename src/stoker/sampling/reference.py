"""The definition of sampling, in numpy: whole vocabulary, full sorts, no shortcuts. Native code must agree.

Order: logit bias, penalties, bans and mask, temperature, top_k, typical_p, top_p, min_p, then the race
argmax(noise - depth), where depth = (largest logit - logit) / temperature. docs/concepts/sampling.md.

Probabilities that are summed are integers ("mass", in units of 2^-40 of the likeliest token's), so that sums
are exact and their order does not matter: segments, lanes and threads may add as they like.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from stoker.api.errors import RequestError
from stoker.sampling import float32
from stoker.sampling.noise import gumbel
from stoker.sampling.rows import PackedRows, SampleResult, SampleRow, pack_rows

Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Float32 = npt.NDArray[np.float32]

MASS_BITS = 40  # 2^18 tokens of mass 2^40 sum to 2^58; what is lost below 2^-41 per token is below float32
LEAST_TEMPERATURE = np.float32(2.0**-64)  # keeps 1 / temperature finite; anything this small is an argmax


class ReferenceSampler:
    """The sampler in numpy. Same results as `Sampler`, bit for bit; some hundred times slower."""

    def sample(self, logits: Float32, rows: Sequence[SampleRow]) -> SampleResult:
        """One token per row; logits: float32 [R, V], not modified. Raises `RequestError` like `Sampler`."""
        if logits.ndim != 2 or logits.dtype != np.float32 or len(rows) != len(logits):
            raise RequestError(f"logits are {logits.dtype} {logits.shape}; allowed: float32 ({len(rows)}, V)")
        packed = pack_rows(rows, logits.shape[1])
        token_ids = np.full(len(rows), -1, np.int32)
        logprobs = np.full(len(rows), np.nan, np.float32)
        top_ids = np.full((len(rows), packed.top_count), -1, np.int32)
        top_logprobs = np.full((len(rows), packed.top_count), np.nan, np.float32)
        for r, task in enumerate(packed.tasks):
            forced = int(task["forced_token"])
            with np.errstate(over="ignore", invalid="ignore"):  # NaN and infinite logits have their rules
                token = forced if forced >= 0 else sample_token(process_logits(logits[r], task, packed), task)
            token_ids[r] = token
            asked = int(task["top_logprobs"])
            if asked >= 0:
                every = log_softmax(logits[r])
                order = ranked(logits[r])[:asked]
                top_ids[r, : len(order)] = order
                top_logprobs[r, : len(order)] = every[order]
                if token >= 0:
                    logprobs[r] = every[token]
        return SampleResult(token_ids, logprobs, top_ids, top_logprobs)


def process_logits(row: Float32, task: np.void, packed: PackedRows) -> Float32:
    """Logits [V] after bias, penalties (vLLM's definitions), bans and mask; a copy."""
    x = row.copy()
    start, count = int(task["bias_start"]), int(task["bias_count"])
    if count:
        biased = packed.bias_ids[start : start + count]
        x[biased] = x[biased] + packed.bias_values[start : start + count]
    count = int(task["history_count"])
    if count:
        start, prompt = int(task["history_start"]), int(task["prompt_count"])
        history = packed.history[start : start + count]
        seen = np.unique(history)
        produced = np.bincount(history[prompt:], minlength=len(x)).astype(np.float32)[seen]
        y = x[seen]
        penalty = task["repetition_penalty"]
        y = np.where(y > 0, y / penalty, y * penalty)
        y = y - task["frequency_penalty"] * produced
        y = np.where(produced > 0, y - task["presence_penalty"], y)
        x[seen] = y
    start, count = int(task["banned_start"]), int(task["banned_count"])
    x[packed.banned_ids[start : start + count]] = -np.inf
    if task["mask_row"] >= 0:
        words = packed.masks[int(task["mask_row"])]
        ids = np.arange(len(x))
        allowed = (words[ids // 32] >> (ids % 32).astype(np.uint32)) & np.uint32(1)
        x[allowed == 0] = -np.inf
    return x


def sample_token(x: Float32, task: np.void) -> int:
    """The token id for processed logits x [V], or -1 if none has a logit above -inf. NaN is never chosen."""
    ids = np.flatnonzero(x > -np.inf)
    if not len(ids):
        return -1
    top = x[ids].max()
    if task["temperature"] == 0 or np.isinf(top):
        return int(ids[np.argmax(x[ids])])
    depths = depths_of(x[ids], np.float32(1) / np.maximum(task["temperature"], LEAST_TEMPERATURE))
    keep = np.isfinite(depths)  # overflowed: e^-depth is 0
    ids, depths = ids[keep], depths[keep]
    order = np.lexsort((ids, depths))
    order = order[: int(task["top_k"]) or len(order)]
    if task["typical_p"] < 1:
        order = typical(order, depths, float(task["typical_p"]))
    if task["top_p"] < 1:
        mass = mass_of(depths[order])
        order = order[within(mass, float(task["top_p"]))]
    if task["min_p"] > 0:
        least = depths[order[0]] - float32.log(task["min_p"])[0]
        order = order[depths[order] <= least]
    kept = np.sort(order)
    values = gumbel(int(task["seed"]), int(task["position"]), ids[kept]) - depths[kept]
    return int(ids[kept[np.argmax(values)]])


def depths_of(x: Float32, inverse_temperature: np.float32) -> Float32:
    """(max - x) / temperature >= 0 for logits x [N] with a finite maximum."""
    top = x.max() + np.float32(0)  # -0 becomes +0: a depth is never -0
    depths: Float32 = (top - x) * inverse_temperature
    return depths


def mass_of(depths: Float32) -> UInt64:
    """round(e^-depth * 2^40) for depths [N]; exact from the float32 exponential on."""
    return np.rint(float32.exp(-depths).astype(np.float64) * 2.0**MASS_BITS).astype(np.uint64)


def within(mass: UInt64, share: float) -> npt.NDArray[np.bool_]:
    """Which of the ordered tokens belong to the shortest prefix whose mass reaches `share` of the sum."""
    before = np.cumsum(mass) - mass
    total = mass.sum()
    limit = min(max(1.0, np.ceil(share * np.float64(total))), np.float64(total))
    inside: npt.NDArray[np.bool_] = before < min(np.uint64(limit), total)  # float64(total) may be above total
    return inside


def typical(order: Int64, depths: Float32, share: float) -> Int64:
    """Locally typical tokens (Meister et al. 2022): surprise nearest the entropy, to `share` of the mass."""
    mass = mass_of(depths[order])
    order, mass = order[mass > 0], mass[mass > 0]
    d = depths[order]
    total = mass.sum()
    log_total = log_mass(total)
    moment = np.rint((float32.exp(-d) * d).astype(np.float64) * 2.0**MASS_BITS).astype(np.uint64).sum()
    entropy = log_total + np.float32(np.float64(moment) / np.float64(total))
    distance = np.abs((log_total + d) - entropy)
    by_distance = np.lexsort((order, distance))
    kept = by_distance[within(mass[by_distance], share)]
    return np.asarray(order[np.sort(kept)])  # `order` was sorted by depth; so is this


def log_mass(total: np.uint64) -> np.float32:
    """log(total / 2^40)."""
    scaled = np.asarray([total], np.uint64).astype(np.float32) * np.float32(2.0**-MASS_BITS)
    return np.float32(float32.log(scaled)[0])


def log_softmax(x: Float32) -> Float32:
    """log softmax of logits x [V]; NaN counts as -inf, and +inf takes everything."""
    x = np.where(np.isnan(x), np.float32(-np.inf), x)
    top = x.max()
    if np.isinf(top):
        return np.where(x == np.inf, np.float32(0), np.float32(-np.inf))
    depths = depths_of(x, np.float32(1))
    return -(depths + log_mass(mass_of(depths).sum()))


def ranked(x: Float32) -> Int64:
    """Token ids by depth, ties by id; NaN as -inf. Tokens at -inf are left out."""
    x = np.where(np.isnan(x), np.float32(-np.inf), x)
    top = x.max()
    if np.isinf(top):
        return np.flatnonzero(x == np.inf)
    depths = depths_of(x, np.float32(1))
    order = np.lexsort((np.arange(len(x)), depths))
    return order[depths[order] < np.inf]
