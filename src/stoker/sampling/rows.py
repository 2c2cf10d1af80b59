"""What is to be sampled: one `SampleRow` per row of logits, packed into flat arrays for one native call.

The part that stays the same through a request is packed once (`pack_params`); a step joins those bytes and
fills in what changed. The record's fields are those of `SampleRecord` in native/sample.h.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from struct import Struct
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from stoker.api.errors import RequestError
from stoker.api.request import SEEDS, SamplingParams

Int32 = npt.NDArray[np.int32]
Integers = npt.NDArray[np.int32] | npt.NDArray[np.int64]
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
LEAST_MIN_P = 2.0**-100  # nothing so improbable is ever drawn; keeps the float32 logarithm in range
_LEAST_FLOAT32 = float(np.finfo(np.float32).min)
_POSITION_BEGIN = 8  # bytes of a record before its position, and up to its end
_POSITION_END = 16
_pack_position = Struct("<q").pack
_NO_TOKENS = np.zeros(0, np.int32)
_NO_VALUES = np.zeros(0, np.float32)


@dataclass(frozen=True, slots=True, eq=False)
class PackedParams:
    """Sampling parameters of one choice of one request, ready for the native call. Made by `pack_params`."""

    params: SamplingParams
    seed: int
    record: bytes  # one TASK
    bias_ids: Int32  # [B], ascending
    bias_values: Float32  # [B]
    needs_history: bool  # a penalty is on: rows must bring the sequence's token ids
    # Nothing but the position changes from step to step, unless the row itself brings a ban or mask: a row is
    # `head`, the position's 8 bytes, `tail`.
    is_plain: bool
    head: bytes
    tail: bytes
    top_count: int  # of the likeliest tokens wanted beside each


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
    record = task.tobytes()
    needs_history = (
        params.repetition_penalty != 1 or params.frequency_penalty != 0 or params.presence_penalty != 0
    )
    return PackedParams(
        params=params,
        seed=seed,
        record=record,
        bias_ids=np.array(bias_ids, np.int32),
        bias_values=np.array([_bias(params.logit_bias[i]) for i in bias_ids], np.float32),
        needs_history=needs_history,
        is_plain=not needs_history and not bias_ids,
        head=record[:_POSITION_BEGIN],
        tail=record[_POSITION_END:],
        top_count=params.logprobs or 0,
    )


def _bias(value: float) -> float:
    """Within float32: what is more negative is as good as that; minus infinity bans the token and stays."""
    return value if value == -math.inf else max(value, _LEAST_FLOAT32)


class SampleRow(NamedTuple):
    """One row of logits to turn into a token. A tuple, since each step makes one for each sequence.

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

    records: bytes  # R of TASK
    bias_ids: Int32
    bias_values: Float32
    banned_ids: Int32
    history: Int32
    masks: UInt32  # [M, ceil(vocabulary / 32)]
    top_count: int  # K

    @property
    def tasks(self) -> npt.NDArray[np.void]:
        """[R] the records with named fields, read-only."""
        return np.frombuffer(self.records, TASK)


def pack_rows(rows: Sequence[SampleRow], vocabulary: int) -> PackedRows:
    """Flat arrays for `rows`; checks what a row brings against the vocabulary.

    Raises `RequestError`: token ids outside the vocabulary, a mask of the wrong length, missing history.
    """
    parts: list[bytes] = []
    extras: list[tuple[int, SampleRow]] = []
    top_count = 0
    for row in rows:
        packed, position, _, _, banned_ids, mask, forced_token = row
        if not packed.is_plain or banned_ids or mask is not None or forced_token is not None:
            extras.append((len(parts) // 3, row))
        parts += (packed.head, _pack_position(position), packed.tail)
        if packed.top_count > top_count:
            top_count = packed.top_count
    records = b"".join(parts)
    if extras:
        return _pack_extras(np.frombuffer(records, TASK).copy(), extras, vocabulary, top_count)
    return PackedRows(
        records, _NO_TOKENS, _NO_VALUES, _NO_TOKENS, _NO_TOKENS, _no_masks((vocabulary + 31) // 32), top_count
    )


@lru_cache(maxsize=4)
def _no_masks(words: int) -> UInt32:
    return np.zeros((0, words), np.uint32)


def _pack_extras(
    tasks: npt.NDArray[np.void], extras: list[tuple[int, SampleRow]], vocabulary: int, top_count: int
) -> PackedRows:
    bias = [(i, row.packed) for i, row in extras if len(row.packed.bias_ids)]
    bias_ids = _spans(tasks, "bias", [(i, packed.bias_ids) for i, packed in bias])
    banned = _spans(
        tasks, "banned", [(i, np.array(row.banned_ids, np.int64)) for i, row in extras if row.banned_ids]
    )
    penalised = [(i, row) for i, row in extras if row.packed.needs_history]
    history = _spans(tasks, "history", [(i, _history_of(row)) for i, row in penalised])
    _fill(tasks, "prompt_count", [(i, row.prompt_tokens) for i, row in penalised])
    forced = [(i, row.forced_token) for i, row in extras if row.forced_token is not None]
    for _, token_id in forced:
        if not 0 <= token_id < vocabulary:
            raise RequestError(f"forced_token is {token_id}; allowed: 0 to {vocabulary - 1}")
    _fill(tasks, "forced_token", forced)
    masked = [(i, row.allowed_mask) for i, row in extras if row.allowed_mask is not None]
    _fill(tasks, "mask_row", [(i, m) for m, (i, _) in enumerate(masked)])
    return PackedRows(
        tasks.tobytes(),
        _checked_ids("logit_bias", bias_ids, vocabulary),
        np.concatenate([packed.bias_values for _, packed in bias]) if bias else _NO_VALUES,
        _checked_ids("banned_ids", banned, vocabulary),
        _checked_ids("history", history, vocabulary),
        _stacked_masks([mask for _, mask in masked], (vocabulary + 31) // 32),
        top_count,
    )


def _fill(tasks: npt.NDArray[np.void], field: str, values: list[tuple[int, int]]) -> None:
    if values:
        tasks[field][[i for i, _ in values]] = [value for _, value in values]


def _spans(tasks: npt.NDArray[np.void], field: str, parts: list[tuple[int, Integers]]) -> Integers:
    """Joins the rows' arrays and notes in the tasks where each begins and how long it is."""
    if not parts:
        return _NO_TOKENS
    start = 0
    starts: list[tuple[int, int]] = []
    for i, part in parts:
        starts.append((i, start))
        start += len(part)
    _fill(tasks, f"{field}_start", starts)
    _fill(tasks, f"{field}_count", [(i, len(part)) for i, part in parts])
    return np.concatenate([part for _, part in parts])


def _stacked_masks(masks: list[UInt32], words: int) -> UInt32:
    for mask in masks:
        if mask.shape != (words,) or mask.dtype != np.uint32:
            raise RequestError(f"allowed_mask is {mask.dtype} {mask.shape}; allowed: uint32 ({words},)")
    return np.stack(masks) if masks else _no_masks(words)


def _checked_ids(name: str, ids: Integers, vocabulary: int) -> Int32:
    if len(ids) and (ids.min() < 0 or ids.max() >= vocabulary):
        raise RequestError(f"{name} has token ids {ids.min()} to {ids.max()}; allowed: 0 to {vocabulary - 1}")
    return ids.astype(np.int32, copy=False)


def _history_of(row: SampleRow) -> Int32:
    if row.history is None:
        raise RequestError("a row with penalties came without the sequence's token ids (history)")
    if not 0 <= row.prompt_tokens <= len(row.history):
        raise RequestError(f"prompt_tokens is {row.prompt_tokens}; allowed: 0 to {len(row.history)}")
    return row.history
