"""A model as data: a flat list of ops over named activations, and one step's batch.

A model file turns a config into a `Program`; interpreters run it (`reference`: numpy float32, obvious;
`native`: the C++ core). Activations are float32 rows, one row per token of the step: shape [T, width].
Every op writes one new name (no name is written twice), so that an interpreter may fuse freely.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Literal

import numpy as np
import numpy.typing as npt

Int32 = npt.NDArray[np.int32]
Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Embed:
    """out[t] = scale · table[token_ids[t]]; table: [vocabulary, width].

    This scale, and every other float of an op, is rounded to float32 once and then used in float32.
    """

    out: str
    table: str
    scale: float = 1.0


@dataclass(frozen=True, slots=True)
class Input:
    """out = the batch's `inputs`, a row of `width` numbers for each token."""

    out: str
    width: int


@dataclass(frozen=True, slots=True)
class RmsNorm:
    """out = x · weight / sqrt(mean(x²) + eps), over the whole row, or over each head's `head_size` columns.

    weight: [width], or [head_size] shared by the heads. (Zhang & Sennrich 2019; per head: Qwen3, Gemma 3.)
    """

    out: str
    x: str
    weight: str
    eps: float
    head_size: int | None = None


@dataclass(frozen=True, slots=True)
class Linear:
    """out = x · weightᵀ (+ bias); weight: [rows, columns] with columns = width of x; bias: [rows]."""

    out: str
    x: str
    weight: str
    bias: str | None = None


@dataclass(frozen=True, slots=True)
class Rope:
    """Rotary position embedding (Su et al. 2021) on each head of x: [T, heads · head_size].

    Pair i (0 <= i < rotary/2) is turned by position · base^(-2i/rotary) / factors[i] · linear_scale.
    pairing "interleaved": columns (2i, 2i+1), as GGUF llama files are permuted for;
    "half": columns (i, i + rotary/2), as Qwen and Gemma. Columns past `rotary` stay as they are.
    """

    out: str
    x: str
    head_size: int
    rotary: int
    base: float
    pairing: Literal["interleaved", "half"]
    linear_scale: float = 1.0  # 1 / rope.scaling.factor for linear scaling
    factors: str | None = None  # weight name, [rotary/2] (Llama 3's rope_freqs.weight), or none


@dataclass(frozen=True, slots=True)
class Attention:
    """Causal grouped-query attention over the paged KV cache; writes this step's k and v into it first.

    q: [T, heads · head_size]; k, v: [T, kv_heads · head_size]; out: [T, heads · head_size].
    Query at position p sees positions max(0, p - window + 1) .. p of its own sequence (all, without window).
    Logits are scale · q·k, softcapped to cap · tanh(logit / cap) if `softcap` is given.
    """

    out: str
    q: str
    k: str
    v: str
    layer: int  # index into Program.kv_layers
    heads: int
    kv_heads: int
    head_size: int
    scale: float
    window: int | None = None
    softcap: float | None = None


@dataclass(frozen=True, slots=True)
class GatedActivation:
    """out = activation(gate) · up; "silu" (SwiGLU) or "gelu_tanh" (GeGLU, tanh form), Shazeer 2020."""

    out: str
    gate: str
    up: str
    activation: Literal["silu", "gelu_tanh"]


@dataclass(frozen=True, slots=True)
class Add:
    """out = a + b."""

    out: str
    a: str
    b: str


@dataclass(frozen=True, slots=True)
class SelectRows:
    """out[r] = x[rows[r]], rows being the batch's logit_rows or hidden_rows: from here on a row for each."""

    out: str
    x: str
    rows: Literal["logits", "hidden"] = "logits"


@dataclass(frozen=True, slots=True)
class Scale:
    """out = factor · x."""

    out: str
    x: str
    factor: float


@dataclass(frozen=True, slots=True)
class Softcap:
    """out = cap · tanh(x / cap) (Gemma 2)."""

    out: str
    x: str
    cap: float


Op = (
    Embed | Input | RmsNorm | Linear | Rope | Attention | GatedActivation | Add | SelectRows | Scale | Softcap
)


_WEIGHT_FIELDS = ("table", "weight", "bias", "factors")  # fields of ops that name weights


@dataclass(frozen=True, slots=True)
class KvLayer:
    """What one attention layer keeps per token: kv_heads keys and values of head_size numbers each."""

    kv_heads: int
    head_size: int
    window: int | None = None


@dataclass(frozen=True, slots=True)
class Program:
    """Ops in order; the last one's `out` ("logits") is [rows wanted, vocabulary].

    `hidden` names what is the hidden state of a token, computed for the batch's hidden_rows only;
    `draft_states` what stands beside it, of the same rows, in what draft heads go on from.
    """

    ops: tuple[Op, ...]
    kv_layers: tuple[KvLayer, ...]
    vocabulary: int
    context_tokens: int
    architecture: str
    hidden: str | None = None
    draft_states: tuple[str, ...] = ()

    @property
    def weights(self) -> tuple[str, ...]:
        """Names of all weights the ops use, each once, in order of first use."""
        used = (getattr(op, field) for op in self.ops for field in _WEIGHT_FIELDS if hasattr(op, field))
        return tuple(dict.fromkeys(name for name in used if name is not None))


NO_ROWS: Final[Int32] = np.empty(0, np.int32)
NO_COPIES: Final[Int32] = np.empty((0, 2), np.int32)


@dataclass(frozen=True, slots=True)
class Batch:
    """One step, described once for every interpreter. T tokens of S sequences, R rows of logits and H hidden
    states wanted.

    Sequence s owns tokens query_start[s] .. query_start[s+1]-1, which take the consecutive positions up to
    kv_tokens[s]-1; position p lives in block block_tables[s, p // 16], slot p % 16. All keys and values of a
    step are stored before anything is read: a branch of a draft reads its stem's, through shared blocks or
    copies.
    """

    token_ids: Int32  # [T]
    positions: Int32  # [T]
    query_start: Int32  # [S+1]
    kv_tokens: Int32  # [S], KV length once this step's tokens are in
    block_tables: Int32  # [S, most blocks of any]; unused entries are -1
    logit_rows: Int32  # [R], ascending indices into T
    hidden_rows: Int32 = field(default_factory=lambda: NO_ROWS)  # [H], likewise
    inputs: Float32 | None = None  # [T, width] of a program with an `Input`
    # [C, 2] (token, sequence), ascending: the token's key and value are stored in the sequence's blocks as
    # well, at the token's position, which lies before the sequence's own tokens.
    kv_copies: Int32 = field(default_factory=lambda: NO_COPIES)

    @property
    def tokens(self) -> int:
        """T."""
        return len(self.token_ids)

    @property
    def sequences(self) -> int:
        """S."""
        return len(self.kv_tokens)


# KV slots per block: 4 to a dot's lane quad, 16 keys to a vector of lanes; tail waste < 16 tokens.
BLOCK_TOKENS = 16
