"""From a model's name to an engine that speaks text: the one place where file, kernels and tokenizer meet."""

from __future__ import annotations

from dataclasses import dataclass, field

from stoker.engine.scheduler import SchedulerOptions

# Address space, not memory: blocks are backed when they are first written. 2 GiB hold 45 000 tokens of
# SmolLM2-135M or 110 000 of Gemma 3 270M in F16, and still leave a small machine its room.
DEFAULT_KV_BYTES = 2 << 30


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model."""

    threads: int | None = None  # none: one for each physical core
    context_tokens: int | None = None  # none: what the model was made for
    kv_bytes: int = DEFAULT_KV_BYTES  # most memory of the KV cache
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
