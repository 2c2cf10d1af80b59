"""The C++ core as Python sees it; native/bindings.cc and native/bind_sample.cc define it.

Everything raises ValueError for arguments that do not fit. Buffers are named by the integers that the
functions which make them return.
"""

from collections.abc import Callable, Sequence
from enum import Enum

import numpy as np
import numpy.typing as npt

_Bytes = npt.NDArray[np.uint8]
_Int32 = npt.NDArray[np.int32]
_Float32 = npt.NDArray[np.float32]
_Array = npt.NDArray[np.generic]

target: str  # instruction set in use
available_targets: str  # those that run here, best first, separated by ", "

def measure_limits(threads: int) -> dict[str, float]:
    """dram_gb_s: 10^9 bytes read per second; int8_tops: 10^12 int8 operations per second. Medians of 5."""

def rope_frequencies(base: float, rotary: int) -> _Float32:
    """[rotary / 2] base^(-2i / rotary), the same bits on every machine."""

class ThreadPool:
    """Threads that wait for work; one caller at a time."""

    def __init__(self, threads: int) -> None: ...
    @property
    def threads(self) -> int: ...

class PackedMatrix:
    """A weight matrix [rows, columns] in panels of 16 rows; see docs/concepts/packed-weights.md."""

    @staticmethod
    def pack(
        ggml_type: int,
        raw: _Bytes,
        rows: int,
        columns: int,
        threads: int = 1,
        pool: ThreadPool | None = None,
        read_up_to: Callable[[int], None] | None = None,
    ) -> PackedMatrix:
        """`read_up_to` is told, from time to time, how many bytes of `raw` are not needed any more."""

    @property
    def rows(self) -> int: ...
    @property
    def columns(self) -> int: ...
    @property
    def nbytes(self) -> int: ...
    @property
    def is_float(self) -> bool: ...
    def element(self, row: int, column: int) -> float: ...
    def panels_bytes(self) -> _Bytes: ...
    def unpack(self, row_begin: int, row_end: int) -> _Float32: ...

class KvCache:
    """KV memory in blocks of 16 positions; `layers` are (kv_heads, head_size). Touched only when written."""

    def __init__(self, int8: bool, layers: Sequence[tuple[int, int]], blocks: int) -> None: ...
    @property
    def blocks(self) -> int: ...
    @property
    def block_bytes(self) -> int: ...
    def copy_block(self, source: int, destination: int) -> None: ...
    def read_block(self, block: int) -> _Bytes:
        """[block_bytes] a copy of one block of every layer. ValueError for no such block."""

    def write_block(self, block: int, payload: _Bytes) -> None:
        """Put [block_bytes] back. ValueError for no such block, or another number of bytes."""

class Rows(Enum):
    """What a buffer has one row for."""

    TOKENS = ...
    LOGITS = ...
    HIDDEN = ...

class Program:
    """Steps over named buffers, in the order they were added; `run` runs them all with the GIL released."""

    def __init__(
        self, pool: ThreadPool, cache: KvCache, max_tokens: int, vocabulary: int, context_tokens: int
    ) -> None: ...
    @property
    def buffer_bytes(self) -> int: ...
    def calibrate(
        self,
        token_ids: _Int32,
        positions: _Int32,
        query_start: _Int32,
        kv_tokens: _Int32,
        block_tables: _Int32,
        logit_rows: _Int32,
        hidden_rows: _Int32,
        kv_copies: _Int32,
        most: int,
    ) -> None: ...
    def run(
        self,
        token_ids: _Int32,
        positions: _Int32,
        query_start: _Int32,
        kv_tokens: _Int32,
        block_tables: _Int32,
        logit_rows: _Int32,
        hidden_rows: _Int32,
        kv_copies: _Int32,
    ) -> tuple[_Float32, _Float32 | None]:
        """Logits [R, vocabulary] and hidden states [H, width] (none without hidden rows), valid until the
        next run. ValueError for a contradictory batch."""

    def float_buffer(self, width: int, rows: Rows) -> int: ...
    def quantised_buffer(self, columns: int, rows: Rows) -> int: ...
    def rope_table(self, rotary: int, interleaved: bool, frequency: _Float32) -> int: ...
    def embed(self, out: int, table: PackedMatrix, scale: float) -> None: ...
    def norm(
        self, x: int, residual: int, out: int, out_quantised: int, weight: _Float32, eps: float, groups: int
    ) -> None: ...
    def quantise(self, x: int, out: int) -> None: ...
    def linear(
        self, x: int, x_quantised: int, parts: Sequence[tuple[PackedMatrix, int, _Float32, bool]]
    ) -> None: ...
    def gated_linear(
        self, x_quantised: int, out_quantised: int, gate: PackedMatrix, up: PackedMatrix, gelu: bool
    ) -> None: ...
    def gated(self, gate: int, up: int, out: int, gelu: bool) -> None: ...
    def rope(self, x: int, out: int, table: int, heads: int, head_size: int) -> None: ...
    def attention(
        self,
        q: int,
        k: int,
        v: int,
        out: int,
        out_quantised: int,
        layer: int,
        heads: int,
        kv_heads: int,
        head_size: int,
        scale: float,
        softcap: float,
        window: int,
    ) -> None: ...
    def add(self, a: int, b: int, out: int) -> None: ...
    def scale(self, x: int, out: int, factor: float) -> None: ...
    def softcap(self, x: int, out: int, cap: float) -> None: ...
    def select(self, x: int, out: int, rows: Rows) -> None: ...
    def input(self, out: int) -> None: ...
    def set_input(self, rows: _Float32) -> None:
        """What the next `run` hands on as the program's input: a row for each of its tokens; copied."""

    def draft(
        self,
        own: Program,
        token_ids: _Int32,
        start: int,
        states: _Float32,
        block_table: _Int32,
        ids: _Int32,
        passes: int,
        least_reached: float,
    ) -> tuple[tuple[int, float, int, float], ...]:
        """A draft head's passes: this one after the states of tokens from `start` on, then `own` after the
        likeliest tokens. Of each pass (id, share, second id, its share); -1 for none.
        """

    def return_hidden(self, buffer: int) -> None:
        """A float buffer, of `Rows.HIDDEN`, that `run` gives as hidden states, beside those named before."""

    @property
    def hidden_width(self) -> int:
        """Numbers of the first of them."""

class SampleWorkspace:
    """Working memory for sampling on one pool's threads."""

    def __init__(self, pool: ThreadPool) -> None: ...
    def sample(
        self,
        logits: _Array,
        records: bytes,
        bias_ids: _Array,
        bias_values: _Array,
        banned_ids: _Array,
        history: _Array,
        masks: _Array,
        token_ids: _Array,
        logprobs: _Array,
        top_ids: _Array,
        top_logprobs: _Array,
    ) -> None: ...
