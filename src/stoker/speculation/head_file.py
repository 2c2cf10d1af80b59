"""From a head file to a head that is bound to its target.

Embeddings and output rows are the target's own: those of the draft vocabulary are taken from its file as they
are. docs/concepts/speculation.md
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stoker import _native
from stoker.api.errors import ModelFormatError
from stoker.kernels.lowering import GROUP_COLUMNS, VECTOR_WIDTH
from stoker.kernels.program import Embed, Int32, Linear, Program
from stoker.models.config import config_from_gguf
from stoker.models.load import load_weights
from stoker.speculation.head import DRAFT_OUTPUT, EMBEDDING, DraftHead, eagle_program, tensor_shapes
from stoker.speculation.head_format import (
    EAGLE,
    KEY,
    KINDS,
    TOKENS,
    HeadIdentity,
    HeadShape,
    MedusaShape,
    identity_from,
    medusa_shape_from,
    shape_from,
)
from stoker.speculation.medusa_head import MedusaHead, block_program, medusa_tensor_shapes
from stoker.weights.gguf import GGUFFile
from stoker.weights.metadata import Array

_OUTPUTS: Final = ("output.weight", "token_embd.weight")  # of a target, the first that it has


class FoundHead(NamedTuple):
    """What a head file says of itself."""

    path: Path
    kind: str
    layers: tuple[int, ...]  # of the target, whose inputs the head reads beside the hidden state


def find_head(
    path: Path, target: GGUFFile, target_digest: str, *, kinds: Collection[str] = KINDS
) -> FoundHead | None:
    """Look at a head file before its target is loaded, which must know what the head reads; none if it is of
    no wanted kind.

    Raises `ModelFormatError` for a file that is broken or of another target, as far as can be seen without
    its numbers, and `ModelNotFoundError` for none.
    """
    with GGUFFile.open(path) as file:
        identity = identity_from(file.metadata)
        if identity.kind not in kinds:
            return None
        config = config_from_gguf(target.metadata, target.tensors)
        vocabulary, width = config.vocabulary, config.width
        _check_target(path, identity, target_digest, vocabulary)
        _draft_vocabulary(file.metadata, vocabulary, path)
        if identity.kind != EAGLE:
            medusa = _medusa_shape(file, identity)
            _check_tensors(file, medusa.width, width, medusa_tensor_shapes(medusa))
            return FoundHead(path, identity.kind, ())
        shape = shape_from(file.metadata)
        _check_tensors(file, shape.width, width, tensor_shapes(shape))
        if shape.layers and shape.layers[-1] >= config.layers:
            raise ModelFormatError(
                f"{path} reads layer {shape.layers[-1]} of its model; allowed: 0 to {config.layers - 1}"
            )
        return FoundHead(path, identity.kind, shape.layers)


def load_head(
    path: Path,
    target: GGUFFile,
    embedding: _native.PackedMatrix,
    pool: _native.ThreadPool,
    *,
    target_digest: str,
    context_tokens: int,
) -> DraftHead | MedusaHead:
    """Read a head file and bind it to its target, which is open, and whose packed embeddings it shares.

    Raises `ModelFormatError` for a file that is broken, of another target (its digest), or of another
    vocabulary, and `ModelNotFoundError` for none.
    """
    with GGUFFile.open(path) as file:
        identity = identity_from(file.metadata)
        _check_target(path, identity, target_digest, embedding.rows)
        token_ids = _draft_vocabulary(file.metadata, embedding.rows, path)
        if identity.kind == EAGLE:
            return _eagle(file, target, identity, token_ids, embedding, pool, context_tokens)
        return _medusa(file, target, identity, token_ids, embedding, pool)


def _eagle(
    file: GGUFFile,
    target: GGUFFile,
    identity: HeadIdentity,
    token_ids: Int32,
    embedding: _native.PackedMatrix,
    pool: _native.ThreadPool,
    context_tokens: int,
) -> DraftHead:
    shape = shape_from(file.metadata)
    _check_tensors(file, shape.width, embedding.columns, tensor_shapes(shape))
    matrices, vectors = load_weights(file, _own_part(shape, embedding.rows, context_tokens), pool)
    matrices[EMBEDDING] = embedding
    matrices[DRAFT_OUTPUT] = _output_rows(target, token_ids, pool)
    return DraftHead(
        shape, identity.passes, token_ids, matrices, vectors, pool,
        vocabulary=embedding.rows, context_tokens=context_tokens,
    )  # fmt: skip


def _medusa(
    file: GGUFFile,
    target: GGUFFile,
    identity: HeadIdentity,
    token_ids: Int32,
    embedding: _native.PackedMatrix,
    pool: _native.ThreadPool,
) -> MedusaHead:
    shape = _medusa_shape(file, identity)
    _check_tensors(file, shape.width, embedding.columns, medusa_tensor_shapes(shape))
    matrices: dict[str, _native.PackedMatrix] = {}
    for number in range(shape.heads):
        matrices |= load_weights(file, block_program(shape, number), pool)[0]
    matrices[DRAFT_OUTPUT] = _output_rows(target, token_ids, pool)
    return MedusaHead(shape, token_ids, matrices, pool, vocabulary=embedding.rows)


def _medusa_shape(file: GGUFFile, identity: HeadIdentity) -> MedusaShape:
    """Raises `ModelFormatError`."""
    shape = medusa_shape_from(file.metadata)
    if identity.passes != 1:
        raise ModelFormatError(f"{file.path}: {KEY}passes is {identity.passes}; allowed: 1 of a Medusa head")
    if shape.inner % GROUP_COLUMNS:
        raise ModelFormatError(
            f"{file.path}: blocks are {shape.inner} wide inside; allowed: multiples of {GROUP_COLUMNS}"
        )
    return shape


def _check_target(path: Path, identity: HeadIdentity, target_digest: str, vocabulary: int) -> None:
    if identity.target_digest != target_digest:
        raise ModelFormatError(
            f"{path} is a draft head for the model with digest {identity.target_digest[:16]}; this one "
            f"has {target_digest[:16]}",
            hint="train one for this model: stoker train-draft",
        )
    if identity.vocabulary != vocabulary:
        raise ModelFormatError(
            f"{path} is a draft head for a vocabulary of {identity.vocabulary} tokens; allowed: "
            f"{vocabulary}, the model's"
        )


def _check_tensors(
    file: GGUFFile, width: int, target_width: int, shapes: Mapping[str, tuple[int, ...]]
) -> None:
    """Raises `ModelFormatError` for a tensor that is not there, or not as it should be."""
    if width != target_width:
        raise ModelFormatError(f"{file.path} takes states of {width}; allowed: {target_width}, the model's")
    for name, wanted in shapes.items():
        tensor = file.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != wanted:
            found = "missing" if tensor is None else tuple(tensor.shape)
            raise ModelFormatError(f"{file.path}: tensor {name!r} is {found}; allowed: {wanted}")


def _own_part(shape: HeadShape, vocabulary: int, context_tokens: int) -> Program:
    """The ops of both programs whose weights the head file brings: not to be run, but to be loaded."""
    shared = (EMBEDDING, DRAFT_OUTPUT)
    first, own = (
        eagle_program(shape, vocabulary, context_tokens, of_target=of_target) for of_target in (True, False)
    )
    ops = (*first.ops, *own.ops)
    return replace(
        own, ops=tuple(op for op in ops if not (isinstance(op, Embed | Linear) and _weight_of(op) in shared))
    )


def _weight_of(op: Embed | Linear) -> str:
    return op.table if isinstance(op, Embed) else op.weight


def _draft_vocabulary(metadata: Mapping[str, Any], vocabulary: int, path: Path) -> Int32:
    """[V] ascending. Raises `ModelFormatError`."""
    values = metadata.get(TOKENS, ())
    try:
        found = values.numpy() if isinstance(values, Array) else np.asarray(values)
    except (TypeError, ValueError):  # no numbers, or lists of lists
        found = np.zeros(0, np.int32)
    ids = found.astype(np.int64) if found.ndim == 1 and found.dtype.kind in "iu" else np.zeros(0, np.int64)
    good = len(ids) >= VECTOR_WIDTH and not len(ids) % VECTOR_WIDTH
    if not good or ids[0] < 0 or ids[-1] >= vocabulary or not (np.diff(ids) > 0).all():
        raise ModelFormatError(
            f"{path}: {TOKENS} has {len(ids)} entries; allowed: a multiple of {VECTOR_WIDTH} of them, "
            f"ascending numbers of 0 to {vocabulary - 1}"
        )
    return ids.astype(np.int32)


def _output_rows(target: GGUFFile, token_ids: Int32, pool: _native.ThreadPool) -> _native.PackedMatrix:
    """The target's output rows of these tokens, as they are in its file."""
    tensor = next(target.tensors[name] for name in _OUTPUTS if name in target.tensors)
    rows, columns = tensor.shape
    raw = np.asarray(target.data(tensor)).reshape(rows, -1)[token_ids]
    target.release(tensor)
    return _native.PackedMatrix.pack(tensor.type.type_id, raw.reshape(-1), len(token_ids), columns, pool=pool)
