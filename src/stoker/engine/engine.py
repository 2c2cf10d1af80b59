"""The engine: requests of token ids in, tokens out, one step at a time. It knows no text and no time.

Owns the block pool, the scheduler and, through the interpreter, the KV blocks. One thread at a time uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from stoker.api.errors import CapacityError, EngineError, PromptTooLongError, RequestError, StokerError
from stoker.api.request import MAX_TOP_LOGPROBS, SEEDS, Pooling, SamplingParams, check_int
from stoker.api.stats import EngineStats
from stoker.cache.blocks import BlockPool
from stoker.cache.disk import DiskTier
from stoker.cache.lending import BlockLender
from stoker.cache.radix import RadixTree
from stoker.engine.budget import BudgetOptions, TokenBudget
from stoker.engine.decode_cost import DecodeCost, is_decode_only
from stoker.engine.guided import allowed_draft
from stoker.engine.journal import Aborted, Added, AddedEmbedding, AddedScore, Closed, Journal, Lent, Stepped
from stoker.engine.plan import Chunk, StepPlan
from stoker.engine.pooling import PooledStates
from stoker.engine.runner import Runner, Samples
from stoker.engine.scheduler import NO_DRAFTS, Output, Scheduler, SchedulerOptions
from stoker.engine.sequence import DEFAULT_STANDING, Purpose, Sequence, Standing
from stoker.grammar.guide import Guides, mask_words
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.program import BLOCK_TOKENS, Int32
from stoker.sampling.rows import pack_params
from stoker.speculation import (
    Borrower,
    Cost,
    Draft,
    Drafters,
    DraftTally,
    Features,
    Opening,
    Speculator,
    Stream,
)

_HOTTEST = 8  # prefixes shown in the statistics
# Whoever comes while a batch is answered waits for the end of its step: a third of a second with 512 tokens
# on a small machine, and with these less than a tenth. Prompts are computed a tenth slower.
_BACKGROUND_TOKENS = 128
_SAVED_AT_END = 2048  # blocks: about a second of writing, 32 000 tokens


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is made for. `context_tokens` and `eos_ids` come from the model file."""

    context_tokens: int  # most tokens of one sequence, prompt and answer, that the model was made for
    eos_ids: frozenset[int] = frozenset()  # tokens by which the model ends an answer
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    budget: BudgetOptions = field(default_factory=BudgetOptions)
    spare_core: bool = False  # one is free while the model runs: for what can be done beside it
    blocks: range | None = None  # of the interpreter's, for engines side by side on one; none: all of them
    identity: bytes = b""  # what keys and values depend on besides the tokens: weights, KV type


class Engine:
    """`step` is the whole of it: plan, run, commit."""

    def __init__(
        self,
        interpreter: Interpreter,
        sampler: Samples,
        options: EngineOptions,
        *,
        tier: DiskTier | None = None,
        journal: Journal | None = None,
        drafters: Iterable[Drafters] = (),
        clock_ms: Callable[[], float] | None = None,
        draft_cost: Cost | None = None,
    ) -> None:
        """`drafters` guess what streams say next, to be verified many tokens at once. `journal`, if given, is
        told all that happens, steps before they are committed. `clock_ms` only times drafters that run
        models. `draft_cost`: what steps are taken to cost where drafts are chosen; none: what is observed.
        `tier` keeps what leaves the prefix cache.
        """
        self.interpreter = interpreter
        self.sampler = sampler
        self.vocabulary = interpreter.vocabulary
        self.block_bytes = interpreter.block_bytes
        self.options = options
        blocks = range(interpreter.num_blocks) if options.blocks is None else options.blocks
        if blocks.step != 1 or blocks.start < 0 or blocks.stop > interpreter.num_blocks:
            raise EngineError(
                f"KV blocks {blocks}; allowed: some of {range(interpreter.num_blocks)}, in order"
            )
        self.pool = BlockPool(len(blocks), first_block=blocks.start)
        self.tree = RadixTree(self.pool, identity=options.identity, tier=tier, store=interpreter)
        note = None if journal is None else lambda number, end: journal(Lent(number, end))
        self.lender = BlockLender(self.pool, note=note)
        self.scheduler = Scheduler(self.pool, self.tree, options.scheduler, self.lender)
        self.budget = TokenBudget(options.scheduler.batch_tokens, options.budget)
        # One sequence alone always fits into the pool: what keeps preemption from going round in circles.
        self.context_tokens = min(options.context_tokens, len(blocks) * BLOCK_TOKENS)
        self._runner = Runner(interpreter, sampler, self.pool, spare_core=options.spare_core)
        self.offered = tuple(drafters)  # for engines beside this one, on the same weights
        lent = tuple(one.borrow(self.lender) if isinstance(one, Borrower) else one for one in self.offered)
        self._decode_cost = DecodeCost()
        self._speculator = (
            Speculator(lent, draft_cost or self._decode_cost, clock_ms=clock_ms) if self.offered else None
        )
        self._drafting_failed = False
        self._feature_tokens = max((one.feature_tokens for one in self.offered), default=0)
        self._drafting_ms = 0.0  # of the last step
        self._looked_for_drafts = False  # in it
        self._tally = DraftTally()
        self._tier = tier
        self._journal = journal
        self._arrivals = 0
        self._prompt_tokens = 0
        self._generated_tokens = 0
        self._last_plan: StepPlan | None = None
        self._last_accepted = 0  # drafted tokens of the last step
        self._open: dict[str, list[Sequence]] = {}  # unfinished choices by request id

    @property
    def busy(self) -> bool:
        """True while a request is open."""
        return bool(self._open)

    def add(
        self,
        request_id: str,
        prompt_ids: Iterable[int],
        params: SamplingParams,
        *,
        seed: int,
        standing: Standing = DEFAULT_STANDING,
        resume: tuple[tuple[int, ...] | None, ...] = (),
        guides: Guides | None = None,
    ) -> None:
        """Queue a request for `params.n` choices; choice i draws with seed + i.

        `resume`: per choice the tokens of its answer that are known already, after which it goes on as if it
        had sampled them here; none for a choice that is not wanted any more. `guides`: what `params`'
        constraint and thinking were compiled to.
        Raises `PromptTooLongError`, `QueueFullError`, or `RequestError` for an empty prompt, a token id
        outside the vocabulary, or an id that is open already. Nothing is queued then.
        """
        ids = self._checked_ids("prompt", prompt_ids)
        self._must_be_new(request_id)
        if guides is None and (params.constraint is not None or params.thinking is not None):
            raise RequestError("a constraint or thinking came without guides: this engine has no grammars")
        self._checked_ids("stop_token_ids", params.stop_token_ids, may_be_empty=True)
        packed = [pack_params(params, (seed + i) % SEEDS, self.vocabulary) for i in range(params.n)]
        needed = len(ids) + max(params.min_tokens, 1)
        if needed > self.context_tokens:
            raise self._too_long(len(ids), f"{needed - len(ids)} more to answer")
        limit = min(self.context_tokens, len(ids) + (params.max_tokens or self.context_tokens))
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.options.eos_ids
        choices = []
        for choice, given in enumerate(resume or ((),) * params.n):
            if given is None:
                continue
            self._checked_ids("resume", given, may_be_empty=True)
            if len(ids) + len(given) >= limit:
                raise RequestError(f"resume has {len(given)} tokens; allowed: at most {limit - len(ids) - 1}")
            sequence = Sequence(
                self._arrivals + choice, request_id, choice, ids, packed[choice],
                limit=limit, stop_ids=stop_ids, standing=standing, given=given,
                guide=None if guides is None else guides.new(),
                features=Features(self._feature_tokens) if self._feature_tokens else None,
            )  # fmt: skip
            choices.append(sequence)
        if not choices:
            raise RequestError("resume has only complete choices; allowed: at least one that goes on")
        self._queue(request_id, choices)
        if self._journal is not None:
            self._journal(Added(request_id, tuple(ids.tolist()), params, seed, standing, resume))

    def add_score(self, request_id: str, token_ids: Iterable[int], *, top_k: int = 0) -> None:
        """Queue tokens to be told how likely each was from the second on, and the `top_k` likeliest there.

        Raises like `add`, also for a top_k that is not 0 to 128; a single token has nothing to score and is
        refused.
        """
        check_int("top_k", top_k, 0, MAX_TOP_LOGPROBS)
        ids = self._checked_ids("prompt", token_ids)
        self._must_be_new(request_id)
        if len(ids) < 2:
            raise RequestError(
                "prompt has 1 token; allowed: 2 or more, as each is scored after those before it"
            )
        if len(ids) > self.context_tokens:
            raise self._too_long(len(ids), "none more")
        packed = pack_params(SamplingParams(logprobs=top_k), 0, self.vocabulary)
        choice = Sequence(
            self._arrivals, request_id, 0, ids, packed,
            limit=len(ids), stop_ids=frozenset(), purpose=Purpose.SCORE,
        )  # fmt: skip
        self._queue(request_id, [choice])
        if self._journal is not None:
            self._journal(AddedScore(request_id, tuple(ids.tolist()), top_k))

    def add_embedding(
        self,
        request_id: str,
        token_ids: Iterable[int],
        pooling: Pooling,
        *,
        standing: Standing = DEFAULT_STANDING,
    ) -> None:
        """Queue tokens whose hidden states are to be pooled: all of them, or the last one's alone.

        Raises like `add`, except that the tokens may fill the context.
        """
        ids = self._checked_ids("prompt", token_ids)
        self._must_be_new(request_id)
        if len(ids) > self.context_tokens:
            raise self._too_long(len(ids), "none more")
        choice = Sequence(
            self._arrivals, request_id, 0, ids, pack_params(SamplingParams(), 0, self.vocabulary),
            limit=len(ids), stop_ids=frozenset(), purpose=Purpose.EMBED, standing=standing,
            pooled=PooledStates(pooling, len(ids)),
        )  # fmt: skip
        self._queue(request_id, [choice])
        if self._journal is not None:
            self._journal(AddedEmbedding(request_id, tuple(ids.tolist()), pooling, standing))

    def step(self) -> list[Output]:
        """Advance every sequence the plan picks by its chunk; what became known, in the plan's order.

        If the model fails, all open requests are dropped, so that the engine stays usable, and `EngineError`
        (`CapacityError` if memory ran out) is raised from the cause.
        """
        budget_tokens = self.budget.tokens(*self.scheduler.load)
        if self.scheduler.is_all_background:
            budget_tokens = min(budget_tokens, _BACKGROUND_TOKENS)
        self._drafting_ms, self._looked_for_drafts = 0.0, False
        return self._advance(budget_tokens, self._drafts(budget_tokens))[1]

    def step_planned(
        self, budget_tokens: int, drafts: Mapping[int, Draft | tuple[int, ...]] = NO_DRAFTS
    ) -> StepPlan:
        """A step with a given budget and given drafts by sequence (a tuple of tokens is a chain), as `step`
        otherwise; its plan."""
        return self._advance(budget_tokens, _as_drafts(drafts))[0]

    def _drafts(self, budget_tokens: int) -> dict[int, Draft]:
        """What to verify. A drafter that fails ends drafting, as its state is unknown then; no answer depends
        on it."""
        if self._speculator is None or self._drafting_failed:
            return {}
        try:
            return self._draft(self._speculator, budget_tokens)
        except Exception:
            import logging  # the worker starts without it

            logging.getLogger(__name__).exception("a drafter failed; answers go on without drafts")
            self._drafting_failed = True
            self._runner.keeps_features = False
            for sequences in self._open.values():
                for sequence in sequences:
                    with suppress(Exception):  # it gives back what its stream holds, if it still can
                        self._speculator.forget(sequence.number)
            return {}

    def _draft(self, speculator: Speculator, budget_tokens: int) -> dict[int, Draft]:
        """What to verify in the next step, if it is one of streams only."""
        decoding = self.scheduler.decoding()
        if not decoding:  # prompts are under way: are their states wanted, once they are streams?
            self._keep_features(speculator.would_look(self.scheduler.running))
            return {}
        predicted = [one.number for one in decoding if one.prediction]
        pays = speculator.may_pay(len(decoding), predicted)
        self._keep_features(pays)
        if not pays:
            return {}
        room = min(budget_tokens, self.options.scheduler.logit_rows) - len(decoding)
        found = speculator.draft([self._stream(sequence) for sequence in decoding], most_tokens=room)
        self._drafting_ms, self._looked_for_drafts = speculator.drafting_ms, True
        return _as_drafts(found)

    def _keep_features(self, wanted: bool) -> None:
        """While nothing is drafted, nobody reads them."""
        if self._runner.keeps_features and not wanted:
            for sequences in self._open.values():
                for sequence in sequences:  # those behind the known tokens are of wrong guesses
                    if sequence.features is not None:
                        sequence.features.cut(sequence.known - 1)
        self._runner.keeps_features = wanted

    def _stream(self, sequence: Sequence) -> Stream:
        opening = sequence.opening
        if opening is None:
            opening = sequence.opening = Opening(
                _shared_with(sequence), sequence.prompt, sequence.prediction, sequence.packed,
                sequence.features, sequence.stop_ids,
            )  # fmt: skip
        guide = sequence.guide
        allowed = None
        if guide is not None:
            allowed = partial(allowed_draft, guide, words=mask_words(self.vocabulary))
        most = sequence.limit - sequence.known - 1
        return Stream(sequence.number, opening, sequence.ids, most, allowed)

    def _advance(self, budget_tokens: int, drafts: Mapping[int, Draft]) -> tuple[StepPlan, list[Output]]:
        plan = self.scheduler.plan(budget_tokens, drafts)
        if not plan.chunks:
            if self._open:
                raise EngineError(f"step {plan.step} plans nothing, but {len(self._open)} requests are open")
            return plan, []
        try:
            result = self._runner.run(plan, self.scheduler.sequence)
        except Exception as cause:
            self.abort_all()
            if isinstance(cause, StokerError):
                raise
            if isinstance(cause, MemoryError):
                raise CapacityError(
                    f"not enough memory for step {plan.step} of {plan.tokens} tokens",
                    hint="lower kv_bytes or batch_tokens, or close other programs",
                ) from cause
            raise EngineError(f"step {plan.step} of {plan.tokens} tokens failed: {cause}") from cause
        if self._journal is not None:
            self._journal(Stepped(plan, result))
        self._last_plan = plan
        outputs = self.scheduler.commit(plan, result)
        self._last_accepted = sum(output.accepted for output in outputs)
        self._generated_tokens += sum(
            1 + len(output.written) for output in outputs if output.token_id is not None
        )
        if self._speculator is not None and drafts:
            self._judge(self._speculator, plan, outputs, drafts, result.token_ids)
        for output in outputs:
            if output.sequence.finish_reason is not None:
                self._forget(output.sequence)
        return plan, outputs

    def _judge(
        self,
        speculator: Speculator,
        plan: StepPlan,
        outputs: list[Output],
        drafts: Mapping[int, Draft],
        token_ids: Int32,
    ) -> None:
        """Tell how each draft fared, in its own terms: not all of it may have been verified."""
        told = {output.sequence.number: output for output in outputs}
        row = 0
        for chunk in plan.chunks:
            if chunk.draft:
                output, draft = told[chunk.number], drafts[chunk.number]
                if draft.parents is None:  # the planned part of a chain is its beginning
                    verified, accepted = len(chunk.draft), tuple(range(output.accepted))
                    sampled = token_ids[row : row + chunk.rows]
                else:
                    verified, accepted = _verified(draft, chunk, output)
                    sampled = token_ids[:0]
                speculator.judge(chunk.number, verified, accepted, sampled)
                self._tally.add(len(chunk.draft) + chunk.branch_tokens, output.accepted)
            row += chunk.rows + chunk.branch_tokens

    def observe(self, elapsed_ms: float) -> None:
        """Tell how long the last step took: from this the next ones' budgets are made."""
        plan = self._last_plan
        if plan is None:
            return
        if self._speculator is not None and self._decode_cost.known and is_decode_only(plan):
            # Plain steps would have taken this long for the same tokens: more, or, for wrong guesses, less.
            streams = len(plan.chunks)
            plain_ms = self._decode_cost.predict_ms(streams, streams=streams)
            saved_ms = plain_ms * (1 + self._last_accepted / streams) - elapsed_ms
            if self._looked_for_drafts:
                self._speculator.learn_profit(streams, saved_ms / plain_ms)
            if self._looked_for_drafts or any(chunk.draft for chunk in plan.chunks):
                self._tally.save(saved_ms)
        step_ms = max(elapsed_ms - self._drafting_ms, 0.01)
        self.budget.cost.observe(plan, step_ms)
        self._decode_cost.observe(plan, step_ms)
        self._last_plan = None

    def stats(self) -> EngineStats:
        """Where things stand, between steps."""
        tree, scheduler = self.tree, self.scheduler
        return EngineStats(
            running=scheduler.running,
            waiting=scheduler.waiting,
            blocks=self.pool.num_blocks,
            blocks_free=self.pool.free,
            blocks_cached=self.pool.cached,
            blocks_held=self.pool.held,
            steps=scheduler.steps,
            preemptions=scheduler.preemptions,
            prompt_tokens=self._prompt_tokens,
            generated_tokens=self._generated_tokens,
            drafted_tokens=0 if self._speculator is None else self._speculator.drafted_tokens,
            accepted_tokens=0 if self._speculator is None else self._speculator.accepted_tokens,
            drafts=self._tally.drafts,
            drafts_by_tokens=self._tally.by_tokens,
            drafts_by_accepted=self._tally.by_accepted,
            draft_saved_ms=self._tally.saved_ms,
            prefix_queries_tokens=tree.queries_tokens,
            prefix_hits_tokens=tree.hits_tokens,
            disk_hits_tokens=tree.disk_hits_tokens,
            disk_blocks=0 if self._tier is None else len(self._tier),
            disk_rejected=0 if self._tier is None else self._tier.rejected,
            evictions=tree.evictions,
            hottest=tree.hottest(_HOTTEST),
        )

    def open_choices(self, request_id: str) -> tuple[Sequence, ...]:
        """The unfinished choices of a request; none if it is not open."""
        return tuple(self._open.get(request_id, ()))

    def stop(self, sequence: Sequence, stop_reason: str | int | None = None) -> None:
        """End one choice for a reason the engine cannot see (a stop string). Not during a step."""
        if self._journal is not None:
            self._journal(Closed(sequence.request_id, sequence.choice, stop_reason))
        self.scheduler.close(sequence, "stop", stop_reason)
        self._forget(sequence)

    def abort(self, request_id: str) -> None:
        """Drop all choices of a request, between steps; an id that is not open is no error."""
        if self._journal is not None and request_id in self._open:
            self._journal(Aborted(request_id))
        choices = self._open.pop(request_id, [])
        for sequence in choices:
            self.scheduler.close(sequence, "abort")
        # After it, as where a journal is replayed: blocks come back in the same order.
        if self._speculator is not None:
            for sequence in choices:
                self._speculator.forget(sequence.number)

    def abort_all(self) -> None:
        """Drop every request."""
        for request_id in tuple(self._open):
            self.abort(request_id)

    def save_prefixes(self, most_blocks: int) -> int:
        """Write prefixes that were read again to the tier, at most so many blocks; how many were written.

        For idle moments between steps, so that a killed process loses little. Nothing without a tier.
        """
        return self.tree.spill(most_blocks)

    def close(self) -> None:
        """Drop every request, save prefixes, and let go of the tier. The engine is not used again."""
        self.abort_all()
        if self._tier is not None:
            self.tree.spill(_SAVED_AT_END, everything=True)
            self._tier.close()

    def check(self) -> None:
        """Raise `EngineError` if the blocks do not add up, or any is held while nothing is open."""
        self.pool.check()
        self.tree.check()
        if not self._open and self.pool.held:
            raise EngineError(f"{self.pool.held} blocks are held, but no request is open")

    def _queue(self, request_id: str, choices: list[Sequence]) -> None:
        self.scheduler.add(choices)  # first, as it may refuse
        self._arrivals += choices[0].params.n
        self._prompt_tokens += choices[0].prompt
        self._open[request_id] = list(choices)

    def _forget(self, sequence: Sequence) -> None:
        if self._speculator is not None:
            self._speculator.forget(sequence.number)
        remaining = self._open.get(sequence.request_id, [])
        remaining.remove(sequence)
        if not remaining:
            del self._open[sequence.request_id]

    def _must_be_new(self, request_id: str) -> None:
        if request_id in self._open:
            raise RequestError(f"request id {request_id!r} is open already; allowed: one that is not")

    def _checked_ids(self, name: str, token_ids: Iterable[int], *, may_be_empty: bool = False) -> Int32:
        values = list(token_ids)
        if not values and not may_be_empty:
            raise RequestError(f"{name} is empty; allowed: at least one token")
        for value in values:
            if isinstance(value, bool) or not isinstance(value, (int, np.integer)):
                raise RequestError(f"{name} has {value!r}; allowed: whole numbers")
            if not 0 <= value < self.vocabulary:
                raise RequestError(f"{name} has token id {value}; allowed: 0 to {self.vocabulary - 1}")
        return np.array(values, np.int32)

    def _too_long(self, tokens: int, room: str) -> PromptTooLongError:
        hint = None
        if self.context_tokens < self.options.context_tokens:
            hint = (
                f"the KV cache holds {self.context_tokens} tokens, the model takes "
                f"{self.options.context_tokens}: give the cache more memory"
            )
        return PromptTooLongError(
            f"the prompt has {tokens} tokens; allowed: at most {self.context_tokens}, with {room}", hint=hint
        )


def _shared_with(sequence: Sequence) -> bytes:
    """What drafters learn of an answer serves its tenant's other answers of the namespace: it shows in the
    speed."""
    return sequence.namespace + b"\0" + sequence.tenant.encode("utf-8", "surrogatepass")


def _verified(draft: Draft, chunk: Chunk, output: Output) -> tuple[int, tuple[int, ...]]:
    """How many of a tree's first guesses were verified, and the places of those that were right."""
    said = (output.token_id, *output.written)[: output.accepted]
    accepted = draft.accepted(tuple(token for token in said if token is not None))
    verified = len(draft.tokens)
    if draft != chunk.guesses:
        places = draft.places_in(chunk.guesses)
        verified = next((i for i, place in enumerate(places) if place is None), verified)
    return max(verified, *(i + 1 for i in accepted), 0), accepted


def _as_drafts(drafts: Mapping[int, Draft | tuple[int, ...]]) -> dict[int, Draft]:
    return {n: draft if isinstance(draft, Draft) else Draft(draft) for n, draft in drafts.items()}
