"""What is to be sampled: one `SampleRow` per row of logits, packed into flat arrays for one native call.

The part that stays the same through a request is packed once (`pack_params`); a step joins those bytes and
fills in what changed. The record's fields are those of `SampleTask` in native/sample.h.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from stoker.api.errors import RequestError
from stoker.api.request import SEEDS, SamplingParams

Int32 = npt.NDArray[np.int32]
UInt32 = npt.NDArray[np.uint32]
Float32 = npt.NDArray[np.float32]

TASK = np.dtype(
    [
        ("seed", "<u8"),
        ("position", "<i8"),
        ("top_p", "<f8"),
        ("typical_p", "<f8"),
        ("history_start", "<i8"),
        ("temperature", "<f4"),
        ("min_p", "<f4"),
        ("repetition_penalty", "<f4"),
        ("frequency_penalty", "<f4"),
        ("presence_penalty", "<f4"),
        ("top_k", "<i4"),
        ("top_logprobs", "<i4"),  # -1: no logprobs
        ("forced_token", "<i4"),  # -1: sample
        ("bias_start", "<i4"),
        ("bias_count", "<i4"),
        ("banned_start", "<i4"),
        ("banned_count", "<i4"),
        ("prompt_count", "<i4"),  # of history, the first are the prompt's
        ("history_count", "<i4"),
        ("mask_row", "<i4"),  # -1: no mask
        ("reserved", "<i4"),
    ]
)
LEAST_MIN_P = 2.0**-100  # nothing so improbable is ever drawn; keeps the float32 logarithm in its normal range
_NO_TOKENS = np.zeros(0, np.int32)


@dataclass(frozen=True, slots=True, eq=False)
class PackedParams:
    """Sampling parameters of one choice of one request, ready for the native call. Made by `pack_params`."""

    params: SamplingParams
    seed: int
    record: bytes  # one TASK
    bias_ids: Int32  # [B], ascending
    bias_values: Float32  # [B]
    needs_history: bool  # a penalty is on: rows must bring the sequence's token ids

    @property
    def is_plain(self) -> bool:
        """Nothing but the position changes from step to step (unless the row itself brings a ban or mask)."""
        return not self.needs_history and not len(self.bias_ids)


def pack_params(params: SamplingParams, seed: int, vocabulary: int) -> PackedParams:
    """Pack the constant part of a choice's rows; `seed` is the choice's own (request seed + i mod 2^64).

    Raises `RequestError` for a seed outside 64 bits, or a logit_bias id that is not below `vocabulary`.
    """
    if not 0 <= seed < SEEDS:
        raise RequestError(f"seed is {seed}; allowed: 0 to 2^64 - 1")
    bias_ids = sorted(params.logit_bias)
    if bias_ids and bias_ids[-1] >= vocabulary:
        raise RequestError(f"logit_bias names token {bias_ids[-1]}; allowed: 0 to {vocabulary - 1}")
    task = np.zeros(1, TASK)
    task["seed"] = seed
    for name in ("top_p", "typical_p", "temperature", "min_p", "top_k"):
        task[name] = getattr(params, name)
    for name in ("repetition_penalty", "frequency_penalty", "presence_penalty"):
        task[name] = getattr(params, name)
    if params.min_p < LEAST_MIN_P:
        task["min_p"] = 0
    task["top_logprobs"] = -1 if params.logprobs is None else params.logprobs
    task["forced_token"] = task["mask_row"] = -1
    task["bias_count"] = len(bias_ids)
    return PackedParams(
        params=params,
        seed=seed,
        record=task.tobytes(),
        bias_ids=np.array(bias_ids, np.int32),
        bias_values=np.array([params.logit_bias[i] for i in bias_ids], np.float32),
        needs_history=(
            params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
        ),
    )


@dataclass(frozen=True, slots=True, eq=False)
class SampleRow:
    """One row of logits to turn into a token.

    `position` is the absolute position the new token will take: the number of tokens before it.
    """

    packed: PackedParams
    position: int
    history: Int32 | None = None  # [tokens before it], prompt first; needed iff packed.needs_history
    prompt_tokens: int = 0  # how many of `history` are the prompt's
    banned_ids: tuple[int, ...] = ()  # never sampled here: end tokens before min_tokens, ...
    allowed_mask: UInt32 | None = None  # [ceil(vocabulary / 32)]; bit i of word w allows token 32 w + i
    forced_token: int | None = None  # take this token instead of sampling (scoring); logprobs are still given


@dataclass(frozen=True, slots=True, eq=False)
class SampleResult:
    """What was sampled, one entry per row.

    `logprobs` are of the raw logits, before temperature, penalties and masks. Rows that asked for none have
    NaN; entries past the number a row asked for are -1 and NaN. K is the largest number asked for.
    """

    token_ids: Int32  # [R]; -1 where no token was left (all banned, or all logits -inf or NaN)
    logprobs: Float32  # [R], of the chosen token
    top_ids: Int32  # [R, K], likeliest first, ties by id
    top_logprobs: Float32  # [R, K]


@dataclass(frozen=True, slots=True, eq=False)
class PackedRows:
    """The arrays of one native call."""

    tasks: npt.NDArray[np.void]  # [R] of TASK
    bias_ids: Int32
    bias_values: Float32
    banned_ids: Int32
    history: Int32
    masks: UInt32  # [M, ceil(vocabulary / 32)]
    top_count: int  # K


def pack_rows(rows: Sequence[SampleRow], vocabulary: int) -> PackedRows:
    """Flat arrays for `rows`; checks what a row brings against the vocabulary.

    Raises `RequestError`: token ids outside the vocabulary, a mask of the wrong length, missing history.
    """
    tasks = np.frombuffer(b"".join([row.packed.record for row in rows]), TASK).copy()
    tasks["position"] = [row.position for row in rows]
    top_count = max(0, int(tasks["top_logprobs"].max(initial=0)))
    extras = [
        (i, row)
        for i, row in enumerate(rows)
        if row.banned_ids or row.allowed_mask is not None or row.forced_token is not None or not row.packed.is_plain
    ]
    if not extras:
        no_masks = np.zeros((0, (vocabulary + 31) // 32), np.uint32)
        return PackedRows(
            tasks, _NO_TOKENS, np.zeros(0, np.float32), _NO_TOKENS, _NO_TOKENS, no_masks, top_count
        )
    return _pack_extras(tasks, extras, vocabulary, top_count)


def _pack_extras(
    tasks: npt.NDArray[np.void], extras: list[tuple[int, SampleRow]], vocabulary: int, top_count: int
) -> PackedRows:
    bias: list[PackedParams] = []
    banned: list[Int32] = []
    history: list[Int32] = []
    masks: list[UInt32] = []
    bias_start = banned_start = history_start = 0
    words = (vocabulary + 31) // 32
    for i, row in extras:
        task = tasks[i]
        if len(row.packed.bias_ids):
            task["bias_start"] = bias_start
            bias_start += len(row.packed.bias_ids)
            bias.append(row.packed)
        if row.banned_ids:
            ids = _checked_ids("banned_ids", np.asarray(row.banned_ids, np.int64), vocabulary)
            task["banned_start"], task["banned_count"] = banned_start, len(ids)
            banned_start += len(ids)
            banned.append(ids)
        if row.packed.needs_history:
            ids = _checked_history(row, vocabulary)
            task["history_start"], task["history_count"] = history_start, len(ids)
            task["prompt_count"] = row.prompt_tokens
            history_start += len(ids)
            history.append(ids)
        if row.allowed_mask is not None:
            if row.allowed_mask.shape != (words,) or row.allowed_mask.dtype != np.uint32:
                raise RequestError(
                    f"allowed_mask is {row.allowed_mask.dtype} {row.allowed_mask.shape}; allowed: uint32 ({words},)"
                )
            task["mask_row"] = len(masks)
            masks.append(row.allowed_mask)
        if row.forced_token is not None:
            _checked_ids("forced_token", np.array([row.forced_token], np.int64), vocabulary)
            task["forced_token"] = row.forced_token
    return PackedRows(
        tasks,
        _joined(bias, lambda p: p.bias_ids, np.int32),
        _joined(bias, lambda p: p.bias_values, np.float32),
        _joined(banned, lambda a: a, np.int32),
        _joined(history, lambda a: a, np.int32),
        np.stack(masks) if masks else np.zeros((0, words), np.uint32),
        top_count,
    )


def _joined(items: list, part: Callable, dtype: type) -> npt.NDArray:  # type: ignore[type-arg]
    return np.concatenate([part(item) for item in items]) if items else np.zeros(0, dtype)


def _checked_ids(name: str, ids: npt.NDArray[np.integer], vocabulary: int) -> Int32:
    if len(ids) and not (0 <= ids.min() and ids.max() < vocabulary):
        raise RequestError(f"{name} has {ids.min()} to {ids.max()}; allowed: 0 to {vocabulary - 1}")
    return ids.astype(np.int32, copy=False)


def _checked_history(row: SampleRow, vocabulary: int) -> Int32:
    if row.history is None:
        raise RequestError("a row with penalties came without the sequence's token ids (history)")
    if not 0 <= row.prompt_tokens <= len(row.history):
        raise RequestError(f"prompt_tokens is {row.prompt_tokens}; allowed: 0 to {len(row.history)}")
    return _checked_ids("history", row.history, vocabulary)
