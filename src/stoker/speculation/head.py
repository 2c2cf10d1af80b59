"""An EAGLE head: one decoder layer that goes on from the target's hidden states"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping
from typing import Final, NamedTuple

import numpy as np

from stoker import _native
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
from stoker.speculation.head_format import ARCHITECTURE, HeadShape

MOST_STREAMS: Final = (
    8  # that keep keys and values; of more, the one that waits longest computes its own anew
)
EMBEDDING: Final = "token_embd.weight"  # the target's
DRAFT_OUTPUT: Final = "draft_output.weight"  # the target's rows of the draft vocabulary
_MOST_DRAFTED = 16


class Guess(NamedTuple):
    """What the head says of one position."""

    logits: Float32  # [V] over the draft vocabulary; a view that is valid until the next call
    state: Float32  # [1, width] to go on from; a copy


class Sure(NamedTuple):
    """The two likeliest tokens of one position, ids of the target's, and their shares; -1 for none."""

    first: int
    share: float
    second: int
    second_share: float


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
        self.layers = shape.layers
        self.target_width = shape.target_width
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

        def interpreter(*, of_target: bool, beside: NativeInterpreter | None = None) -> NativeInterpreter:
            return NativeInterpreter(
                eagle_program(shape, vocabulary, context_tokens + _MOST_DRAFTED, of_target=of_target),
                matrices,
                vectors,
                pool,
                kv_type="int8",
                num_blocks=MOST_STREAMS * self._ring,
                batch_tokens=shape.window,
                outliers=0,  # calibrated on tokens alone, which says nothing of states
                beside=beside,
            )

        self._own = interpreter(of_target=False)  # goes on from the head's own states
        self._first = interpreter(of_target=True, beside=self._own) if shape.layers else self._own

    def holds(self, owner: object) -> bool:
        """Whether the keys and values of this stream are still there."""
        return owner in self._owners

    def forget(self, owner: object) -> None:
        """A stream has ended."""
        self._owners.pop(owner, None)

    def guess(
        self, owner: object, start: int, token_ids: Int32, states: Float32, *, own: bool = False
    ) -> Guess:
        """After states at places [start, start + count) of a stream, each with the token after it: the
        target's [count, target_width], or the head's `own` [count, width].

        Places count from where the stream's states begin; those before `start` were given earlier. At most
        `window` at once.
        """
        interpreter = self._own if own else self._first
        place = self._place(owner)
        count = len(token_ids)
        end = start + count
        last = np.array((count - 1,), np.int32)
        logits = interpreter.run(
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
        return Guess(logits[0], interpreter.hidden_states.copy())

    def chain(
        self,
        owner: object,
        start: int,
        token_ids: Int32,
        states: Float32,
        *,
        passes: int,
        least_reached: float,
    ) -> tuple[Sure, ...]:
        """What `guess` says after the target's states, and then after its own, along the likeliest tokens, in
        one call. No pass follows a token that is less likely to be reached than `least_reached`.
        """
        table = self._tables[self._place(owner)]
        found = self._first.draft(
            self._own, token_ids, start, states, table, self.token_ids, passes, least_reached
        )
        return tuple(map(Sure._make, found))

    def _place(self, owner: object) -> int:
        """Where the keys and values of a stream are, which may be another's until now."""
        place = self._owners.pop(owner, None)
        if place is None:
            free = set(range(MOST_STREAMS)).difference(self._owners.values())
            place = min(free) if free else self._owners.popitem(last=False)[1]
        self._owners[owner] = place
        return place


def eagle_program(
    shape: HeadShape, vocabulary: int, context_tokens: int, *, of_target: bool = True
) -> Program:
    """Norms of both inputs, their sum through a matrix each, a pre-norm layer, and the target's output
    rows. The states are the target's, or those that the head gave: the same, for a head that reads no layers.
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
        Embed("embedding", EMBEDDING),
        RmsNorm("embedding_norm", "embedding", "embedding_norm.weight", shape.norm_eps),
        *_from_state(shape, of_target=of_target),
        Linear("from_embedding", "embedding_norm", "fc_embedding.weight"),
        Add("joined", "from_embedding", "from_feature"),
    ]
    ops += pre_norm_layer(config, 0, "joined", style)
    result = ops[-1].out
    ops += [
        SelectRows("hidden_selected", result, "hidden"),
        RmsNorm("hidden", "hidden_selected", "output_norm.weight", shape.norm_eps),
        SelectRows("selected", result),
        RmsNorm("final_norm", "selected", "output_norm.weight", shape.norm_eps),
        Linear("logits", "final_norm", DRAFT_OUTPUT),
    ]
    return Program(
        ops=tuple(ops),
        kv_layers=(KvLayer(shape.kv_heads, shape.head_size, shape.window),),
        vocabulary=vocabulary,
        context_tokens=context_tokens,
        architecture=ARCHITECTURE,
        hidden="hidden",
    )


def _from_state(shape: HeadShape, *, of_target: bool) -> tuple[Op, ...]:
    """A state through a norm and a matrix; of the target's each part through a norm of its own."""
    if not (of_target and shape.layers):
        return (
            Input("state", shape.width),
            RmsNorm("feature_norm", "state", "feature_norm.weight", shape.norm_eps),
            Linear("from_feature", "feature_norm", "fc_feature.weight"),
        )
    return (
        Input("state", shape.target_width),
        RmsNorm("feature_norm", "state", "target_norm.weight", shape.norm_eps, head_size=shape.width),
        Linear("from_feature", "feature_norm", "fc_target.weight"),
    )


def tensor_shapes(shape: HeadShape) -> dict[str, tuple[int, ...]]:
    """Of every tensor of a head file."""
    of_target: dict[str, tuple[int, ...]] = {}
    if shape.layers:
        of_target = {
            "target_norm.weight": (shape.width,),
            "fc_target.weight": (shape.width, shape.target_width),
        }
    width, inner = shape.width, shape.feed_forward
    query, kv = shape.heads * shape.head_size, shape.kv_heads * shape.head_size
    vectors = ("embedding_norm", "feature_norm", "blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    return (
        {f"{name}.weight": (width,) for name in vectors}
        | of_target
        | {
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
    )
