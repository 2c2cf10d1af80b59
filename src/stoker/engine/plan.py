"""What one step does: a frozen value, so that a run can be logged, and replayed without a model.

What came of it is a `SampleResult` with one entry for each row of logits, in the order of the plan's chunks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from stoker.cache.blocks import Copy
from stoker.kernels.program import Float32, Int32
from stoker.speculation.draft import Draft


class Branch(NamedTuple):
    """Guesses that follow one another, beside those of the chunk's draft: another way on from one of them, or
    from one of an earlier branch."""

    parent: int  # the number of that guess in the chunk; -1: the last known token
    tokens: tuple[int, ...]


class Chunk(NamedTuple):
    """Compute positions [start, start + tokens) of one sequence; the last `rows` of them give logits.

    The guesses of a tree are numbered: those of the draft first, then each branch's. They lie in the batch in
    this order behind the last known token, and every one of them gives logits.
    """

    number: int  # of the sequence
    start: int
    tokens: int
    rows: int  # 1: its next token is sampled; 0: more of the prompt follows; else what is scored or verified
    draft: tuple[int, ...] = ()  # the chunk's last tokens, if they are not known but guessed
    branches: tuple[
        Branch, ...
    ] = ()  # computed beside them, in block tables of their own; none without draft

    @property
    def end(self) -> int:
        """One past the last position, those of branches not counted."""
        return self.start + self.tokens

    @property
    def branch_tokens(self) -> int:
        """Guesses in branches, each a token and a row of logits more."""
        return sum(len(branch.tokens) for branch in self.branches)

    @property
    def guesses(self) -> Draft:
        """All of them, by number."""
        if not self.branches:
            return Draft(self.draft)
        tokens, parents = list(self.draft), list(range(-1, len(self.draft) - 1))
        for branch in self.branches:
            parents += [branch.parent, *range(len(tokens), len(tokens) + len(branch.tokens) - 1)]
            tokens += branch.tokens
        return Draft(tuple(tokens), tuple(parents))

    def branch_of(self, guess: int) -> int:
        """Which branch a guess belongs to; -1: the draft itself, or no guess."""
        first, branch = len(self.draft), -1
        while guess >= first:
            branch += 1
            first += len(self.branches[branch].tokens)
        return branch


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
        total = 0
        for chunk in self.chunks:
            total += chunk.tokens + chunk.branch_tokens if chunk.branches else chunk.tokens
        return total


@dataclass(frozen=True, slots=True)
class Scores:
    """How likely known tokens were: row i is about the token at position `first + i`."""

    first: int
    logprobs: Float32  # [rows]
    top_ids: Int32  # [rows, k], likeliest first
    top_logprobs: Float32  # [rows, k]
