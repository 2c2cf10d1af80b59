"""The native interpreter: a lowered Program, its KV memory, and the thread pool, behind `Interpreter`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import numpy as np

from stoker import _native
from stoker.api.errors import CapacityError, EngineError
from stoker.kernels.interpreter import check_batch
from stoker.kernels.lowering import Lowering
from stoker.kernels.program import (
    BLOCK_TOKENS,
    NO_COPIES,
    NO_ROWS,
    Batch,
    Embed,
    Float32,
    Int32,
    Program,
    UInt8,
)

KvType = Literal["int8", "f16"]

OUTLIERS = (
    4  # columns per norm kept in float32 at most (docs/decisions/0002 has the measurements for 0, 1, 2 and 4)
)
CALIBRATION_TOKENS = 32  # of fixed ids: two KV blocks, 15 to 40 ms at load
CALIBRATION_BLOCKS = CALIBRATION_TOKENS // BLOCK_TOKENS


class NativeInterpreter:
    """Runs one Program in the C++ core. Not for concurrent use: one `run` at a time.

    matrices: weights of Embed and Linear, packed; vectors: norm weights, biases, rope factors, float32.
    outliers: columns of each normed input kept in float32 at most (`native/calibrate.cc`); 0 turns it off.
    num_blocks: KV blocks; their memory is touched only when written. batch_tokens: most tokens of a step.
    """

    def __init__(
        self,
        program: Program,
        matrices: Mapping[str, _native.PackedMatrix],
        vectors: Mapping[str, Float32],
        pool: _native.ThreadPool,
        *,
        kv_type: KvType,
        num_blocks: int,
        batch_tokens: int,
        outliers: int = OUTLIERS,
        beside: NativeInterpreter | None = None,
    ) -> None:
        """`beside`: one whose keys and values are this one's too, of the same type and as many."""
        self._cache: _native.KvCache = (
            _cache(program, kv_type, num_blocks) if beside is None else beside._cache
        )
        self.pool = pool
        self.kv_type = kv_type
        self.batch_tokens = batch_tokens
        self.context_tokens = program.context_tokens
        self.weight_bytes = sum(matrix.nbytes for matrix in matrices.values())
        self._vocabulary = program.vocabulary
        # The packed embeddings, for what goes on from this program's states: it need not pack its own.
        self.embedding = next((matrices[op.table] for op in program.ops if isinstance(op, Embed)), None)
        self._hidden: Float32 | None = None  # [H, what each of the program's states is wide, in all]
        self._hidden_width = 0  # of the first of them
        self._num_blocks = num_blocks
        self._program = _native.Program(
            pool,
            self._cache,
            max(batch_tokens, CALIBRATION_TOKENS),
            program.vocabulary,
            program.context_tokens,
        )
        Lowering(program, matrices, vectors, self._program).run()
        self._hidden_width = self._program.hidden_width
        if outliers:
            self._calibrate(outliers)

    def _calibrate(self, outliers: int) -> None:
        """Let the core choose outlier columns from a run over fixed token ids, spread over the vocabulary.

        It writes KV blocks 0 and 1, which nobody owns yet. Nothing that the caller may choose (step size, KV
        memory) changes the run, or the choice would depend on it, and with the choice every answer's bits.
        """
        tokens = min(CALIBRATION_TOKENS, self.context_tokens)
        # Multiples of an odd constant (2^32 / golden ratio) modulo the vocabulary: spread, always the same.
        ids = (np.arange(1, tokens + 1, dtype=np.int64) * 2654435769 % self._vocabulary).astype(np.int32)
        self._program.calibrate(
            ids,
            np.arange(tokens, dtype=np.int32),
            np.array([0, tokens], np.int32),
            np.array([tokens], np.int32),
            np.arange(-(-tokens // BLOCK_TOKENS), dtype=np.int32)[None],
            np.array([tokens - 1], np.int32),
            NO_ROWS,
            NO_COPIES,
            outliers,
        )

    @property
    def vocabulary(self) -> int:
        """Columns of the logits."""
        return self._vocabulary

    @property
    def num_blocks(self) -> int:
        """KV blocks, numbered from 0."""
        return self._num_blocks

    @property
    def block_bytes(self) -> int:
        """Memory of one block over all layers, keys and values."""
        return int(self._cache.block_bytes)

    def run(self, batch: Batch) -> Float32:
        """Compute one step; logits [R, vocabulary], a view that is valid until the next run.

        Raises EngineError for a batch that contradicts itself or is larger than `batch_tokens`.
        """
        if batch.tokens > self.batch_tokens:
            raise EngineError(f"a step of {batch.tokens} tokens; allowed: up to {self.batch_tokens}")
        arrays = (
            batch.token_ids,
            batch.positions,
            batch.query_start,
            batch.kv_tokens,
            batch.block_tables,
            batch.logit_rows,
            batch.hidden_rows,
            batch.kv_copies,
        )
        try:
            if batch.inputs is not None:
                self._program.set_input(np.ascontiguousarray(batch.inputs))
            logits, self._hidden = self._program.run(*arrays)
            return logits
        except ValueError as error:
            raise EngineError(str(error)) from error
        except TypeError:
            # The core takes only contiguous int32 arrays. Say what else is wrong; if nothing is, the arrays
            # are merely views of larger ones.
            check_batch(
                batch,
                vocabulary=self._vocabulary,
                num_blocks=self.num_blocks,
                context_tokens=self.context_tokens,
            )
            logits, self._hidden = self._program.run(*map(np.ascontiguousarray, arrays))
            return logits

    def draft(
        self,
        own: NativeInterpreter,
        token_ids: Int32,
        start: int,
        states: Float32,
        block_table: Int32,
        ids: Int32,
        passes: int,
        least_reached: float,
    ) -> tuple[tuple[int, float, int, float], ...]:
        """A draft head's chain in one call: this program after the `states` of `token_ids` [count] at
        positions from `start` on, then `own`, on the same keys and values, after its own states and likeliest
        tokens.

        ids: [columns of the logits] of the target's vocabulary. At most so many passes, and none after a
        token that is less likely to be reached than `least_reached`. Of each pass (likeliest id, its share of
        the distribution, second id, its share), -1 for none. `run` and numpy do the same, more slowly.

        Raises EngineError for numbers that contradict each other.
        """
        try:
            return self._program.draft(
                own._program,
                token_ids,
                start,
                np.ascontiguousarray(states),
                block_table,
                ids,
                passes,
                least_reached,
            )
        except ValueError as error:
            raise EngineError(str(error)) from error

    @property
    def hidden_states(self) -> Float32:
        """[H, width] of the last run's hidden rows, a view that is valid until the next run.

        Raises EngineError if the last run had none.
        """
        return self.draft_states[:, : self._hidden_width]

    @property
    def draft_states(self) -> Float32:
        """[H, all widths] those, and beside them the program's `draft_states`; valid as long. Raises too."""
        if self._hidden is None:
            raise EngineError("the last step had no hidden rows")
        return self._hidden

    def copy_block(self, source: int, destination: int) -> None:
        """Copy every layer's keys and values between blocks. Raises EngineError for no such block."""
        try:
            self._cache.copy_block(source, destination)
        except ValueError as error:
            raise EngineError(str(error)) from error

    def read_block(self, block: int) -> UInt8:
        """[block_bytes] a copy of one block of every layer. Raises EngineError for no such block."""
        try:
            return self._cache.read_block(block)
        except ValueError as error:
            raise EngineError(str(error)) from error

    def write_block(self, block: int, payload: UInt8) -> None:
        """Put such bytes into a block. Raises EngineError for no such block, or another length."""
        try:
            self._cache.write_block(block, payload)
        except ValueError as error:
            raise EngineError(str(error)) from error


def _cache(program: Program, kv_type: KvType, num_blocks: int) -> _native.KvCache:
    shapes = [(layer.kv_heads, layer.head_size) for layer in program.kv_layers]
    try:
        return _native.KvCache(kv_type == "int8", shapes, max(num_blocks, CALIBRATION_BLOCKS))
    except MemoryError as error:
        raise CapacityError(
            f"{num_blocks} KV blocks could not be reserved", hint="lower the KV memory cap"
        ) from error


def blocks_in(kv_bytes: int, program: Program, kv_type: KvType, *, beside: Program | None = None) -> int:
    """KV blocks that fit into `kv_bytes`. With another Program `beside` it a block has room for the keys and
    values of either: memory that one of them has touched stays its own."""
    block_bytes = sum(
        _native.KvCache(
            kv_type == "int8", [(layer.kv_heads, layer.head_size) for layer in one.kv_layers], 0
        ).block_bytes
        for one in (program, beside)
        if one is not None
    )
    return int(kv_bytes // block_bytes)
