"""A draft head from its file: one decoder layer that goes on from the target's hidden states.

The file has the layer alone. Embeddings and output rows are the target's own: those of the draft vocabulary
are taken from its file as they are. docs/concepts/speculation.md
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np

from stoker import _native
from stoker.api.errors import ModelFormatError
from stoker.kernels.lowering import VECTOR_WIDTH
from stoker.kernels.native import NativeInterpreter
from stoker.kernels.program import (
    BLOCK_TOKENS,
    Add,
    Batch,
    Embed,
    Float32,
    Input,
    Int32,
    KvLayer,
    Linear,
    Op,
    Program,
    RmsNorm,
    SelectRows,
)
from stoker.models.config import ModelConfig
from stoker.models.layers import plain_style, pre_norm_layer
from stoker.models.load import load_weights
from stoker.speculation.head_format import ARCHITECTURE, TOKENS, HeadShape, identity_from, shape_from
from stoker.weights.gguf import GGUFFile

MOST_STREAMS: Final = (
    8  # that keep keys and values; of more, the one that waits longest computes its own anew
)
_EMBEDDING: Final = "token_embd.weight"  # the target's
_DRAFT_OUTPUT: Final = "draft_output.weight"  # the target's rows of the draft vocabulary
_OUTPUTS: Final = ("output.weight", "token_embd.weight")  # of a target, the first that it has
_MOST_DRAFTED = 16


class Guess(NamedTuple):
    """What the head says of one position."""

    logits: Float32  # [V] over the draft vocabulary; a view that is valid until the next call
    state: Float32  # [1, width] to go on from; a copy


class DraftHead:
    """Runs a head. One thread at a time; keeps keys and values of the last streams that asked."""

    def __init__(
        self,
        shape: HeadShape,
        passes: int,
        token_ids: Int32,
        matrices: Mapping[str, _native.PackedMatrix],
        vectors: Mapping[str, Float32],
        pool: _native.ThreadPool,
        *,
        vocabulary: int,
        context_tokens: int,
    ) -> None:
        """token_ids: [V] the draft vocabulary, ascending ids of the target's `vocabulary`."""
        self.window = shape.window
        self.passes = passes
        self.token_ids = token_ids
        self.vocabulary = vocabulary
        # Blocks of a stream are used in turn: those of the window, and of what is drafted past it. Of many
        # tokens at once the last may write over what the first still sees; only the last one is asked about.
        self._ring = -(-(shape.window + _MOST_DRAFTED) // BLOCK_TOKENS) + 1
        blocks = -(-(context_tokens + _MOST_DRAFTED) // BLOCK_TOKENS)
        of_first: Int32 = np.arange(blocks, dtype=np.int32) % self._ring
        # [streams, blocks of the longest context]: which block each place of a stream lies in
        self._tables: Int32 = of_first + self._ring * np.arange(MOST_STREAMS, dtype=np.int32)[:, None]
        self._owners: OrderedDict[object, int] = OrderedDict()  # the place of each, last used last
        program = eagle_program(shape, vocabulary, context_tokens + _MOST_DRAFTED)
        self._interpreter = NativeInterpreter(
            program,
            matrices,
            vectors,
            pool,
            kv_type="int8",
            num_blocks=MOST_STREAMS * self._ring,
            batch_tokens=shape.window,
            outliers=0,  # calibrated on tokens alone, which says nothing of states
        )

    def holds(self, owner: object) -> bool:
        """Whether the keys and values of this stream are still there."""
        return owner in self._owners

    def forget(self, owner: object) -> None:
        """A stream has ended."""
        self._owners.pop(owner, None)

    def guess(self, owner: object, start: int, token_ids: Int32, states: Float32) -> Guess:
        """After states [count, width] at places [start, start + count) of a stream, each with the token
        after it.

        Places count from where the stream's states begin; those before `start` were given earlier. At most
        `window` at once.
        """
        place = self._owners.pop(owner, None)
        if place is None:
            free = set(range(MOST_STREAMS)).difference(self._owners.values())
            place = min(free) if free else self._owners.popitem(last=False)[1]
        self._owners[owner] = place
        count = len(token_ids)
        end = start + count
        last = np.array((count - 1,), np.int32)
        logits = self._interpreter.run(
            Batch(
                token_ids=token_ids,
                positions=np.arange(start, end, dtype=np.int32),
                query_start=np.array((0, count), np.int32),
                kv_tokens=np.array((end,), np.int32),
                block_tables=self._tables[place : place + 1, : -(-end // BLOCK_TOKENS)],
                logit_rows=last,
                hidden_rows=last,
                inputs=states,
            )
        )
        return Guess(logits[0], self._interpreter.hidden_states.copy())


def eagle_program(shape: HeadShape, vocabulary: int, context_tokens: int) -> Program:
    """Norms of both inputs, their sum through a matrix each, a pre-norm layer, and the target's output
    rows.
    """
    config = ModelConfig(
        architecture=ARCHITECTURE,
        vocabulary=vocabulary,
        context_tokens=context_tokens,
        layers=1,
        width=shape.width,
        feed_forward=shape.feed_forward,
        heads=shape.heads,
        kv_heads=shape.kv_heads,
        head_size=shape.head_size,
        norm_eps=shape.norm_eps,
        rope_base=shape.rope_base,
        rotary=shape.head_size,
    )
    style = plain_style(config, "interleaved", window=shape.window)
    ops: list[Op] = [
        Embed("embedding", _EMBEDDING),
        RmsNorm("embedding_norm", "embedding", "embedding_norm.weight", shape.norm_eps),
        Input("state", shape.width),
        RmsNorm("feature_norm", "state", "feature_norm.weight", shape.norm_eps),
        Linear("from_embedding", "embedding_norm", "fc_embedding.weight"),
        Linear("from_feature", "feature_norm", "fc_feature.weight"),
        Add("joined", "from_embedding", "from_feature"),
    ]
    ops += pre_norm_layer(config, 0, "joined", style)
    result = ops[-1].out
    ops += [
        SelectRows("hidden_selected", result, "hidden"),
        RmsNorm("hidden", "hidden_selected", "output_norm.weight", shape.norm_eps),
        SelectRows("selected", result),
        RmsNorm("final_norm", "selected", "output_norm.weight", shape.norm_eps),
        Linear("logits", "final_norm", _DRAFT_OUTPUT),
    ]
    return Program(
        ops=tuple(ops),
        kv_layers=(KvLayer(shape.kv_heads, shape.head_size, shape.window),),
        vocabulary=vocabulary,
        context_tokens=context_tokens,
        architecture=ARCHITECTURE,
        hidden="hidden",
    )


def load_head(
    path: Path,
    target: GGUFFile,
    embedding: _native.PackedMatrix,
    pool: _native.ThreadPool,
    *,
    target_digest: str,
    context_tokens: int,
) -> DraftHead:
    """Read a head file and bind it to its target, which is open, and whose packed embeddings it shares.

    Raises `ModelFormatError` for a file that is broken, of another target (its digest), or of another
    vocabulary, and `ModelNotFoundError` for none.
    """
    with GGUFFile.open(path) as file:
        identity = identity_from(file.metadata)
        if identity.target_digest != target_digest:
            raise ModelFormatError(
                f"{path} is a draft head for the model with digest {identity.target_digest[:16]}; this one "
                f"has {target_digest[:16]}",
                hint="train one for this model: stoker train-draft",
            )
        vocabulary, width = embedding.rows, embedding.columns
        if identity.vocabulary != vocabulary:
            raise ModelFormatError(
                f"{path} is a draft head for a vocabulary of {identity.vocabulary} tokens; allowed: "
                f"{vocabulary}, the model's"
            )
        shape = shape_from(file.metadata)
        if shape.width != width:
            raise ModelFormatError(f"{path} takes states of {shape.width}; allowed: {width}, the model's")
        token_ids = _draft_vocabulary(file.metadata, vocabulary, path)
        own = _own_part(eagle_program(shape, vocabulary, context_tokens), file, shape)
        matrices, vectors = load_weights(file, own, pool)
    matrices[_EMBEDDING] = embedding
    matrices[_DRAFT_OUTPUT] = _output_rows(target, token_ids, pool)
    return DraftHead(
        shape, identity.passes, token_ids, matrices, vectors, pool,
        vocabulary=vocabulary, context_tokens=context_tokens,
    )  # fmt: skip


def tensor_shapes(shape: HeadShape) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a head file."""
    width, inner = shape.width, shape.feed_forward
    query, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    vectors = ("embedding_norm", "feature_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    return {f"{name}.weight": (width,) for name in vectors} | {
        "fc_embedding.weight": (width, width),
        "fc_feature.weight": (width, width),
        "blk.0.attn_q.weight": (query, width),
        "blk.0.attn_k.weight": (kv, width),
        "blk.0.attn_v.weight": (kv, width),
        "blk.0.attn_output.weight": (width, query),
        "blk.0.ffn_gate.weight": (inner, width),
        "blk.0.ffn_up.weight": (inner, width),
        "blk.0.ffn_down.weight": (width, inner),
    }


def _own_part(program: Program, file: GGUFFile, shape: HeadShape) -> Program:
    """The ops whose weights the head file brings. Raises `ModelFormatError` for a tensor that is not there,
    or not as it should be."""
    for name, wanted in tensor_shapes(shape).items():
        tensor = file.tensors.get(name)
        if tensor is None or tuple(tensor.shape) != wanted:
            found = "missing" if tensor is None else tuple(tensor.shape)
            raise ModelFormatError(f"{file.path}: tensor {name!r} is {found}; allowed: {wanted}")
    shared = (_EMBEDDING, _DRAFT_OUTPUT)
    ops = tuple(op for op in program.ops if not (isinstance(op, Embed | Linear) and _weight_of(op) in shared))
    return replace(program, ops=ops)


def _weight_of(op: Embed | Linear) -> str:
    return op.table if isinstance(op, Embed) else op.weight


def _draft_vocabulary(metadata: Mapping[str, Any], vocabulary: int, path: Path) -> Int32:
    """[V] ascending. Raises `ModelFormatError`."""
    found = metadata.get(TOKENS)
    ids = np.array(found if found is not None else [], np.int64)
    good = ids.ndim == 1 and len(ids) >= VECTOR_WIDTH and not len(ids) % VECTOR_WIDTH
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
