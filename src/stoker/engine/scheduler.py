"""Who computes what next. One rule: a step hands out a budget of tokens, first to the streams that decode,
then to prompts under way, then to waiting sequences, so that the computed tokens of each catch up with its
known tokens.

Decode, chunked prefill and recomputing after preemption are all that rule. The scheduler knows counters,
queues and blocks; it never sees logits, text or time. Given the same requests, the same budgets and the same
sampled tokens, it makes the same plans.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Final, NamedTuple

from stoker.api.errors import RequestError
from stoker.api.events import FinishReason
from stoker.api.request import check_int
from stoker.cache.blocks import BlockPool, BlockTable, Copy
from stoker.cache.lending import BlockLender
from stoker.cache.radix import Match, RadixTree
from stoker.engine.branches import grow
from stoker.engine.plan import Chunk, Scores, StepPlan
from stoker.engine.pooling import PooledStates
from stoker.engine.sequence import Purpose, Sequence
from stoker.engine.waiting import WaitingQueue
from stoker.kernels.program import BLOCK_TOKENS
from stoker.sampling.rows import SampleResult
from stoker.speculation.draft import Draft

# Waiting for what another computes: so many are looked at in one step, each for a third of a millisecond.
_MOST_PASSED = 32
NO_DRAFTS: Final[Mapping[int, Draft]] = MappingProxyType({})
_NO_DRAFT: Final = Draft(())
_FETCHED_BESIDE_STREAMS = 16  # blocks: about as long as one step of the streams


@dataclass(frozen=True, slots=True)
class SchedulerOptions:
    """Limits of one step."""

    batch_tokens: int = 512  # most tokens: enough to fill the int8 units; a decode beside them waits for all
    max_sequences: int = 64  # most sequences at once: beyond it a step grows longer, not cheaper per token
    chunk_tokens: int | None = None  # most tokens of one sequence; none: as many as the batch has left
    logit_rows: int = 64  # most rows of logits, each 4 bytes x vocabulary (64 MB for Gemma's 262 144 tokens)
    max_waiting: int = 4096  # most sequences in the queue: minutes of work on a small machine
    max_waiting_tokens: int = 1 << 24  # most tokens in the queue, 64 MB of ids

    def __post_init__(self) -> None:
        for name in ("batch_tokens", "max_sequences", "logit_rows", "max_waiting", "max_waiting_tokens"):
            check_int(name, getattr(self, name), 1, (1 << 31) - 1)
        if self.chunk_tokens is not None:
            check_int("chunk_tokens", self.chunk_tokens, 1, (1 << 31) - 1)
        for name in ("batch_tokens", "logit_rows"):
            if getattr(self, name) < self.max_sequences:
                raise RequestError(
                    f"{name} is {getattr(self, name)}, but max_sequences is {self.max_sequences}; "
                    "allowed: at least that, since every running sequence takes one token and one row"
                )


class Output(NamedTuple):
    """What a step added to one sequence, whose own fields tell the rest (read them before the next step)."""

    sequence: Sequence
    token_id: int | None  # none for a sequence that is scored
    logprob: float
    top: tuple[tuple[int, float], ...]  # (token id, logprob), likeliest first, as many as the request wants
    scores: Scores | None = None
    written: tuple[int, ...] = ()  # tokens after it: drafts that were accepted, or what the guide put there
    # Of each of these its log-probability and the likeliest beside it, where they are wanted.
    written_logprobs: tuple[tuple[float, tuple[tuple[int, float], ...]], ...] = ()
    vector: tuple[float, ...] | None = None  # of a sequence that is embedded
    accepted: int = 0  # of `written`: drafted tokens, the rest is the guide's


@dataclass(slots=True)
class _Draft:
    """A plan in the making."""

    tokens_left: int
    rows_left: int
    chunks: dict[int, Chunk] = field(default_factory=dict)  # by sequence number, in the order they were added
    copies: list[Copy] = field(default_factory=list)
    preempted: list[int] = field(default_factory=list)


class Scheduler:
    """Owns the queues and their sequences. `plan` and `commit` take turns; `add` and `close` in between."""

    def __init__(
        self, pool: BlockPool, tree: RadixTree, options: SchedulerOptions, lender: BlockLender | None = None
    ) -> None:
        """`lender`: of blocks that drafters hold, and give back before a sequence has to."""
        self._lender = lender or BlockLender(pool)
        self.pool = pool
        self.tree = tree
        self.options = options
        self.steps = 0
        self.preemptions = 0
        self.admitted: list[str] = []  # requests of which the last plan admitted a choice for the first time
        self._running: dict[int, Sequence] = {}  # by number, in order of admission
        self._waiting = WaitingQueue(
            tree, most_sequences=options.max_waiting, most_tokens=options.max_waiting_tokens
        )
        self._background = 0  # of the running ones
        self._chunk_tokens = options.chunk_tokens or options.batch_tokens

    @property
    def running(self) -> int:
        """Sequences that take part in steps."""
        return len(self._running)

    @property
    def waiting(self) -> int:
        """Sequences that arrived or were preempted, and are not admitted yet."""
        return len(self._waiting)

    @property
    def load(self) -> tuple[int, int, int]:
        """How many running sequences decode, how many tokens of context they read in a step, and how many
        prompts are being computed or have a place to be."""
        parked = self._parks
        active = [s for s in self._running.values() if not (parked and s.background)]
        lengths = [s.known for s in active if s.computed >= s.known - 1]
        waiting = self._waiting.foreground if parked else len(self._waiting)
        prompts = len(active) - len(lengths) + min(waiting, self.options.max_sequences - len(active))
        return len(lengths), sum(lengths), prompts

    @property
    def is_all_background(self) -> bool:
        """Whether all that is open is in the background."""
        return not self._waiting.foreground and self._background == len(self._running)

    @property
    def _parks(self) -> bool:
        """Whether what is in the background stands still, since something else is open."""
        if self._waiting.foreground:
            return True
        return self._background > 0 and self._background < len(self._running)

    @property
    def wasted_slots(self) -> int:
        """KV slots that are held and not written, between steps: tails; one that forks share counts once."""
        tails: dict[int, int] = {}
        for sequence in (*self._running.values(), *self._waiting):
            if sequence.table is not None and len(sequence.table):
                tail = sequence.table.block_ids[-1]
                tails[tail] = min(tails.get(tail, BLOCK_TOKENS), sequence.table.slots - sequence.computed)
        return sum(tails.values())

    def add(self, choices: list[Sequence]) -> None:
        """Queue the choices of one request; the first computes the prompt for all.

        Raises `QueueFullError`, with nothing queued.
        """
        self._waiting.check_room(choices)
        leader, *followers = choices
        leader.followers = followers
        for follower in followers:
            follower.leader = leader
        for choice in choices:
            choice.queued_at = self.steps
            self._waiting.add(choice)

    def sequence(self, number: int) -> Sequence:
        """The running sequence of that number, for the runner."""
        return self._running[number]

    def decoding(self) -> list[Sequence]:
        """Sequences of which the next step samples a token, unless the prompts of others are under way or may
        be admitted: then none, as a step's tokens are theirs."""
        parks = self._parks
        waiting = self._waiting.foreground if parks else len(self._waiting)
        if waiting and len(self._running) < self.options.max_sequences:
            return []
        found = []
        for sequence in self._running.values():
            if parks and sequence.background:
                continue
            if sequence.purpose is not Purpose.GENERATE or sequence.computed < sequence.known - 1:
                return []
            found.append(sequence)
        return found

    def plan(self, budget_tokens: int | None = None, drafts: Mapping[int, Draft] = NO_DRAFTS) -> StepPlan:
        """Decide the next step. Takes blocks, admits, preempts; computed tokens move only in `commit`.

        `budget_tokens`: most tokens of this step; none: as many as the options allow. Every decoding sequence
        takes its one token all the same. `drafts`: by number what to verify behind it, as far as there is
        room for it; for branches only what all others have left.
        """
        most = self.options.batch_tokens
        budget = most if budget_tokens is None else min(max(budget_tokens, len(self._running), 1), most)
        draft = _Draft(budget, self.options.logit_rows)
        self.admitted.clear()
        if not self._running and not len(self._waiting):  # no step: a journal does not have it either
            return StepPlan(self.steps, (), (), (), budget)
        decoding: list[Sequence] = []
        filling: list[Sequence] = []
        parks = self._parks
        for sequence in self._running.values():
            if parks and sequence.background:
                continue
            (decoding if sequence.computed >= sequence.known - 1 else filling).append(sequence)
        behind = len(decoding) + len(filling)
        for sequence in (*decoding, *filling):
            behind -= 1
            if sequence.table is not None:  # else it was preempted a moment ago
                self._extend(
                    sequence, draft, rows_kept=behind, draft_of_it=drafts.get(sequence.number, _NO_DRAFT)
                )
        if not draft.preempted:
            self._admit(draft, parks=parks)
        self._branch(draft, drafts)
        self.steps += 1
        self.preemptions += len(draft.preempted)
        for chunk in draft.chunks.values():
            tokens = chunk.tokens + chunk.branch_tokens if chunk.branches else chunk.tokens
            self._waiting.charge(self._running[chunk.number].tenant, tokens)
        chunks, copies, preempted = tuple(draft.chunks.values()), tuple(draft.copies), tuple(draft.preempted)
        return StepPlan(self.steps, chunks, copies, preempted, budget)

    def commit(self, plan: StepPlan, result: SampleResult) -> list[Output]:
        """Take what the model said into the sequences; finished ones leave. An output per chunk with rows, or
        that completes an embedding."""
        outputs = []
        token_ids, logprobs = result.token_ids.tolist(), result.logprobs.tolist()
        row = 0
        for chunk in plan.chunks:
            number, start, tokens, rows, draft, branches = chunk
            sequence = self._running[number]
            if draft:
                outputs.append(_verify(sequence, chunk, token_ids, logprobs, result, row))
                tokens = 1 + outputs[-1].accepted
            sequence.computed = end = start + tokens
            if start // BLOCK_TOKENS != end // BLOCK_TOKENS:
                self._remember(sequence)
            if sequence.followers and end >= sequence.prompt:
                self._fork(sequence)
            if not rows:
                if sequence.pooled is not None and end == sequence.target:
                    outputs.append(_embedding(sequence, sequence.pooled))
                    self._remove(sequence)
                continue
            if draft:
                pass  # done above, since it decides how far the sequence has come
            elif sequence.purpose is Purpose.GENERATE:
                token_id = token_ids[row]
                written = sequence.accept(token_id)
                top = _top(result, row, sequence.packed.top_count) if sequence.packed.top_count else ()
                outputs.append(Output(sequence, token_id, logprobs[row], top, None, written))
            else:
                outputs.append(Output(sequence, None, 0.0, (), _score(sequence, end, rows, result, row)))
            row += rows + chunk.branch_tokens if branches else rows
            if sequence.finish_reason is not None:
                self._remove(sequence)
        return outputs

    def close(self, sequence: Sequence, reason: FinishReason, stop_reason: str | int | None = None) -> None:
        """End a sequence that is queued or running, for a reason that lies outside the engine."""
        sequence.finish_reason = reason
        sequence.stop_reason = stop_reason
        self._remove(sequence)

    def _extend(
        self, sequence: Sequence, draft: _Draft, rows_kept: int, draft_of_it: Draft = _NO_DRAFT
    ) -> None:
        """Plan the sequence's next chunk, if the budget has something left for it and blocks can be found; of
        what is drafted for it the first path."""
        start = sequence.computed
        drafted: tuple[int, ...] = ()
        if sequence.purpose is not Purpose.SCORE:
            known = sequence.known
            tokens = min(known - start, draft.tokens_left, self._chunk_tokens)
            rows = 1 if start + tokens == known and sequence.pooled is None else 0
            if draft_of_it.tokens and rows and tokens == 1:
                drafted = self._room_for(sequence, draft_of_it.stem, draft, rows_kept)
                tokens += len(drafted)
                rows = tokens
        else:
            tokens = min(sequence.target - start, draft.tokens_left, self._chunk_tokens)
            # Every sequence behind it keeps the one row it may need.
            first = max(start, sequence.scored)
            tokens = min(tokens, first + draft.rows_left - rows_kept - start)
            rows = max(start + tokens - first, 0)
        if tokens <= 0:
            return
        table = sequence.table
        assert table is not None
        if not table.is_writable(start, start + tokens):
            if not self._make_room(sequence, table, start + tokens, draft):
                return
            draft.copies += table.extend(start, start + tokens)
        if drafted:
            sequence.sketch(drafted)
        draft.chunks[sequence.number] = Chunk(sequence.number, start, tokens, rows, drafted)
        draft.tokens_left -= tokens
        draft.rows_left -= rows

    def _branch(self, draft: _Draft, drafts: Mapping[int, Draft]) -> None:
        """Give branches what tokens, rows and blocks are left: nobody that comes later needs any."""
        for number, chunk in draft.chunks.items() if drafts else ():
            if not chunk.draft or drafts[number].parents is None:
                continue
            room = min(draft.tokens_left, draft.rows_left)
            grown = grow(self._running[number], chunk, drafts[number], room, self.pool)
            draft.chunks[number] = grown.chunk
            draft.copies += grown.copies
            draft.tokens_left -= grown.chunk.branch_tokens
            draft.rows_left -= grown.chunk.branch_tokens

    def _room_for(
        self, sequence: Sequence, drafted: tuple[int, ...], draft: _Draft, rows_kept: int
    ) -> tuple[int, ...]:
        """As much of a draft as fits besides one token and one row for each sequence behind, and takes no
        block from anybody."""
        start, table = sequence.computed, sequence.table
        assert table is not None
        most = min(draft.tokens_left, draft.rows_left) - 1 - rows_kept
        drafted = drafted[: max(min(most, sequence.limit - sequence.known - 1), 0)]
        end = start + 1 + len(drafted)
        if table.is_writable(start, end):
            return drafted
        return drafted if table.blocks_needed(start, end) + rows_kept <= self.pool.available else ()

    def _make_room(self, sequence: Sequence, table: BlockTable, end: int, draft: _Draft) -> bool:
        """Preempt until the sequence's table can grow to `end`; false if it was itself the one to go."""
        while (short := table.blocks_needed(sequence.computed, end) - self.pool.available) > 0:
            if self._lender.reclaim(short):
                continue
            victim = self._least_progressed()
            self._preempt(victim, draft)
            if victim is sequence:
                return False
        return True

    def _admit(self, draft: _Draft, *, parks: bool) -> None:
        """Let waiting sequences run, best first, while budget and blocks last. `parks`: none of the
        background, whose places and blocks are the others' for the asking."""
        passed: set[int] = set()
        while draft.tokens_left and draft.rows_left and len(passed) < _MOST_PASSED:
            if len(self._running) >= self.options.max_sequences and not (parks and self._background):
                return
            found = self._waiting.next(self.steps, passed, background=not parks)
            if found is None:
                return
            sequence, match = found
            if match is not None and self._another_computes_more(sequence, match.tokens, parks=parks):
                passed.add(sequence.number)
                continue
            while len(self._running) >= self.options.max_sequences or not self._fits(sequence, match):
                if not parks or not self._background:
                    return  # nobody overtakes: else a large one would starve
                self._preempt(min(filter(_is_background, self._running.values()), key=_progress), draft)
            if draft.copies and self.tree.fetches:
                return  # what it fetches from disk could be written over what those copies read: next step
            self._waiting.remove(sequence)
            if match is not None:
                self._open(sequence, match)
            elif sequence.table is None:
                sequence.table = self.pool.open_table()
            if sequence.cached is None:
                # Of one that goes on, more than the prompt may be known.
                sequence.cached = min(sequence.computed, sequence.prompt)
                self.admitted.append(sequence.request_id)
            self._running[sequence.number] = sequence
            self._background += sequence.background
            self._waiting.started(sequence)
            self._extend(sequence, draft, rows_kept=0)

    def _open(self, sequence: Sequence, match: Match) -> None:
        """Start from the known prefix: in memory, and what continues it on disk."""
        whole = len(sequence.ids) // BLOCK_TOKENS - match.tokens // BLOCK_TOKENS
        # Blocks that are needed anyway, and a few left for the streams.
        room = self.pool.available - len(self._running)
        if self._running:  # they wait while the disk is read, a millisecond a block at worst
            room = min(room, _FETCHED_BESIDE_STREAMS)
        match = self.tree.fetch(sequence.namespace, sequence.ids, match, limit_blocks=min(whole, room))
        sequence.table = self.tree.open(match, count=sequence.cached is None)
        # The last known token is always computed: that yields its logits.
        sequence.computed = min(match.tokens, sequence.known - 1)

    def _another_computes_more(self, sequence: Sequence, known_tokens: int, *, parks: bool) -> bool:
        """Whether a running sequence is computing more of the same prefix than is known of it now."""
        for other in self._running.values():
            if parks and other.background:
                continue  # it stands still
            if other.computed >= other.known - 1 or other.namespace != sequence.namespace:
                continue
            length = min(other.target, sequence.known - 1) // BLOCK_TOKENS * BLOCK_TOKENS
            if length < known_tokens + BLOCK_TOKENS:
                continue
            differs = (other.ids[:length] != sequence.ids[:length]).nonzero()[0]
            shared = length if not len(differs) else int(differs[0]) // BLOCK_TOKENS * BLOCK_TOKENS
            if shared >= known_tokens + BLOCK_TOKENS and shared > other.computed:
                return True
        return False

    def _fits(self, sequence: Sequence, match: Match | None) -> bool:
        """Whether all that is known of it fits, with a block to spare for each running sequence.

        Less, and one of the next steps would preempt it again.
        """
        if not self._running:
            return True  # a single sequence always fits: its limit is at most the pool
        if sequence.table is not None:
            needed = sequence.table.blocks_needed(sequence.computed, sequence.target)
        elif match is not None:
            needed = self.tree.blocks_needed(match, sequence.target)
        else:
            needed = -(-sequence.target // BLOCK_TOKENS)
        short = needed + len(self._running) - self.pool.available
        return short <= 0 or self._lender.reclaim(short)

    def _least_progressed(self) -> Sequence:
        """Whom it costs least to lose its blocks: forks that wait, latest first; then the least computed of
        the lowest priority."""
        for sequence in reversed(tuple(self._waiting)):
            if sequence.table is not None:
                return sequence
        return min(self._running.values(), key=_progress)

    def _preempt(self, sequence: Sequence, draft: _Draft) -> None:
        """Take the sequence's blocks; it waits again and computes again what the cache loses, the same."""
        assert sequence.table is not None
        sequence.table.close()
        sequence.table = None
        sequence.computed = 0
        draft.preempted.append(sequence.number)
        dropped = draft.chunks.pop(sequence.number, None)
        if dropped is not None:
            draft.tokens_left += dropped.tokens
            draft.rows_left += dropped.rows
        if self._running.pop(sequence.number, None) is not None:
            self._background -= sequence.background
            self._waiting.stopped(sequence)
            sequence.queued_at = self.steps
            self._waiting.add(sequence)

    def _remember(self, sequence: Sequence) -> None:
        """Let others share the blocks that are full by now."""
        assert sequence.table is not None
        self.tree.insert(sequence.namespace, sequence.ids, sequence.table, sequence.computed)

    def _fork(self, leader: Sequence) -> None:
        """Share the leader's prompt with its followers, but for the last token: that yields their logits."""
        assert leader.table is not None
        for follower in leader.followers:
            follower.table = leader.table.fork(leader.prompt - 1)
            follower.computed = leader.prompt - 1
            follower.leader = None
        leader.followers = []

    def _remove(self, sequence: Sequence) -> None:
        if self._running.pop(sequence.number, None) is None:
            self._waiting.remove(sequence)
        else:
            self._background -= sequence.background
            self._waiting.stopped(sequence)
        sequence.settle(-1)
        if sequence.table is not None:
            sequence.table.close()
            sequence.table = None
        if sequence.leader is not None:
            sequence.leader.followers.remove(sequence)
            sequence.leader = None
        if sequence.followers:  # ended before the prompt was there: the next choice computes it
            heir, *rest = sequence.followers
            heir.leader, heir.followers = None, rest
            for follower in rest:
                follower.leader = heir
            sequence.followers = []


def _is_background(sequence: Sequence) -> bool:
    return sequence.background


def _progress(sequence: Sequence) -> tuple[bool, int, int, int]:
    """Smallest: whom it costs least to lose its blocks."""
    return not sequence.background, -sequence.priority, sequence.computed, -sequence.number


def _verify(
    sequence: Sequence,
    chunk: Chunk,
    token_ids: list[int],
    logprobs: list[float],
    result: SampleResult,
    row: int,
) -> Output:
    """Take the model's own tokens at the guessed positions up to the first that was guessed wrongly: exactly
    those that it would have given one by one. Of the tables of a tree the one of the right guesses stays."""
    guesses = chunk.guesses
    guess: int | None = -1
    rows: list[int] = []
    tokens: list[int] = []
    written: tuple[int, ...] = ()
    while guess is not None and sequence.finish_reason is None:
        last = guess
        rows.append(row + 1 + guess)
        tokens.append(token_ids[rows[-1]])
        guess = guesses.following(guess, tokens[-1])
        if guess is not None:
            sequence.take(tokens[-1])  # what the guide forces after it is in the draft
        else:
            written = sequence.accept(tokens[-1])
    accepted = len(tokens) - 1
    sequence.drafted += len(guesses.tokens)
    sequence.accepted += accepted
    if chunk.branches:
        sequence.settle(chunk.branch_of(last))
    wanted = sequence.packed.top_count
    tops = [_top(result, at, wanted) if wanted else () for at in rows]
    more: tuple[tuple[float, tuple[tuple[int, float], ...]], ...] = ()
    if sequence.params.logprobs is not None:
        more = tuple((logprobs[at], top) for at, top in zip(rows[1:], tops[1:], strict=True))
    return Output(
        sequence, tokens[0], logprobs[row], tops[0], None, (*tokens[1:], *written), more, accepted=accepted
    )


def _top(result: SampleResult, row: int, wanted: int) -> tuple[tuple[int, float], ...]:
    ids, logprobs = result.top_ids[row, :wanted].tolist(), result.top_logprobs[row, :wanted].tolist()
    return tuple(zip(ids, logprobs, strict=True))


def _embedding(sequence: Sequence, pooled: PooledStates) -> Output:
    vector = pooled.vector()
    sequence.finish_reason = "error" if vector is None else "stop"
    if vector is None:
        sequence.stop_reason = "the hidden states are zero or not numbers"
    return Output(sequence, None, 0.0, (), vector=vector)


def _score(sequence: Sequence, end: int, rows: int, result: SampleResult, row: int) -> Scores:
    sequence.scored = end
    if end == sequence.target:
        sequence.finish_reason = "length"
    part, wanted = slice(row, row + rows), sequence.params.logprobs or 0
    # Logits of position p are about the token at p + 1.
    top_ids, top_logprobs = result.top_ids[part, :wanted], result.top_logprobs[part, :wanted]
    return Scores(end - rows + 1, result.logprobs[part], top_ids, top_logprobs)
