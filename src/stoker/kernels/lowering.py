"""From a Program's ops to the native core's steps: buffers, and the fusions that save passes over memory.

Fused on the way (each changes where a number is kept, never what it is):
norm + quantise; the linear layers that read one input in one step; linear + residual; norm + residual;
gate·up + activation + quantise; attention + quantise; rope and head norms in place.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import numpy as np

from stoker import _native
from stoker.api.errors import ModelFormatError
from stoker.kernels.program import (
    Add,
    Attention,
    Embed,
    Float32,
    GatedActivation,
    Input,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
    Scale,
    SelectRows,
    Softcap,
)

NONE = -1  # the core's "no buffer"
VECTOR_WIDTH = 16  # the kernels' lanes: row widths are multiples of it
GROUP_COLUMNS = 32  # activations share a scale per group; a quantised row is a multiple of it
MOST_HEAD_SIZE = 512  # attention's scratch per thread
MOST_GROUP = 32  # query heads to a kv head: the rows of one unit of attention (kUnitRows)

_NO_BIAS = np.zeros(0, np.float32)
_ROWS: Mapping[str, _native.Rows] = MappingProxyType(
    {"logits": _native.Rows.LOGITS, "hidden": _native.Rows.HIDDEN}
)


class Lowering:
    """One pass over the ops. Owns the naming of buffers while it runs; the core keeps the result."""

    def __init__(
        self,
        program: Program,
        matrices: Mapping[str, _native.PackedMatrix],
        vectors: Mapping[str, Float32],
        target: _native.Program,
    ) -> None:
        self._ops = program.ops
        self._hidden = () if program.hidden is None else (program.hidden, *program.draft_states)
        self._matrices = matrices
        self._vectors = vectors
        self._target = target
        self._readers: dict[str, list[int]] = defaultdict(list)
        self._producer: dict[str, Op] = {}
        for index, op in enumerate(self._ops):
            self._producer[op.out] = op
            for name in inputs_of(op):
                self._readers[name].append(index)
        self._last_read = {name: readers[-1] for name, readers in self._readers.items()}
        self._done: set[int] = set()
        self._floats: dict[str, int] = {}  # activation -> float buffer
        self._quantised: dict[str, int] = {}  # activation -> quantised buffer
        self._widths: dict[str, int] = {}
        # (quantised, width, what it has a row for) -> buffers
        self._free: dict[tuple[bool, int, _native.Rows], list[int]] = defaultdict(list)
        self._ropes: dict[tuple[Any, ...], int] = {}
        self._rows = _native.Rows.TOKENS
        self._rows_of: dict[str, _native.Rows] = {}  # activation -> what it has a row for

    def run(self) -> None:
        """Emit every step. Raises ModelFormatError for sizes the kernels cannot take."""
        emit = {
            Embed: self._embed,
            Input: self._input,
            RmsNorm: self._norm,
            Linear: self._linear_or_gated,
            Rope: self._rope,
            Attention: self._attention,
            GatedActivation: self._gated,
            Add: self._add,
            Scale: self._scale,
            Softcap: self._softcap,
            SelectRows: self._select,
        }
        for index, op in enumerate(self._ops):
            if index not in self._done:
                emit[type(op)](op, index)  # type: ignore[operator]
                self._done.add(index)
            self._release(index)
        for name in self._hidden:
            self._target.return_hidden(self._floats[name])

    # --- buffers ------------------------------------------------------------------------------------

    def _new(self, name: str, width: int, *, quantised: bool = False) -> int:
        unit = GROUP_COLUMNS if quantised else VECTOR_WIDTH
        is_last = name == self._ops[-1].out  # logits: only written panel by panel, any width
        if width % unit and not is_last:
            raise ModelFormatError(f"activation {name!r} is {width} wide; allowed: multiples of {unit}")
        self._widths[name] = width
        self._rows_of[name] = self._rows
        pool = self._free[(quantised, width, self._rows)]
        if pool:
            buffer = pool.pop()
        elif quantised:
            buffer = self._target.quantised_buffer(width, self._rows)
        else:
            buffer = self._target.float_buffer(width, self._rows)
        (self._quantised if quantised else self._floats)[name] = buffer
        return buffer

    def _release(self, index: int) -> None:
        """Return the buffers of activations whose last reader has been emitted; results have none."""
        for kind, owned in ((False, self._floats), (True, self._quantised)):
            for name in [n for n in owned if self._last_read.get(n, len(self._ops)) <= index]:
                if all(reader in self._done for reader in self._readers[name]):
                    self._free[(kind, self._widths[name], self._rows_of[name])].append(owned.pop(name))

    def _take_over(self, source: str, name: str, index: int) -> int | None:
        """The float buffer of `source` for `name` when op `index` is its last reader, else none."""
        if self._last_read[source] != index or source not in self._floats:
            return None
        buffer = self._floats.pop(source)
        self._floats[name] = buffer
        self._widths[name] = self._widths[source]
        self._rows_of[name] = self._rows_of[source]
        return buffer

    # --- who reads what -----------------------------------------------------------------------------

    def _is_quantised_read(self, reader: Op) -> bool:
        return isinstance(reader, Linear) and not self._matrices[reader.weight].is_float

    def _wants(self, name: str) -> tuple[bool, bool]:
        """(read as floats, read as int8) by the ops after it; the program's result is read as floats."""
        kinds = [self._is_quantised_read(self._ops[i]) for i in self._readers[name]]
        return (not kinds or not all(kinds)), any(kinds)

    def _quantise_if_wanted(self, name: str) -> None:
        if self._wants(name)[1] and name not in self._quantised:
            out = self._new(name, self._widths[name], quantised=True)
            self._target.quantise(x=self._floats[name], out=out)

    # --- ops ----------------------------------------------------------------------------------------

    def _embed(self, op: Embed, index: int) -> None:
        table = self._matrices[op.table]
        self._target.embed(out=self._new(op.out, table.columns), table=table, scale=op.scale)
        self._quantise_if_wanted(op.out)

    def _input(self, op: Input, index: int) -> None:
        self._target.input(out=self._new(op.out, op.width))
        self._quantise_if_wanted(op.out)

    def _norm(self, op: RmsNorm, index: int) -> None:
        width = self._widths[op.x]
        weight = self._vectors[op.weight]
        groups = 1 if op.head_size is None else width // op.head_size
        if len(weight) * groups != width or len(weight) % VECTOR_WIDTH:
            raise ModelFormatError(
                f"norm weight {op.weight!r} has {len(weight)} numbers; "
                f"allowed: {width // groups}, a multiple of {VECTOR_WIDTH}"
            )
        residual = self._residual_of(op.out) if groups == 1 else None
        if residual is not None:
            at, add, other = residual
            out = self._take_over(other, add.out, at)
            assert out is not None
            x = self._floats[op.x]
            self._target.norm(
                x=x, residual=out, out=out, out_quantised=NONE, weight=weight, eps=op.eps, groups=1
            )
            self._done.add(at)
            self._quantise_if_wanted(add.out)
            return
        as_floats, as_int8 = self._wants(op.out)
        fused = groups == 1 and as_int8
        x = self._floats[op.x]
        out = NONE
        if as_floats or not fused:
            reused = self._take_over(op.x, op.out, index)
            out = self._new(op.out, width) if reused is None else reused
        self._widths[op.out] = width
        quantised = self._new(op.out, width, quantised=True) if fused else NONE
        self._target.norm(
            x=x, residual=NONE, out=out, out_quantised=quantised, weight=weight, eps=op.eps, groups=groups
        )
        self._quantise_if_wanted(op.out)

    def _residual_of(self, name: str) -> tuple[int, Add, str] | None:
        """(index, op, other input) of the Add that alone reads `name`, if the other can be overwritten."""
        readers = self._readers[name]
        if len(readers) != 1 or not isinstance(add := self._ops[readers[0]], Add) or add.a == add.b:
            return None
        other = add.b if add.a == name else add.a
        if other not in self._floats or self._last_read[other] != readers[0]:
            return None
        return readers[0], add, other

    def _linear(self, op: Linear, index: int) -> None:
        """This linear layer and every other one that reads the same input, as one step."""
        siblings = [
            i
            for i in self._readers[op.x]
            if i not in self._done and isinstance(other := self._ops[i], Linear) and self._can_join(op, other)
        ]
        parts = []
        for i in siblings:
            part = self._ops[i]
            assert isinstance(part, Linear)
            weight = self._matrices[part.weight]
            bias = _NO_BIAS if part.bias is None else self._vectors[part.bias]
            residual = self._residual_of(part.out)
            if residual is not None and len(siblings) == 1:
                at, add, kept = residual
                out = self._take_over(kept, add.out, at)
                assert out is not None
                self._done.add(at)
                parts.append((weight, out, bias, True))
                after = add.out
            else:
                parts.append((weight, self._new(part.out, weight.rows), bias, False))
                after = part.out
            self._done.add(i)
        is_float = self._matrices[op.weight].is_float
        self._target.linear(
            x=self._floats[op.x] if is_float else NONE,
            x_quantised=NONE if is_float else self._quantised[op.x],
            parts=parts,
        )
        if len(siblings) == 1:
            self._quantise_if_wanted(after)
        else:
            for i in siblings:
                self._quantise_if_wanted(self._ops[i].out)

    def _can_join(self, first: Linear, other: Linear) -> bool:
        if self._matrices[first.weight].is_float != self._matrices[other.weight].is_float:
            return False
        return other is first or self._gate_of(other) is None

    def _gate_of(self, op: Linear) -> GatedActivation | None:
        """The gated activation that alone reads this layer and can be computed with it, or none."""
        readers = self._readers[op.out]
        if len(readers) != 1 or not isinstance(gated := self._ops[readers[0]], GatedActivation):
            return None
        gate, up = self._producer[gated.gate], self._producer[gated.up]
        if not (isinstance(gate, Linear) and isinstance(up, Linear)) or gate.x != up.x or gate is up:
            return None
        matrices = [self._matrices[gate.weight], self._matrices[up.weight]]
        plain = gate.bias is None and up.bias is None and not any(m.is_float for m in matrices)
        only = len(self._readers[gated.gate]) == len(self._readers[gated.up]) == 1
        only_int8 = not self._wants(gated.out)[0]
        if not (plain and only and only_int8) or matrices[0].rows % GROUP_COLUMNS:
            return None
        return gated

    def _linear_or_gated(self, op: Linear, index: int) -> None:
        gated = self._gate_of(op)
        if gated is None:
            self._linear(op, index)
            return
        gate, up = self._producer[gated.gate], self._producer[gated.up]
        assert isinstance(gate, Linear)
        assert isinstance(up, Linear)
        matrix = self._matrices[gate.weight]
        self._target.gated_linear(
            x_quantised=self._quantised[op.x],
            out_quantised=self._new(gated.out, matrix.rows, quantised=True),
            gate=matrix,
            up=self._matrices[up.weight],
            gelu=gated.activation == "gelu_tanh",
        )
        self._done.update(
            i for i, other in enumerate(self._ops) if other is gate or other is up or other is gated
        )

    def _gated(self, op: GatedActivation, index: int) -> None:
        gate, up = self._floats[op.gate], self._floats[op.up]
        out = self._take_over(op.gate, op.out, index)
        if out is None:
            out = self._new(op.out, self._widths[op.gate])
        self._target.gated(gate=gate, up=up, out=out, gelu=op.activation == "gelu_tanh")
        self._quantise_if_wanted(op.out)

    def _rope(self, op: Rope, index: int) -> None:
        x, width = self._floats[op.x], self._widths[op.x]
        reused = self._take_over(op.x, op.out, index)
        out = self._new(op.out, width) if reused is None else reused
        self._target.rope(
            x=x, out=out, table=self._rope_table(op), heads=width // op.head_size, head_size=op.head_size
        )
        self._quantise_if_wanted(op.out)

    def _rope_table(self, op: Rope) -> int:
        key = (op.rotary, op.pairing, op.base, op.linear_scale, op.factors)
        if key not in self._ropes:
            frequency = _native.rope_frequencies(op.base, op.rotary)
            if op.factors is not None:
                frequency = frequency / self._vectors[op.factors]
            frequency = (frequency * np.float32(op.linear_scale)).astype(np.float32)
            self._ropes[key] = self._target.rope_table(op.rotary, op.pairing == "interleaved", frequency)
        return self._ropes[key]

    def _attention(self, op: Attention, index: int) -> None:
        width = op.heads * op.head_size
        if op.head_size % VECTOR_WIDTH or op.head_size > MOST_HEAD_SIZE:
            raise ModelFormatError(
                f"heads of {op.head_size}; allowed: multiples of {VECTOR_WIDTH} up to {MOST_HEAD_SIZE}"
            )
        if op.heads // op.kv_heads > MOST_GROUP:
            raise ModelFormatError(
                f"{op.heads} heads share {op.kv_heads} kv heads; allowed: up to {MOST_GROUP} to each"
            )
        as_floats, as_int8 = self._wants(op.out)
        fused = as_int8 and not as_floats and op.head_size % GROUP_COLUMNS == 0
        self._target.attention(
            q=self._floats[op.q],
            k=self._floats[op.k],
            v=self._floats[op.v],
            out=NONE if fused else self._new(op.out, width),
            out_quantised=self._new(op.out, width, quantised=True) if fused else NONE,
            layer=op.layer,
            heads=op.heads,
            kv_heads=op.kv_heads,
            head_size=op.head_size,
            scale=op.scale,
            softcap=op.softcap or 0.0,
            window=op.window or 0,
        )
        self._quantise_if_wanted(op.out)

    def _add(self, op: Add, index: int) -> None:
        a, b = self._floats[op.a], self._floats[op.b]
        out = self._take_over(op.a, op.out, index)
        if out is None:
            out = self._new(op.out, self._widths[op.a])
        self._target.add(a=a, b=b, out=out)
        self._quantise_if_wanted(op.out)

    def _scale(self, op: Scale, index: int) -> None:
        x, width = self._floats[op.x], self._widths[op.x]
        reused = self._take_over(op.x, op.out, index)
        self._target.scale(x=x, out=self._new(op.out, width) if reused is None else reused, factor=op.factor)
        self._quantise_if_wanted(op.out)

    def _softcap(self, op: Softcap, index: int) -> None:
        x, width = self._floats[op.x], self._widths[op.x]
        reused = self._take_over(op.x, op.out, index)
        self._target.softcap(x=x, out=self._new(op.out, width) if reused is None else reused, cap=op.cap)
        self._quantise_if_wanted(op.out)

    def _select(self, op: SelectRows, index: int) -> None:
        self._rows = _ROWS[op.rows]
        out = self._new(op.out, self._widths[op.x])
        self._target.select(x=self._floats[op.x], out=out, rows=self._rows)
        self._quantise_if_wanted(op.out)


def inputs_of(op: Op) -> tuple[str, ...]:
    """Names of the activations an op reads."""
    match op:
        case Embed() | Input():
            return ()
        case Attention():
            return (op.q, op.k, op.v)
        case GatedActivation():
            return (op.gate, op.up)
        case Add():
            return (op.a, op.b)
        case _:
            return (op.x,)
