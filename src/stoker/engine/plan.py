"""What one step does: a frozen value, so that a run can be logged, and replayed without a model.

What came of it is a `SampleResult` with one entry for each row of logits, in the order of the plan's chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stoker.cache.blocks import Copy
from stoker.kernels.program import Float32, Int32


class Chunk(NamedTuple):
    """Compute positions [start, start + tokens) of one sequence; the last `rows` of them give logits."""

    number: int  # of the sequence
    start: int
    tokens: int
    rows: int  # 1: its next token is sampled; 0: more of the prompt follows; else what is scored or verified
    draft: tuple[int, ...] = ()  # the chunk's last tokens, if they are not known but guessed

    @property
    def end(self) -> int:
        """One past the last position."""
        return self.start + self.tokens


@dataclass(frozen=True, slots=True)
class StepPlan:
    """Copies first, in order, then all chunks in one batch. Who was preempted lost its blocks beforehand."""

    step: int
    chunks: tuple[Chunk, ...]
    copies: tuple[Copy, ...]
    preempted: tuple[int, ...]  # numbers of sequences
    budget_tokens: int = 0  # the most tokens it was allowed; what a replay must be told, as it has no clock

    @property
    def tokens(self) -> int:
        """Tokens computed by this step."""
        return sum(chunk.tokens for chunk in self.chunks)


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely known tokens were: row i is about the token at position `first + i`."""

    first: int
    logprobs: Float32  # [rows]
    top_ids: Int32  # [rows, k], likeliest first
    top_logprobs: Float32  # [rows, k]
