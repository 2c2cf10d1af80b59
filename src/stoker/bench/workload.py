"""What is measured: the workloads, under the names that results carry.

They are those of llama-bench and llama-batched-bench, so that numbers can be laid beside each other: random
token ids; a prompt is prefilled alone; decoding starts from full contexts of equal length.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

CHUNK_TOKENS = 512  # a prompt's tokens per step: the engine's default budget, and llama.cpp's n_ubatch


@dataclass(frozen=True, slots=True)
class Prefill:
    """A prompt of `tokens` tokens in chunks of CHUNK_TOKENS; logits of the last token only."""

    tokens: int

    @property
    def most_kv_tokens(self) -> int:
        """KV slots of the workload."""
        return self.tokens


@dataclass(frozen=True, slots=True)
class Decode:
    """`sequences` at `context` tokens each, then `steps` steps of one token for each, sampled greedily."""

    sequences: int
    context: int
    steps: int

    @property
    def most_kv_tokens(self) -> int:
        """KV slots of the workload, all sequences together."""
        return self.sequences * (self.context + self.steps)


# 32 steps: long enough (10 ms to 1 s) for the clock, short enough that the context hardly grows.
WORKLOADS: Mapping[str, Prefill | Decode] = MappingProxyType(
    {
        "prefill_512": Prefill(512),
        "prefill_4096": Prefill(4096),
        "decode_1": Decode(1, 64, 32),
        "decode_8": Decode(8, 64, 32),
        "decode_32": Decode(32, 64, 32),
        "decode_64": Decode(64, 64, 32),
        "decode_1_at_4096": Decode(1, 4096, 32),
    }
)
