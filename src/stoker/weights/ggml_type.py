"""The tensor types a GGUF file may name: ids, block sizes, and which of them Stoker computes with.

A quantised row is a run of blocks; each block holds ``block_size`` values in ``block_bytes`` bytes.
"""

from __future__ import annotations

from enum import Enum
from types import MappingProxyType


class GGMLType(Enum):
    """A tensor type; the value is (id in the file, values per block, bytes per block)."""

    F32 = (0, 1, 4)
    F16 = (1, 1, 2)
    Q4_0 = (2, 32, 18)
    Q4_1 = (3, 32, 20)
    Q5_0 = (6, 32, 22)
    Q5_1 = (7, 32, 24)
    Q8_0 = (8, 32, 34)
    Q2_K = (10, 256, 84)
    Q3_K = (11, 256, 110)
    Q4_K = (12, 256, 144)
    Q5_K = (13, 256, 176)
    Q6_K = (14, 256, 210)
    Q8_K = (15, 256, 292)
    IQ2_XXS = (16, 256, 66)
    IQ2_XS = (17, 256, 74)
    IQ3_XXS = (18, 256, 98)
    IQ1_S = (19, 256, 50)
    IQ4_NL = (20, 32, 18)
    IQ3_S = (21, 256, 110)
    IQ2_S = (22, 256, 82)
    IQ4_XS = (23, 256, 136)
    I8 = (24, 1, 1)
    I16 = (25, 1, 2)
    I32 = (26, 1, 4)
    I64 = (27, 1, 8)
    F64 = (28, 1, 8)
    IQ1_M = (29, 256, 56)
    BF16 = (30, 1, 2)
    TQ1_0 = (34, 256, 54)
    TQ2_0 = (35, 256, 66)
    MXFP4 = (39, 32, 17)
    NVFP4 = (40, 64, 36)

    @property
    def type_id(self) -> int:
        """The number that stands for this type in a file."""
        return self.value[0]

    @property
    def block_size(self) -> int:
        """Values per block, along the row."""
        return self.value[1]

    @property
    def block_bytes(self) -> int:
        """Bytes per block."""
        return self.value[2]

    @property
    def bits_per_weight(self) -> float:
        """Mean bits that one value takes, scales included."""
        return 8.0 * self.block_bytes / self.block_size

    @property
    def is_supported(self) -> bool:
        """Whether Stoker can compute with tensors of this type (others can only be listed)."""
        return self.name in SUPPORTED_TYPE_NAMES


# The types that weights.packing turns into a layout of the kernels.
SUPPORTED_TYPE_NAMES = (
    "F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ4_NL",
)  # fmt: skip

TYPE_BY_ID = MappingProxyType({kind.type_id: kind for kind in GGMLType})

# Ids that have a name but no layout to read: taken out of the format again, or (Q8_1) only ever
# used for activations inside a computation. They are kept so that an error can name them.
NAMED_ONLY_TYPES = MappingProxyType(
    {
        4: "Q4_2 (removed from the format)",
        5: "Q4_3 (removed from the format)",
        9: "Q8_1 (never stored in a file)",
        31: "Q4_0_4_4 (removed from the format; requantise as Q4_0)",
        32: "Q4_0_4_8 (removed from the format; requantise as Q4_0)",
        33: "Q4_0_8_8 (removed from the format; requantise as Q4_0)",
        36: "IQ4_NL_4_4 (removed from the format; requantise as IQ4_NL)",
        37: "IQ4_NL_4_8 (removed from the format; requantise as IQ4_NL)",
        38: "IQ4_NL_8_8 (removed from the format; requantise as IQ4_NL)",
    }
)
