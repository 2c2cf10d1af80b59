"""A batch that contradicts itself is refused before anything is written, by both checks in the same words."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.api.errors import EngineError
from stoker.kernels.interpreter import check_batch
from stoker.kernels.program import NO_ROWS, Batch

_native = pytest.importorskip("stoker._native", reason="the native core is not built: make builds it")

VOCABULARY, BLOCKS, CONTEXT, MOST_TOKENS = 50, 40, 100, 64
FIELDS = (
    "token_ids", "positions", "query_start", "kv_tokens", "block_tables", "logit_rows", "hidden_rows",
    "kv_copies",
)  # fmt: skip


def _int32(values: Any) -> npt.NDArray[np.int32]:
    return np.array(values, np.int32)


def _batch() -> Batch:
    """Three sequences: a decode, a whole prompt of 20, the end of one of 40; two copies into past slots."""
    tables = np.full((3, 4), -1, np.int32)
    tables[0, :2], tables[1, :2], tables[2, :3] = (4, 5), (6, 7), (8, 9, 10)
    return Batch(
        token_ids=np.arange(25, dtype=np.int32),
        positions=_int32([30, *range(20), *range(36, 40)]),
        query_start=_int32([0, 1, 21, 25]),
        kv_tokens=_int32([31, 20, 40]),
        block_tables=tables,
        logit_rows=_int32([0, 20, 24]),
        hidden_rows=_int32([1, 2, 23]),
        kv_copies=_int32([[1, 0], [3, 2]]),
    )


@pytest.fixture(scope="module")
def program() -> Any:
    """The smallest program there is: token ids to rows of a table, which are logits and hidden states."""
    pool = _native.ThreadPool(1)
    cache = _native.KvCache(True, [(1, 32)], BLOCKS)
    made = _native.Program(pool, cache, MOST_TOKENS, VOCABULARY, CONTEXT)
    table = np.arange(VOCABULARY * VOCABULARY, dtype=np.float32)
    packed = _native.PackedMatrix.pack(0, table.view(np.uint8), VOCABULARY, VOCABULARY)
    rows = _native.Rows
    embedded, hidden, selected = (
        made.float_buffer(VOCABULARY, kind) for kind in (rows.TOKENS, rows.HIDDEN, rows.LOGITS)
    )
    made.embed(embedded, packed, 1.0)
    made.select(embedded, hidden, rows.HIDDEN)
    made.return_hidden(hidden)
    made.select(embedded, selected, rows.LOGITS)
    return made


def _python_says(batch: Batch) -> str | None:
    try:
        check_batch(batch, vocabulary=VOCABULARY, num_blocks=BLOCKS, context_tokens=CONTEXT)
    except EngineError as error:
        return str(error)
    return None


def _native_says(program: Any, batch: Batch) -> str | None:
    try:
        program.run(*(getattr(batch, name) for name in FIELDS))
    except ValueError as error:
        return str(error)
    return None


def test_a_good_batch_runs(program: Any) -> None:
    batch = _batch()
    assert _python_says(batch) is None
    logits, hidden = program.run(*(getattr(batch, name) for name in FIELDS))
    assert logits[:, 0].tolist() == [0.0, 20.0 * VOCABULARY, 24.0 * VOCABULARY]
    assert hidden[:, 0].tolist() == [1.0 * VOCABULARY, 2.0 * VOCABULARY, 23.0 * VOCABULARY]
    without = dataclasses.replace(batch, hidden_rows=NO_ROWS)
    logits, hidden = program.run(*(getattr(without, name) for name in FIELDS))
    assert hidden is None
    assert len(logits) == 3


def test_hidden_rows_of_a_program_without_hidden_states_are_refused() -> None:
    made = _native.Program(
        _native.ThreadPool(1), _native.KvCache(True, [(1, 32)], BLOCKS), MOST_TOKENS, VOCABULARY, CONTEXT
    )
    with pytest.raises(ValueError, match="hidden_rows has 3 rows; allowed: none"):
        made.run(*(getattr(_batch(), name) for name in FIELDS))


def _set(field: str, index: Any, value: Any) -> Batch:
    array = getattr(_batch(), field).copy()
    array[index] = value
    return dataclasses.replace(_batch(), **{field: array})


WRONG = [
    (_set("token_ids", 3, VOCABULARY), "batch.token_ids holds 50; allowed: 0 to 49"),
    (_set("token_ids", 0, -1), "batch.token_ids holds -1"),
    (_set("query_start", 0, 1), "batch.query_start[0] is 1"),
    (_set("query_start", 1, 0), "batch.query_start[1] is 0"),
    (_set("query_start", 1, 21), "batch.query_start[2] is 21"),
    (_set("query_start", 1, -(2**31)), "batch.query_start[1]"),
    (_set("query_start", 3, 24), "batch.query_start[3] is 24; allowed: numbers rising from 0 to 25"),
    (_set("kv_tokens", 0, 0), "batch.kv_tokens holds 0; allowed: 1 to 100"),
    (_set("kv_tokens", 0, CONTEXT + 1), "batch.kv_tokens holds 101"),
    (_set("kv_tokens", 1, 19), "batch.kv_tokens[1] is 19; allowed: at least its 20 tokens"),
    (_set("kv_tokens", 2, 41), "batch.positions[21] is 36; allowed: 37"),
    (_set("positions", 0, -1), "batch.positions[0] is -1; allowed: 30"),
    (_set("positions", 24, 2**31 - 1), "batch.positions[24]"),
    (_set("block_tables", (0, 0), BLOCKS), "batch.block_tables holds 40; allowed: 0 to 39"),
    (_set("block_tables", (2, 2), -1), "batch.block_tables holds -1"),
    (_set("block_tables", (2, 2), 6), "share a slot of block 6"),
    (_set("block_tables", (1, 1), 6), "share a slot of block 6"),
    (_set("logit_rows", 2, 25), "batch.logit_rows holds 25; allowed: 0 to 24"),
    (_set("logit_rows", 1, 0), "batch.logit_rows[1] is 0; allowed: rising numbers"),
    (_set("hidden_rows", 2, 25), "batch.hidden_rows holds 25; allowed: 0 to 24"),
    (_set("hidden_rows", 0, -1), "batch.hidden_rows holds -1; allowed: 0 to 24"),
    (_set("hidden_rows", 1, 1), "batch.hidden_rows[1] is 1; allowed: rising numbers"),
    (_set("kv_copies", (1, 0), 25), "kv_copies[1] copies token 25 for sequence 2; allowed: tokens 0 to 24"),
    (_set("kv_copies", (0, 1), -1), "batch.kv_copies[0] copies token 1 for sequence -1"),
    (_set("kv_copies", (1, 1), 1), "batch.kv_copies[1] is of position 2; allowed: before position 0"),
    (_set("kv_copies", (1, 0), 0), "batch.kv_copies[1] is not behind the one before it"),
    (_set("kv_copies", 0, [3, 2]), "batch.kv_copies[1] is not behind the one before it"),
    (
        dataclasses.replace(_set("block_tables", (0, 0), 8), kv_copies=_int32([[3, 0], [3, 2]])),
        "share a slot of block 8",
    ),
    (_set("block_tables", (0, 0), 6), "share a slot of block 6"),
    (dataclasses.replace(_batch(), positions=_int32([1])), "batch.positions has 1 entries; allowed: 25"),
    (dataclasses.replace(_batch(), query_start=_int32([0, 25])), "batch.query_start has 2 entries"),
    (dataclasses.replace(_batch(), block_tables=_batch().block_tables[:2]), "batch.block_tables has 2"),
    (
        dataclasses.replace(_batch(), block_tables=_batch().block_tables[:, :2].copy()),
        "batch.block_tables has 2 columns; allowed: at least 3",
    ),
    (dataclasses.replace(_batch(), kv_tokens=_int32([])), "batch has 0 sequences and 25 tokens"),
    (dataclasses.replace(_batch(), token_ids=_int32([])), "batch has 3 sequences and 0 tokens"),
]


@pytest.mark.parametrize(("batch", "words"), WRONG, ids=[words for _, words in WRONG])
def test_both_refuse_in_the_same_words(program: Any, batch: Batch, words: str) -> None:
    said = _python_says(batch)
    assert said is not None
    assert words in said
    assert _native_says(program, batch) == said


def test_slots_of_one_block_may_be_shared_out(program: Any) -> None:
    """Two sequences in one block, in different slots: odd, but nothing is overwritten."""
    batch = Batch(
        token_ids=_int32([1, 2]),
        positions=_int32([3, 4]),
        query_start=_int32([0, 1, 2]),
        kv_tokens=_int32([4, 5]),
        block_tables=_int32([[7], [7]]),
        logit_rows=_int32([1]),
    )
    assert _python_says(batch) is None
    assert _native_says(program, batch) is None


@pytest.mark.parametrize("batch", [_set("block_tables", (0, 0), 8), _set("kv_copies", 0, [3, 0])])
def test_a_token_may_be_copied_to_several_and_a_block_hold_several_copies(program: Any, batch: Batch) -> None:
    assert _python_says(batch) is None
    assert _native_says(program, batch) is None


def test_arrays_of_other_types_are_not_converted(program: Any) -> None:
    batch = dataclasses.replace(_batch(), token_ids=np.arange(25))  # type: ignore[arg-type]  # int64
    with pytest.raises(TypeError):
        program.run(*(getattr(batch, name) for name in FIELDS))
    assert "token_ids is int64" in str(_python_says(batch))


_NUMBERS = st.integers(-2, 45) | st.sampled_from([-(2**31), 2**31 - 1, CONTEXT, CONTEXT + 1])


@settings(max_examples=300, deadline=None)
@given(
    changes=st.lists(st.tuples(st.sampled_from(FIELDS), st.integers(0, 30), _NUMBERS), min_size=1, max_size=3)
)
def test_whatever_is_wrong_both_say_the_same(program: Any, changes: list[tuple[str, int, int]]) -> None:
    arrays = {name: getattr(_batch(), name).copy() for name in FIELDS}
    for name, place, value in changes:
        arrays[name].flat[place % arrays[name].size] = value
    batch = Batch(**arrays)
    assert _native_says(program, batch) == _python_says(batch)


@settings(max_examples=100, deadline=None)
@given(data=st.data())
def test_shared_slots_are_found_wherever_they_are(program: Any, data: st.DataObject) -> None:
    """Small sequences over few blocks, so that written slots often meet."""
    counts = data.draw(st.lists(st.integers(1, 20), min_size=1, max_size=3))
    before = [data.draw(st.integers(0, 30)) for _ in counts]
    tables = data.draw(
        st.lists(
            st.lists(st.integers(0, 5), min_size=4, max_size=4), min_size=len(counts), max_size=len(counts)
        )
    )
    batch = Batch(
        token_ids=np.zeros(sum(counts), np.int32),
        positions=_int32([p for b, n in zip(before, counts, strict=True) for p in range(b, b + n)]),
        query_start=_int32([0, *np.cumsum(counts)]),
        kv_tokens=_int32([b + n for b, n in zip(before, counts, strict=True)]),
        block_tables=_int32(tables),
        logit_rows=_int32([]),
    )
    assert _native_says(program, batch) == _python_says(batch)
