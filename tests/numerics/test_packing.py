"""Packed panels: native against the numpy twin (bytes), and both against the gguf package's values (bits)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.api.errors import ModelFormatError
from stoker.weights.ggml_type import SUPPORTED_TYPE_NAMES
from stoker.weights.gguf import GGUFFile, TensorInfo
from stoker.weights.packing import (
    LAYOUTS,
    dequantize_reference,
    pack_reference,
    packed_layout,
    unpack_reference,
)

gguf = pytest.importorskip("gguf", reason="the gguf package is the outside judge of these tests")
native = pytest.importorskip("stoker._native", reason="the native core is not built")

# Byte offsets of the float16 scales and minimums in a block of each type.
SCALE_OFFSETS = {
    2: (0,), 3: (0, 2), 6: (0,), 7: (0, 2), 8: (0,), 20: (0,),
    10: (80, 82), 11: (108,), 12: (0, 2), 13: (0, 2), 14: (208,),
}  # fmt: skip
QUANTISED = sorted(SCALE_OFFSETS)
ROWS = (1, 3, 15, 16, 17, 33)


def type_name(kind: int) -> str:
    return LAYOUTS[kind].ggml_type.name


type_ids = pytest.mark.parametrize("kind", sorted(LAYOUTS), ids=type_name)
quantised_ids = pytest.mark.parametrize("kind", QUANTISED, ids=type_name)


def unit_columns(kind: int) -> int:
    """The smallest step of the column count that a test takes; odd for float types, which allow any."""
    block = LAYOUTS[kind].block_columns
    return block if block > 1 else 9


def random_tensor(kind: int, rows: int, columns: int, seed: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """Random bytes of a whole tensor: any quant, sub-scale and finite float16, no NaN or infinity."""
    layout = LAYOUTS[kind]
    blocks = np.random.default_rng(seed).integers(
        0, 256, (rows * columns // layout.block_columns, layout.block_bytes), np.uint8
    )
    if layout.is_float:
        blocks[:, -1] &= 0xBF  # the top exponent bit off
    for offset in SCALE_OFFSETS.get(kind, ()):
        infinite = (blocks[:, offset + 1] & 0x7C) == 0x7C
        blocks[infinite, offset + 1] &= 0xFB
    return blocks.reshape(-1)


def outside_values(kind: int, raw: Any, rows: int, columns: int) -> Any:
    """What the gguf package reads, float32 [rows, columns]."""
    by_row = np.ascontiguousarray(raw).reshape(rows, -1)
    return gguf.quants.dequantize(by_row, gguf.GGMLQuantizationType(kind)).reshape(rows, columns)


def assert_same_bits(got: Any, want: Any) -> None:
    assert got.dtype == want.dtype == np.float32
    np.testing.assert_array_equal(np.ascontiguousarray(got).view(np.uint32), want.view(np.uint32))


@type_ids
@pytest.mark.parametrize("units", [1, 2, 3])
def test_all_readers_agree(kind: int, units: int) -> None:
    columns = units * unit_columns(kind)
    for rows in ROWS:
        raw = random_tensor(kind, rows, columns, seed=1000 * units + rows)
        want = outside_values(kind, raw, rows, columns)
        panels = pack_reference(kind, raw, rows, columns)
        matrix = native.PackedMatrix.pack(kind, raw, rows, columns)
        assert (matrix.rows, matrix.columns, matrix.nbytes) == (rows, columns, panels.nbytes)
        np.testing.assert_array_equal(matrix.panels_bytes(), panels)
        assert_same_bits(dequantize_reference(kind, raw, rows, columns), want)
        assert_same_bits(unpack_reference(kind, panels, rows, columns), want)
        assert_same_bits(matrix.unpack(0, rows), want)


@type_ids
def test_single_elements_are_those_of_the_rows(kind: int) -> None:
    rows, columns = 17, 2 * unit_columns(kind)
    raw = random_tensor(kind, rows, columns, seed=7)
    matrix = native.PackedMatrix.pack(kind, raw, rows, columns)
    want = outside_values(kind, raw, rows, columns)
    got = [[matrix.element(row, column) for column in range(columns)] for row in range(rows)]
    assert_same_bits(np.array(got, np.float32), want)
    for row, column in ((rows, 0), (-1, 0), (0, columns), (0, -1)):
        with pytest.raises(ValueError, match="element"):
            matrix.element(row, column)


@settings(max_examples=60, deadline=None)
@given(
    kind=st.sampled_from(sorted(LAYOUTS)),
    rows=st.integers(1, 70),
    units=st.integers(1, 5),
    threads=st.integers(1, 9),
    seed=st.integers(0, 2**32),
)
def test_threads_and_shape_do_not_matter(kind: int, rows: int, units: int, threads: int, seed: int) -> None:
    columns = units * unit_columns(kind)
    raw = random_tensor(kind, rows, columns, seed)
    matrix = native.PackedMatrix.pack(kind, raw, rows, columns, threads=threads)
    np.testing.assert_array_equal(matrix.panels_bytes(), pack_reference(kind, raw, rows, columns))
    begin = seed % rows
    assert_same_bits(matrix.unpack(begin, rows), outside_values(kind, raw, rows, columns)[begin:])


@quantised_ids
def test_missing_rows_are_zero_bytes(kind: int) -> None:
    """The twin pads with zeros by construction; here the sections are taken apart without it."""
    layout, rows, columns = LAYOUTS[kind], 5, 512
    raw = random_tensor(kind, rows, columns, seed=kind)
    panel = native.PackedMatrix.pack(kind, raw, rows, columns).panels_bytes()[0]
    start, parts = layout.scale_section_bytes(columns), 2 if layout.has_min else 1
    scales = panel[:start].reshape(2, -1) if layout.two_level else panel[:start].reshape(1, -1)
    halves_bytes = 32 * parts if layout.two_level else start
    halves = np.ascontiguousarray(scales[:, :halves_bytes]).view(np.uint16).reshape(-1, 16)
    fine = scales[:, halves_bytes : halves_bytes + 16 * parts * (256 // layout.group)].reshape(-1, 16)
    blocks = panel[start:].reshape(columns // 32, -1)
    vectors = blocks[:, 64 if layout.bits == 5 else 0 :].reshape(-1, 16, 4)
    fields = [halves, vectors] + ([fine] if layout.two_level else [])
    for field in fields:
        assert field[:, :rows].any()
        assert not field[:, rows:].any()
    if layout.bits == 5:
        masks = np.ascontiguousarray(blocks[:, :64]).view(np.uint64)
        assert masks.any()
        assert not (masks >> np.uint64(4 * rows)).any()


@quantised_ids
@pytest.mark.parametrize("bits", [0x7C00, 0xFC00, 0x7E00, 0xFC01], ids=["inf", "-inf", "nan", "-nan"])
def test_bad_scale_is_refused_with_its_place(kind: int, bits: int) -> None:
    layout, rows, units = LAYOUTS[kind], 40, 3
    columns = units * layout.block_columns
    for offset in SCALE_OFFSETS[kind]:
        raw = random_tensor(kind, rows, columns, seed=offset)
        blocks = raw.reshape(rows, units, layout.block_bytes)
        # The later place in the panel's own order, the earlier in row order, must be the one named.
        for row, unit in ((21, 2), (22, 0), (39, 1)):
            blocks[row, unit, offset : offset + 2] = np.array([bits], np.uint16).view(np.uint8)
        place = rf"row 21\b.*column {2 * layout.block_columns}\b"
        for threads in (1, 3):
            with pytest.raises(ValueError, match=place):
                native.PackedMatrix.pack(kind, raw, rows, columns, threads=threads)
        with pytest.raises(ModelFormatError, match=place):
            pack_reference(kind, raw, rows, columns)


def test_scale_limits_are_exact() -> None:
    """Signed zeros, subnormals and the largest float16 as scale, with every quant of Q4_1 and Q8_0."""
    limits = np.array([0, 0x8000, 1, 0x8001, 0x03FF, 0x0400, 0x7BFF, 0xFBFF], np.uint16)
    for kind in (2, 3, 8):
        layout = LAYOUTS[kind]
        blocks = random_tensor(kind, len(limits), 32 * len(limits), seed=kind).reshape(
            len(limits), len(limits), layout.block_bytes
        )
        blocks[:, :, :2] = limits[:, None].view(np.uint8)[:, None]
        if layout.has_min:
            blocks[:, :, 2:4] = limits[:, None].view(np.uint8)[None]
        shape = (len(limits), 32 * len(limits))
        raw = blocks.reshape(-1)
        matrix = native.PackedMatrix.pack(kind, raw, *shape)
        assert_same_bits(matrix.unpack(0, len(limits)), outside_values(kind, raw, *shape))


def test_floats_pass_whatever_they_are() -> None:
    """NaN payloads and infinities of F32, F16 and BF16 elements are data, kept bit for bit in the panels."""
    for kind in (0, 1, 30):
        size = LAYOUTS[kind].block_bytes
        raw = np.random.default_rng(kind).integers(0, 256, 3 * 7 * size, np.uint8)
        raw[size - 2 : size] = 0xFF
        panel = native.PackedMatrix.pack(kind, raw, 3, 7).panels_bytes()[0, : 7 * 16 * size]
        rows = panel.reshape(7, 16, size)[:, :3].transpose(1, 0, 2)
        np.testing.assert_array_equal(rows.reshape(-1), raw)


@pytest.mark.parametrize(
    ("kind", "rows", "columns"),
    [
        (3, 2**31 + 1, 32),
        (12, 2**40, 2**40),
        (0, 2**62, 2**62),
        (9, 1, 32),
        (-1, 1, 32),
        (31, 1, 32),
        (3, 1, 31),
        (3, 1, 0),
        (12, 1, 128),
        (3, 0, 32),
        (3, -1, 32),
    ],
)
def test_wrong_shapes_and_types_are_refused(kind: int, rows: int, columns: int) -> None:
    raw = np.zeros(4096, np.uint8)
    with pytest.raises(ValueError):
        native.PackedMatrix.pack(kind, raw, rows, columns)
    for read in (pack_reference, dequantize_reference):
        with pytest.raises(ModelFormatError):
            read(kind, raw, rows, columns)


def test_what_was_read_may_go_while_the_rest_is_packed() -> None:
    """`read_up_to` hears of every byte once it is not needed any more: here it is overwritten at once."""
    rows, columns = 20_000, 2048  # some slabs and a shorter one
    kept = random_tensor(8, rows, columns, 0)
    raw, seen = kept.copy(), [0]

    def overwrite(up_to_bytes: int) -> None:
        raw[seen[-1] : up_to_bytes] = 0xFF
        seen.append(up_to_bytes)

    matrix = native.PackedMatrix.pack(8, raw, rows, columns, threads=2, read_up_to=overwrite)
    assert len(seen) > 3
    assert seen == sorted(set(seen))
    assert seen[-1] == len(raw)
    np.testing.assert_array_equal(
        matrix.panels_bytes(), native.PackedMatrix.pack(8, kept, rows, columns).panels_bytes()
    )


def test_matrices_outlive_their_neighbours() -> None:
    """Small matrices share memory: what is kept must stay as it was while others come and go."""
    kept = {}
    for seed in range(60):
        rows = 300 + seed
        raw = random_tensor(8, rows, 1024, seed)
        kept[seed] = (raw, rows, native.PackedMatrix.pack(8, raw, rows, 1024))
        if seed % 3:
            del kept[seed]
    for raw, rows, matrix in kept.values():
        np.testing.assert_array_equal(matrix.panels_bytes(), pack_reference(8, raw, rows, 1024))


def test_wrong_sizes_are_refused() -> None:
    for size in (0, 19, 21, 40):
        raw = np.zeros(size, np.uint8)
        with pytest.raises(ValueError):
            native.PackedMatrix.pack(3, raw, 1, 32)
        with pytest.raises(ModelFormatError, match="20 bytes"):
            pack_reference(3, raw, 1, 32)
    with pytest.raises(ModelFormatError, match="uint8"):
        unpack_reference(3, np.zeros((1, 100), np.uint8), 1, 32)
    matrix = native.PackedMatrix.pack(3, np.zeros(40, np.uint8), 2, 32)
    for begin, end in ((-1, 1), (0, 3), (2, 1)):
        with pytest.raises(ValueError):
            matrix.unpack(begin, end)
    assert matrix.unpack(1, 1).shape == (0, 32)


def test_supported_types_are_those_with_a_layout() -> None:
    assert {layout.ggml_type.name for layout in LAYOUTS.values()} == set(SUPPORTED_TYPE_NAMES)


def test_unknown_type_lists_the_known() -> None:
    with pytest.raises(ModelFormatError, match=r"99 .*IQ4_NL 20.*Q4_K 12"):
        packed_layout(99)


def sampled_rows(raw: Any, info: TensorInfo) -> tuple[Any, int]:
    """At most 256 rows: the first and last 128 of a tensor, as bytes, and how many."""
    rows = info.n_elements // info.shape[-1]
    by_row = raw.reshape(rows, -1)
    if rows <= 256:
        return raw, rows
    return np.concatenate([by_row[:128], by_row[-128:]]).reshape(-1), 256


@pytest.mark.model
@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_every_tensor_of_a_real_model(fixture: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(fixture)
    with GGUFFile.open(path) as file:
        assert file.tensors
        for info in file.tensors.values():
            kind, columns = info.type.type_id, info.shape[-1]
            raw, rows = sampled_rows(file.data(info), info)
            matrix = native.PackedMatrix.pack(kind, raw, rows, columns, threads=2)
            np.testing.assert_array_equal(matrix.panels_bytes(), pack_reference(kind, raw, rows, columns))
            want = outside_values(kind, raw, rows, columns)
            assert_same_bits(matrix.unpack(0, rows), want)
            assert_same_bits(dequantize_reference(kind, raw, rows, columns), want)
