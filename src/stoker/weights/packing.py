"""The packed weight layouts in numpy: the twin of ``native/pack.cc`` and the plain reading of GGUF blocks.

``dequantize_reference`` states what the file means, ``pack_reference`` where each quant and scale goes in a
panel, ``unpack_reference`` what a panel means. The native packer must agree with all three, bit for bit.
Drawn in docs/concepts/packed-weights.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import NDArray

from stoker.api.errors import ModelFormatError
from stoker.weights.ggml_type import GGMLType

Bytes = NDArray[np.uint8]
Floats = NDArray[np.float32]

PANEL_ROWS = 16  # one 512-bit register of 32-bit sums
BLOCK_COLUMNS = 32  # one group of activations
SUPER_COLUMNS = 256  # a K-quant's superblock


@dataclass(frozen=True, slots=True)
class PackedLayout:
    """How the panels of one type read: value = scale * (q - offset) + minimum.

    A float type has ``bits == 0``: its panel is [columns][16] elements of ``block_bytes`` each.
    """

    ggml_type: GGMLType
    bits: int = 0  # 4, 5 or 8 per quant in the panel; 0 for float types
    group: int = 0  # columns per scale
    offset: int = 0
    has_min: bool = False
    two_level: bool = False  # scale = d * sc, minimum = -(dmin * mn)
    signed_scale: bool = False  # sc is int8

    @property
    def block_columns(self) -> int:
        """Columns of one block in the file: 1, 32 or 256."""
        return self.ggml_type.block_size

    @property
    def block_bytes(self) -> int:
        """Bytes of one block in the file."""
        return self.ggml_type.block_bytes

    @property
    def is_float(self) -> bool:
        """Whether the elements keep the file's own float type."""
        return self.bits == 0

    @property
    def quant_block_bytes(self) -> int:
        """Panel bytes of the quants of 16 rows x 32 columns."""
        return {4: 256, 5: 320, 8: 512}[self.bits]

    def row_bytes(self, columns: int) -> int:
        """Bytes of one row in the file. Raises ModelFormatError unless whole blocks fill it."""
        if columns < 1 or columns % self.block_columns:
            raise ModelFormatError(
                f"a {self.ggml_type.name} row has {columns} columns; "
                f"it needs a positive multiple of {self.block_columns}"
            )
        return columns // self.block_columns * self.block_bytes

    def scale_section_bytes(self, columns: int) -> int:
        """Bytes of a panel before its quants, a multiple of 64; 0 for float types."""
        if self.is_float:
            return 0
        parts = 2 if self.has_min else 1
        if not self.two_level:
            return _align64(columns // BLOCK_COLUMNS * 32 * parts)
        groups = SUPER_COLUMNS // self.group
        return _align64(columns // SUPER_COLUMNS * (32 + 16 * groups) * parts)

    def panel_bytes(self, columns: int) -> int:
        """Bytes of a panel of 16 rows, a multiple of 64."""
        if self.is_float:
            return _align64(columns * PANEL_ROWS * self.block_bytes)
        return self.scale_section_bytes(columns) + columns // BLOCK_COLUMNS * self.quant_block_bytes


def _align64(count_bytes: int) -> int:
    return -(-count_bytes // 64) * 64


_ALL = (
    PackedLayout(GGMLType.F32),
    PackedLayout(GGMLType.F16),
    PackedLayout(GGMLType.BF16),
    PackedLayout(GGMLType.Q4_0, bits=4, group=32, offset=8),
    PackedLayout(GGMLType.Q4_1, bits=4, group=32, has_min=True),
    PackedLayout(GGMLType.Q5_0, bits=5, group=32, offset=16),
    PackedLayout(GGMLType.Q5_1, bits=5, group=32, has_min=True),
    PackedLayout(GGMLType.Q8_0, bits=8, group=32, offset=128),
    PackedLayout(GGMLType.IQ4_NL, bits=8, group=32, offset=128),
    PackedLayout(GGMLType.Q2_K, bits=4, group=16, has_min=True, two_level=True),
    PackedLayout(GGMLType.Q3_K, bits=4, group=16, offset=4, two_level=True, signed_scale=True),
    PackedLayout(GGMLType.Q4_K, bits=4, group=32, has_min=True, two_level=True),
    PackedLayout(GGMLType.Q5_K, bits=5, group=32, has_min=True, two_level=True),
    PackedLayout(GGMLType.Q6_K, bits=8, group=16, offset=32, two_level=True, signed_scale=True),
)
LAYOUTS: Mapping[int, PackedLayout] = MappingProxyType({each.ggml_type.type_id: each for each in _ALL})


def packed_layout(ggml_type: int) -> PackedLayout:
    """The layout of a tensor type. Raises ModelFormatError naming the known types."""
    if ggml_type not in LAYOUTS:
        known = ", ".join(f"{each.ggml_type.name} {number}" for number, each in LAYOUTS.items())
        raise ModelFormatError(f"tensor type {ggml_type} is not supported; supported: {known}")
    return LAYOUTS[ggml_type]


# --- the file's blocks -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Quants:
    """Blocks taken apart, nothing rounded or multiplied yet; N blocks of C columns and G groups each.

    ``quants`` [N, C] are unsigned as in the panels. One-level types: ``d`` [N, 1] float16 is the scale,
    ``dmin`` the minimum, ``sc`` and ``mn`` are None. Two-level: see PackedLayout. ``dmin`` and ``mn`` are
    None without a minimum. ``sc`` is int8 or uint8 [N, G], ``mn`` uint8 [N, G].
    """

    quants: Bytes
    d: NDArray[np.float16]
    dmin: NDArray[np.float16] | None = None
    sc: NDArray[np.uint8] | NDArray[np.int8] | None = None
    mn: Bytes | None = None


IQ4_NL_VALUES = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def _half(blocks: Bytes, start: int) -> NDArray[np.float16]:
    """The float16 at byte ``start`` of each block, [N, 1]."""
    return np.ascontiguousarray(blocks[:, start : start + 2]).view(np.float16)


def _fields(packed: Bytes, bits: int) -> Bytes:
    """[N, ..., W] bytes to [N, ..., 8 / bits, W]: field i of every byte, lowest first."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)[:, None]
    return (packed[..., None, :] >> shifts) & np.uint8((1 << bits) - 1)


def _nibbles_32(packed: Bytes) -> Bytes:
    """16 bytes to 32 columns: all low nibbles, then all high ones."""
    return _fields(packed, 4).reshape(len(packed), 32)


def _fifth_bits_32(packed: Bytes) -> Bytes:
    """4 bytes to 32 columns of 0 or 16: bit e of the word belongs to column e."""
    return np.unpackbits(packed, axis=1, bitorder="little") << np.uint8(4)


def _scales_12(packed: Bytes) -> tuple[Bytes, Bytes]:
    """The 12 bytes of Q4_K and Q5_K to eight 6-bit scales and eight 6-bit minimums."""
    first, second, third = packed[:, 0:4], packed[:, 4:8], packed[:, 8:12]
    sc = np.concatenate([first & 63, (third & 15) | (first >> np.uint8(6) << np.uint8(4))], axis=1)
    mn = np.concatenate(
        [second & 63, (third >> np.uint8(4)) | (second >> np.uint8(6) << np.uint8(4))], axis=1
    )
    return sc, mn


def _split_q4_0(b: Bytes) -> Quants:
    return Quants(_nibbles_32(b[:, 2:]), _half(b, 0))


def _split_q4_1(b: Bytes) -> Quants:
    return Quants(_nibbles_32(b[:, 4:]), _half(b, 0), _half(b, 2))


def _split_q5_0(b: Bytes) -> Quants:
    return Quants(_nibbles_32(b[:, 6:]) | _fifth_bits_32(b[:, 2:6]), _half(b, 0))


def _split_q5_1(b: Bytes) -> Quants:
    return Quants(_nibbles_32(b[:, 8:]) | _fifth_bits_32(b[:, 4:8]), _half(b, 0), _half(b, 2))


def _split_q8_0(b: Bytes) -> Quants:
    return Quants(b[:, 2:] ^ np.uint8(128), _half(b, 0))  # flipping the sign bit adds 128


def _split_iq4_nl(b: Bytes) -> Quants:
    table = (np.array(IQ4_NL_VALUES) + 128).astype(np.uint8)
    return Quants(table[_nibbles_32(b[:, 2:])], _half(b, 0))


def _split_q2_k(b: Bytes) -> Quants:
    quants = _fields(b[:, 16:80].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return Quants(quants, _half(b, 80), _half(b, 82), b[:, :16] & 15, b[:, :16] >> np.uint8(4))


def _split_q3_k(b: Bytes) -> Quants:
    low = _fields(b[:, 32:96].reshape(-1, 2, 32), 2).reshape(-1, 256)
    third = _fields(b[:, :32], 1).reshape(-1, 256)
    sc_low = _fields(b[:, 96:104], 4).reshape(-1, 16)
    sc_high = _fields(b[:, 104:108], 2).reshape(-1, 16)
    sc = (sc_low | sc_high << np.uint8(4)).astype(np.int8) - np.int8(32)
    return Quants(low | third << np.uint8(2), _half(b, 108), sc=sc)


def _split_q4_k(b: Bytes) -> Quants:
    sc, mn = _scales_12(b[:, 4:16])
    quants = _fields(b[:, 16:].reshape(-1, 4, 32), 4).reshape(-1, 256)
    return Quants(quants, _half(b, 0), _half(b, 2), sc, mn)


def _split_q5_k(b: Bytes) -> Quants:
    sc, mn = _scales_12(b[:, 4:16])
    low = _fields(b[:, 48:].reshape(-1, 4, 32), 4).reshape(-1, 256)
    fifth = _fields(b[:, 16:48], 1).reshape(-1, 256)
    return Quants(low | fifth << np.uint8(4), _half(b, 0), _half(b, 2), sc, mn)


def _split_q6_k(b: Bytes) -> Quants:
    low = _fields(b[:, :128].reshape(-1, 2, 64), 4).reshape(-1, 256)
    high = _fields(b[:, 128:192].reshape(-1, 2, 32), 2).reshape(-1, 256)
    return Quants(low | high << np.uint8(4), _half(b, 208), sc=b[:, 192:208].view(np.int8))


_SPLITTERS: Mapping[GGMLType, Callable[[Bytes], Quants]] = MappingProxyType(
    {
        GGMLType.Q4_0: _split_q4_0,
        GGMLType.Q4_1: _split_q4_1,
        GGMLType.Q5_0: _split_q5_0,
        GGMLType.Q5_1: _split_q5_1,
        GGMLType.Q8_0: _split_q8_0,
        GGMLType.IQ4_NL: _split_iq4_nl,
        GGMLType.Q2_K: _split_q2_k,
        GGMLType.Q3_K: _split_q3_k,
        GGMLType.Q4_K: _split_q4_k,
        GGMLType.Q5_K: _split_q5_k,
        GGMLType.Q6_K: _split_q6_k,
    }
)


def _checked(layout: PackedLayout, raw: Bytes, rows: int, columns: int) -> Bytes:
    """``raw`` as contiguous bytes [rows, row bytes]; ModelFormatError when its size is not the shape's."""
    row_bytes = layout.row_bytes(columns)
    if rows < 1 or raw.dtype != np.uint8 or raw.size != rows * row_bytes:
        raise ModelFormatError(
            f"a {layout.ggml_type.name} tensor of {rows} x {columns} takes {rows * row_bytes} bytes (uint8), "
            f"got {raw.size} of {raw.dtype}"
        )
    return np.ascontiguousarray(raw).reshape(rows, row_bytes)


def _float_elements(layout: PackedLayout, raw: Bytes) -> Floats:
    """The elements of a float type as float32, exactly."""
    if layout.ggml_type is GGMLType.F32:
        return raw.view(np.float32)
    if layout.ggml_type is GGMLType.F16:
        return raw.view(np.float16).astype(np.float32)
    return (raw.view(np.uint16).astype(np.uint32) << 16).view(np.float32)


def _values(layout: PackedLayout, parts: Quants) -> Floats:
    """[N, C] float32. Products before sums, one rounding each: the order every exact reader of GGUF uses."""
    count = len(parts.quants)
    scale = parts.d.astype(np.float32)
    if parts.sc is not None:
        scale = scale * parts.sc.astype(np.float32)
    quants = parts.quants.astype(np.int16) - np.int16(layout.offset)
    values = scale[:, :, None] * quants.astype(np.float32).reshape(count, scale.shape[1], -1)
    if parts.dmin is not None:
        minimum = parts.dmin.astype(np.float32)
        if parts.mn is not None:
            minimum = -(minimum * parts.mn.astype(np.float32))
        values = values + minimum[:, :, None]
    return values.reshape(count, layout.block_columns)


def dequantize_reference(ggml_type: int, raw: Bytes, rows: int, columns: int) -> Floats:
    """The values of a tensor, float32 [rows, columns], straight from the bytes of the file.

    ``raw`` is uint8 of any shape with the tensor's bytes in order. Raises ModelFormatError for an unknown
    type or a size that does not fit the shape. NaN or infinite scales are not looked for.
    """
    layout = packed_layout(ggml_type)
    data = _checked(layout, raw, rows, columns)
    if layout.is_float:
        return _float_elements(layout, data).reshape(rows, columns)
    parts = _SPLITTERS[layout.ggml_type](data.reshape(-1, layout.block_bytes))
    return _values(layout, parts).reshape(rows, columns)


# --- panels ----------------------------------------------------------------------------------------------


def _by_panel(array: NDArray[np.generic], rows: int) -> NDArray[np.generic]:
    """[rows * n, m] in row order to [panels, 16, n, m]; the missing rows are zero."""
    panels = -(-rows // PANEL_ROWS)
    padded = np.zeros((panels * PANEL_ROWS, len(array) // rows, array.shape[-1]), array.dtype)
    padded[:rows] = array.reshape(rows, -1, array.shape[-1])
    return padded.reshape(panels, PANEL_ROWS, *padded.shape[1:])


def _scale_section(layout: PackedLayout, parts: Quants, rows: int) -> Bytes:
    """[panels, bytes] before the padding to 64: per file block, the 16 rows of each field side by side."""
    fields: list[NDArray[np.generic]] = [parts.d] if parts.dmin is None else [parts.d, parts.dmin]
    if parts.sc is not None:
        for g in range(parts.sc.shape[1]):
            fields.append(parts.sc[:, g : g + 1])
            if parts.mn is not None:
                fields.append(parts.mn[:, g : g + 1])
    columns = []
    for field in fields:
        panel = _by_panel(field, rows)[..., 0]  # [panels, 16, file blocks]
        by_row = np.ascontiguousarray(panel.transpose(0, 2, 1))
        columns.append(by_row.view(np.uint8))  # [panels, file blocks, 16 or 32 bytes]
    return np.concatenate(columns, axis=2).reshape(len(columns[0]), -1)


def _quant_section(layout: PackedLayout, quants: Bytes, rows: int) -> Bytes:
    """[panels, bytes]: 4 consecutive columns per row make a word, 16 rows a 64-byte vector."""
    panel = np.ascontiguousarray(_by_panel(quants.reshape(-1, BLOCK_COLUMNS), rows))
    panels, _, blocks, _ = panel.shape
    # [panels, blocks, vector s, row, column in word]
    words = panel.view(np.uint8).reshape(panels, PANEL_ROWS, blocks, 8, 4).transpose(0, 2, 3, 1, 4)
    if layout.bits == 8:
        return np.ascontiguousarray(words).reshape(panels, -1)
    nibbles = (words[:, :, :4] & np.uint8(15)) | ((words[:, :, 4:] & np.uint8(15)) << np.uint8(4))
    low = nibbles.reshape(panels, blocks, 256)
    if layout.bits == 4:
        return low.reshape(panels, -1)
    fifth = (words >> np.uint8(4)).reshape(panels, blocks, 8 * 64)
    masks = np.packbits(fifth, axis=2, bitorder="little")
    return np.concatenate([masks, low], axis=2).reshape(panels, -1)


def pack_reference(ggml_type: int, raw: Bytes, rows: int, columns: int) -> Bytes:
    """The packed panels of a tensor, uint8 [panels, panel_bytes].

    Arguments and errors as dequantize_reference. A scale or minimum that is NaN or infinite raises
    ModelFormatError with the row and the first column of its block, the first in row order, as the native
    packer does.
    """
    layout = packed_layout(ggml_type)
    data = _checked(layout, raw, rows, columns)
    if layout.is_float:
        elements = _by_panel(data.reshape(-1, layout.block_bytes), rows)  # [panels, 16, columns, size]
        section = np.ascontiguousarray(elements.transpose(0, 2, 1, 3)).view(np.uint8)
        return _pad(section.reshape(len(section), -1), layout.panel_bytes(columns))
    parts = _SPLITTERS[layout.ggml_type](data.reshape(-1, layout.block_bytes))
    _refuse_bad_scales(layout, parts, columns)
    scales = _pad(_scale_section(layout, parts, rows), layout.scale_section_bytes(columns))
    return np.concatenate([scales, _quant_section(layout, parts.quants, rows)], axis=1)


def _pad(section: Bytes, width: int) -> Bytes:
    return np.pad(section, ((0, 0), (0, width - section.shape[1])))


def _refuse_bad_scales(layout: PackedLayout, parts: Quants, columns: int) -> None:
    bad = ~np.isfinite(parts.d[:, 0])
    if parts.dmin is not None:
        bad |= ~np.isfinite(parts.dmin[:, 0])
    if bad.any():
        row, block = divmod(int(np.argmax(bad)), columns // layout.block_columns)
        raise ModelFormatError(
            f"the {layout.ggml_type.name} block at row {row}, column {block * layout.block_columns} "
            "has a scale or minimum that is NaN or infinite"
        )


def _read_quants(layout: PackedLayout, section: Bytes) -> Bytes:
    """[panels, bytes] back to [panels, 16, columns] quants."""
    panels = len(section)
    blocks = section.reshape(panels, -1, layout.quant_block_bytes)
    if layout.bits == 8:
        words = blocks.reshape(panels, -1, 8, PANEL_ROWS, 4)
    else:
        vectors = blocks[:, :, -256:].reshape(panels, -1, 4, PANEL_ROWS, 4)
        words = np.concatenate([vectors & 15, vectors >> np.uint8(4)], axis=2)
        if layout.bits == 5:
            fifth = np.unpackbits(blocks[:, :, :64], axis=2, bitorder="little")
            words = words | (fifth.reshape(words.shape) << np.uint8(4))
    return np.ascontiguousarray(words.transpose(0, 3, 1, 2, 4)).reshape(panels, PANEL_ROWS, -1)


def _read_scales(layout: PackedLayout, section: Bytes) -> tuple[Floats, Floats | None]:
    """[panels, bytes without padding] to scale and minimum, each float32 [panels, 16, groups]."""
    panels, parts = len(section), 2 if layout.has_min else 1
    if not layout.two_level:
        halves = section.view(np.float16).reshape(panels, -1, parts, PANEL_ROWS).astype(np.float32)
        per_row = halves.transpose(2, 0, 3, 1)
        return per_row[0], per_row[1] if layout.has_min else None
    groups = SUPER_COLUMNS // layout.group
    supers = section.reshape(panels, -1, (32 + 16 * groups) * parts)
    halves = np.ascontiguousarray(supers[:, :, : 32 * parts]).view(np.float16)
    d = halves.reshape(panels, -1, parts, 1, PANEL_ROWS).astype(np.float32)
    fine = supers[:, :, 32 * parts :].reshape(panels, -1, groups, parts, PANEL_ROWS)
    sc = fine[:, :, :, 0].view(np.int8) if layout.signed_scale else fine[:, :, :, 0]

    def by_row(values: Floats) -> Floats:
        return values.reshape(panels, -1, PANEL_ROWS).transpose(0, 2, 1)

    scale = by_row(d[:, :, 0] * sc.astype(np.float32))
    if not layout.has_min:
        return scale, None
    return scale, by_row(-(d[:, :, 1] * fine[:, :, :, 1].astype(np.float32)))


def unpack_reference(ggml_type: int, panels: Bytes, rows: int, columns: int) -> Floats:
    """The values of packed panels (uint8 [panels, panel_bytes]), float32 [rows, columns].

    Raises ModelFormatError for an unknown type or panels that do not fit the shape.
    """
    layout = packed_layout(ggml_type)
    layout.row_bytes(columns)
    expected = (-(-rows // PANEL_ROWS), layout.panel_bytes(columns))
    if rows < 1 or panels.dtype != np.uint8 or panels.shape != expected:
        raise ModelFormatError(
            f"panels of a {layout.ggml_type.name} tensor of {rows} x {columns} are uint8 {list(expected)}, "
            f"got {panels.dtype} {list(panels.shape)}"
        )
    if layout.is_float:
        used = np.ascontiguousarray(panels[:, : columns * PANEL_ROWS * layout.block_bytes])
        by_column = _float_elements(layout, used).reshape(-1, columns, PANEL_ROWS)
        return np.ascontiguousarray(by_column.transpose(0, 2, 1)).reshape(-1, columns)[:rows]
    start = layout.scale_section_bytes(columns)
    per_panel = (2 if layout.has_min else 1) * (32 * columns // layout.block_columns)
    if layout.two_level:
        per_panel += (2 if layout.has_min else 1) * PANEL_ROWS * columns // layout.group
    scale, minimum = _read_scales(layout, np.ascontiguousarray(panels[:, :per_panel]))
    quants = _read_quants(layout, np.ascontiguousarray(panels[:, start:]))
    signed = (quants.astype(np.int16) - np.int16(layout.offset)).astype(np.float32)
    values = scale[..., None] * signed.reshape(*scale.shape, layout.group)
    if minimum is not None:
        values = values + minimum[..., None]
    return values.reshape(-1, columns)[:rows]
