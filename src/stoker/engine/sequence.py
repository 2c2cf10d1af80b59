"""One stream of tokens: what is known of it, how much of that is computed, and where its KV lies."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Final

import numpy as np

from stoker.api.errors import RequestError, StokerError
from stoker.api.events import FinishReason
from stoker.cache.blocks import BlockTable
from stoker.engine.pooling import PooledStates
from stoker.grammar.guide import Guide
from stoker.kernels.program import Int32
from stoker.sampling.rows import PackedParams
from stoker.speculation.drafter import Opening
from stoker.speculation.features import Features

_FIRST_CAPACITY = 256  # ids kept beyond the prompt before the buffer doubles; most answers are shorter


CONSTRAINT_FAULT: Final = "the constraint"  # how every fault of what a request demands begins


class Purpose(Enum):
    """Why a sequence is computed."""

    GENERATE = "generate"  # to sample tokens after the prompt
    SCORE = "score"  # to tell how likely each prompt token was; nothing is sampled
    EMBED = "embed"  # to pool the prompt's hidden states; nothing is sampled


@dataclass(frozen=True, slots=True)
class Standing:
    """What decides when a sequence is computed, and whose cache it may use; never what comes out."""

    priority: int = 0  # lower first
    tenant: str = ""
    namespace: bytes = b""  # prefixes are shared only within it
    deadline: int | None = None  # a number that grows with time; earlier first
    background: bool = False  # takes part in steps only while nothing else is open
    prediction: tuple[int, ...] = ()  # what the answer may be like: drafted first, and verified


DEFAULT_STANDING: Final = Standing()


class Sequence:
    """One choice of a request. The scheduler writes the counters, `append` the ids; the rest is derived.

    Intervals of positions, 0 <= computed <= target <= known <= limit:
    [0, prompt)        given by the request
    [prompt, known)    sampled, or written by the guide; the first `given` of them elsewhere
    [0, computed)      their keys and values lie in `table`
    [0, target)        what must be computed: all that is known; to score, all but the last token, which
    predicts
                       nothing
    """

    __slots__ = (
        "_ids", "accepted", "background", "branch_tables", "cached", "choice", "computed", "deadline",
        "drafted", "ended_by_token", "fault", "features", "finish_reason", "followers", "given", "guide",
        "known", "leader", "limit", "namespace", "number", "opening", "packed", "params", "pooled",
        "prediction", "priority", "prompt", "purpose", "queued_at", "request_id", "scored", "stop_ids",
        "stop_reason", "table", "tenant",
    )  # fmt: skip

    def __init__(
        self,
        number: int,
        request_id: str,
        choice: int,
        prompt_ids: Int32,
        packed: PackedParams,
        *,
        limit: int,
        stop_ids: frozenset[int],
        purpose: Purpose = Purpose.GENERATE,
        standing: Standing = DEFAULT_STANDING,
        given: tuple[int, ...] = (),
        guide: Guide | None = None,
        pooled: PooledStates | None = None,
        features: Features | None = None,
    ) -> None:
        """`given`: tokens of the answer that were sampled before, on another engine. `guide`: says which
        tokens may come; it is told of every one, and belongs to this sequence alone. `pooled`: of one that is
        embedded. `features`: keeps hidden states of its last tokens for drafters."""
        self.number = number  # order of arrival; unique, never reused
        self.request_id = request_id
        self.choice = choice
        self.packed = packed  # what the sampler needs of it, its own seed included
        self.params = packed.params
        self.purpose = purpose
        self.stop_ids = stop_ids  # token ids that end it: eos (unless ignored) and the request's own
        self.prompt = len(prompt_ids)
        self.limit = limit  # most tokens, prompt included
        self.given = len(given)
        self.known = self.prompt + self.given
        self.computed = 0
        self.scored = 0  # positions whose logits were turned into a score; preemption does not take them back
        self.cached: int | None = None  # prompt tokens whose KV was there when first admitted; set then
        self.table: BlockTable | None = None
        self.branch_tables: tuple[BlockTable, ...] = ()  # of the planned chunk's branches, until its commit
        self.priority = standing.priority
        self.tenant = standing.tenant
        self.namespace = standing.namespace
        self.deadline = standing.deadline
        self.background = standing.background
        self.prediction = standing.prediction
        self.drafted = self.accepted = 0  # tokens verified beside its own; of these, what it said as well
        self.guide, self.pooled, self.features = guide, pooled, features
        self.opening: Opening | None = None  # what drafters are told of it, once any were
        self.queued_at = 0  # the step after which it began to wait; written by the scheduler
        # Choices share a prompt: the leader computes it, the followers wait and then fork its table.
        self.leader: Sequence | None = None
        self.followers: list[Sequence] = []
        self.finish_reason: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.fault: str | None = None  # why its guide cannot go on; the next token is then -1
        self.ended_by_token = False  # the last token says that the answer ends, and is no part of its text
        self._ids: Int32 = np.empty(min(limit, self.known + _FIRST_CAPACITY), np.int32)
        self._ids[: self.prompt] = prompt_ids
        self._ids[self.prompt : self.known] = given
        if guide is not None:
            for token_id in given:
                guide.push(token_id)

    @property
    def target(self) -> int:
        """Tokens to have computed before the next one can be sampled (or the scoring is complete)."""
        return self.known if self.purpose is not Purpose.SCORE else self.known - 1

    def first_hidden(self, start: int, end: int, *, keeps_features: bool) -> int:
        """From which position of [start, end) on hidden states are wanted; `end` if none are."""
        if self.pooled is not None:
            return self.pooled.first_wanted(start, end)
        if self.features is None or not keeps_features:
            return end
        return min(max(start, self.known - self.features.most_tokens), end)

    @property
    def reads_prefixes(self) -> bool:
        """Whether a cached prefix saves work: not where something is wanted of every position."""
        if self.pooled is not None:
            return self.pooled.reads_prefixes
        return self.purpose is Purpose.GENERATE

    @property
    def output_tokens(self) -> int:
        """Tokens sampled so far."""
        return self.known - self.prompt

    @property
    def ids(self) -> Int32:
        """[known] a view, valid until the next `append`."""
        return self._ids[: self.known]

    @property
    def seed(self) -> int:
        """Keys this choice's noise: the request's seed + choice."""
        return self.packed.seed

    @property
    def output_ids(self) -> Int32:
        """[known - prompt] a view, valid until the next `append`."""
        return self._ids[self.prompt : self.known]

    def token_at(self, position: int) -> int:
        """The known token at a position."""
        return self._ids.item(position)

    def sketch(self, draft: tuple[int, ...]) -> None:
        """Put guessed tokens behind the known ones, for `peek`; the next `append` writes over them."""
        end = self.known + len(draft)
        if end > len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(max(end - len(self._ids), 64), np.int32)])
        self._ids[self.known : end] = draft

    def peek(self, start: int, end: int) -> Int32:
        """[end - start] a view of known and, past them, sketched tokens."""
        return self._ids[start:end]

    def settle(self, branch: int) -> None:
        """Of the planned chunk's branches this one was right, -1: none of them. Its table becomes the
        sequence's; the others close."""
        tables, self.branch_tables = self.branch_tables, ()
        if branch >= 0 and self.table is not None:
            tables[branch].take_place_of(self.table)
            self.table = tables[branch]
        for table in tables:
            if table is not self.table:
                table.close()

    def accept(self, token_id: int) -> tuple[int, ...]:
        """`take` a sampled token; then what its guide writes after it without asking the model.

        The tokens written. None where log-probabilities are wanted: those tokens are then forced row by row.
        """
        self.take(token_id)
        guide = self.guide
        if guide is None or self.params.logprobs is not None:
            return ()
        written: list[int] = []
        while self.finish_reason is None and guide.forced:
            written.append(guide.forced[0])
            self.take(guide.forced[0])
        return tuple(written)

    def take(self, token_id: int) -> None:
        """`append` a token and tell the guide, which may end the sequence, well or in error."""
        self.append(token_id)
        guide = self.guide
        if guide is None or token_id < 0:
            return
        try:
            guide.push(token_id)
            if guide.finished and not self.ended_by_token:
                self.finish_reason = "stop"  # also at the limit: nothing is missing
        except StokerError as error:  # of this choice alone
            self.finish_reason, self.stop_reason = "error", fault_of(error)

    def append(self, token_id: int) -> None:
        """Add a sampled token and, if it is the last one, say why in `finish_reason`.

        A token of -1 means that the sampler had none left to choose (all are banned, or the logits are not
        numbers): the sequence ends in error.
        """
        if token_id < 0:
            self.finish_reason = "error"
            self.stop_reason = (
                self.fault or "no token was left to choose: all are banned, or the logits are not numbers"
            )
            return
        known = self.known
        if known == len(self._ids):
            self._ids = np.concatenate([self._ids, np.empty(min(known, self.limit - known), np.int32)])
        self._ids[known] = token_id
        self.known = known + 1
        if token_id in self.stop_ids and known + 1 - self.prompt > self.params.min_tokens:
            self.finish_reason = "stop"
            self.ended_by_token = True
            self.stop_reason = token_id if token_id in self.params.stop_token_ids else None
        elif known + 1 == self.limit:
            self.finish_reason = "length"


def fault_of(error: StokerError) -> str:
    """What a guide's error is called as a choice's end: the request's own faults begin alike, so that whoever
    answers can tell them from ours."""
    if not isinstance(error, RequestError) or error.message.startswith(CONSTRAINT_FAULT):
        return error.message
    return f"{CONSTRAINT_FAULT} cannot be followed further: {error.message}"
