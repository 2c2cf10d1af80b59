"""Medusa's residual blocks: from one hidden state of the target a guess for each of the next positions.

Cai et al., "Medusa", 2024. There head k is x + SiLU(W1 x), and output rows of its own. Here a block is
h + down · (silu(gate · h) * (up · h)), narrow inside, which is the gated form that the kernels have; and all
heads share the target's output rows, which are most of the bytes and so are read once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

import numpy as np

from stoker import _native
from stoker.kernels.native import NativeInterpreter
from stoker.kernels.program import (
    BLOCK_TOKENS,
    Add,
    Batch,
    Float32,
    GatedActivation,
    Input,
    Int32,
    Linear,
    Program,
    SelectRows,
)
from stoker.speculation.head import DRAFT_OUTPUT
from stoker.speculation.head_format import ARCHITECTURE, MOST_HEADS, MedusaShape

_PARTS: Final = ("gate", "up", "down")


class MedusaHead:
    """Runs the blocks and the output rows. One thread at a time; keeps nothing of any stream."""

    def __init__(
        self,
        shape: MedusaShape,
        token_ids: Int32,
        matrices: Mapping[str, _native.PackedMatrix],
        pool: _native.ThreadPool,
        *,
        vocabulary: int,
    ) -> None:
        """token_ids: [V] the draft vocabulary, ascending ids of the target's `vocabulary`."""
        self.heads = shape.heads
        self.width = shape.width
        self.token_ids = token_ids
        self.vocabulary = vocabulary

        def interpreter(program: Program, rows: int) -> NativeInterpreter:
            return NativeInterpreter(
                program,
                matrices,
                {},
                pool,
                kv_type="int8",
                num_blocks=1,
                batch_tokens=rows,
                outliers=0,  # calibrated on tokens, which no block reads
            )

        self._blocks = tuple(interpreter(block_program(shape, k), 1) for k in range(shape.heads))
        self._output = interpreter(output_program(shape), MOST_HEADS)

    def guess(self, state: Float32, count: int) -> Float32:
        """After a state [1, width] of the target: logits [count, V] over the draft vocabulary, of the tokens
        from two positions after the state's on; a view that is valid until the next call. count <= `heads`.
        """
        states = [block.run(_rows(state))[0] for block in self._blocks[:count]]
        return self._output.run(_rows(np.stack(states)))


def block_program(shape: MedusaShape, number: int) -> Program:
    """One head's block; what it gives in place of logits is a state [rows, width]."""
    gate, up, down = (_tensor(number, part) for part in _PARTS)
    return _program(
        Input("state", shape.width),
        Linear("gate", "state", gate),
        Linear("up", "state", up),
        GatedActivation("gated", "gate", "up", "silu"),
        Linear("change", "gated", down),
        Add("changed", "change", "state"),
        SelectRows("logits", "changed"),
    )


def output_program(shape: MedusaShape) -> Program:
    """The target's output rows over the states that the blocks gave; they are normed already."""
    return _program(
        Input("changed", shape.width),
        SelectRows("selected", "changed"),
        Linear("logits", "selected", DRAFT_OUTPUT),
    )


def medusa_tensor_shapes(shape: MedusaShape) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a Medusa file."""
    into, out = (shape.inner, shape.width), (shape.width, shape.inner)
    sizes = dict(zip(_PARTS, (into, into, out), strict=True))
    return {_tensor(number, part): sizes[part] for number in range(shape.heads) for part in _PARTS}


def _tensor(number: int, part: str) -> str:
    return f"medusa.{number}.{part}.weight"


def _program(*ops: Input | Linear | GatedActivation | Add | SelectRows) -> Program:
    # Rows are no tokens, and stand one beside the other in a block that holds no keys.
    return Program(
        ops=ops, kv_layers=(), vocabulary=1, context_tokens=BLOCK_TOKENS, architecture=ARCHITECTURE
    )


def _rows(inputs: Float32) -> Batch:
    count = len(inputs)
    counting = np.arange(count, dtype=np.int32)
    return Batch(
        token_ids=np.zeros(count, np.int32),
        positions=counting,
        query_start=np.array([0, count], np.int32),
        kv_tokens=np.array([count], np.int32),
        block_tables=np.zeros((1, 1), np.int32),
        logit_rows=counting,
        inputs=inputs,
    )
