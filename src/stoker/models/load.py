"""From an open GGUF file to a native interpreter: weights packed tensor by tensor, pages let go behind."""

from __future__ import annotations

from functools import partial

import numpy as np

from stoker import _native
from stoker.api.errors import CapacityError, ModelFormatError
from stoker.kernels.native import KvType, NativeInterpreter, blocks_in
from stoker.kernels.program import Embed, Float32, Linear, Program
from stoker.models.layers import with_draft_states
from stoker.models.registry import program_from_gguf
from stoker.weights.gguf import GGUFFile
from stoker.weights.packing import dequantize_reference


def load_native(
    file: GGUFFile,
    *,
    threads: int,
    kv_bytes: int,
    batch_tokens: int,
    kv_type: KvType = "int8",
    beside: Program | None = None,
    draft_layers: tuple[int, ...] = (),
) -> NativeInterpreter:
    """Build the Program of `file`, pack its weights, reserve KV memory.

    kv_bytes caps the KV cache (touched as it fills); batch_tokens the tokens of one step. `beside`: a model
    whose keys and values will lie in blocks of the same numbers, under the same cap. `draft_layers`: those
    whose inputs are given as draft states, beside the hidden state. The file may be closed afterwards.
    Raises ModelFormatError for what is wrong with the file, naming the tensor, and CapacityError where the
    system refuses threads or memory.
    """
    program = program_from_gguf(file.metadata, file.tensors)
    if draft_layers:
        program = with_draft_states(program, draft_layers)
    num_blocks = blocks_in(kv_bytes, program, kv_type, beside=beside)
    return load_on(
        _thread_pool(threads),
        file,
        program,
        num_blocks=num_blocks,
        batch_tokens=batch_tokens,
        kv_type=kv_type,
    )


def load_on(
    pool: _native.ThreadPool,
    file: GGUFFile,
    program: Program,
    *,
    num_blocks: int,
    batch_tokens: int,
    kv_type: KvType,
) -> NativeInterpreter:
    """`load_native` on threads that are there, with a given number of KV blocks. Raises the same."""
    try:
        matrices, vectors = load_weights(file, program, pool)
        return NativeInterpreter(
            program,
            matrices,
            vectors,
            pool,
            kv_type=kv_type,
            num_blocks=num_blocks,
            batch_tokens=batch_tokens,
        )
    except MemoryError as error:
        raise CapacityError(
            f"not enough memory to load {file.path}, whose tensors take {file.size_bytes} bytes",
            hint="close other programs, or take a smaller model",
        ) from error


def _thread_pool(threads: int) -> _native.ThreadPool:
    try:
        return _native.ThreadPool(threads)
    except (RuntimeError, MemoryError) as error:
        raise CapacityError(
            f"{threads} threads could not be started: {error or 'not enough memory'}",
            hint="ask for fewer threads, or raise this user's limit of processes",
        ) from error


def load_weights(
    file: GGUFFile, program: Program, pool: _native.ThreadPool
) -> tuple[dict[str, _native.PackedMatrix], dict[str, Float32]]:
    """(matrices of Embed and Linear, packed; all other weights as float32 vectors), by tensor name.

    Pages of the file are released while a tensor is packed, so that peak memory is the packed model and a few
    megabytes. Raises ModelFormatError for a scale, minimum or vector element that is NaN or infinite.
    """
    tables = {op.table for op in program.ops if isinstance(op, Embed)}
    packed = tables | {op.weight for op in program.ops if isinstance(op, Linear)}
    matrices: dict[str, _native.PackedMatrix] = {}
    vectors: dict[str, Float32] = {}
    for name in program.weights:
        tensor = file.tensors[name]
        raw = np.asarray(file.data(tensor))
        if name in packed:
            rows, columns = tensor.shape
            try:
                matrices[name] = _native.PackedMatrix.pack(
                    tensor.type.type_id,
                    raw,
                    rows,
                    columns,
                    pool=pool,
                    read_up_to=partial(file.release, tensor),
                )
            except ValueError as error:
                raise ModelFormatError(f"tensor {name!r} ({tensor.type.name}): {error}") from error
        else:
            vectors[name] = _vector(
                name, dequantize_reference(tensor.type.type_id, raw, 1, tensor.n_elements)
            )
        file.release(tensor)
    file.release_all()  # what was read around the tensors, and the header
    return matrices, vectors


def _vector(name: str, values: Float32) -> Float32:
    flat = np.ascontiguousarray(values.reshape(-1), dtype=np.float32)
    if not np.isfinite(flat).all():
        at = int(np.flatnonzero(~np.isfinite(flat))[0])
        raise ModelFormatError(f"tensor {name!r}, element {at} is {flat[at]}; allowed: finite numbers")
    return flat
