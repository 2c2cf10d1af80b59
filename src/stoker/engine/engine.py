"""The engine: requests of token ids in, tokens out, one step at a time. It knows no text and no time.

Owns the block pool, the scheduler and, through the interpreter, the KV blocks. One thread at a time uses it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import numpy as np

from stoker.api.errors import CapacityError, EngineError, PromptTooLongError, RequestError, StokerError
from stoker.api.request import MAX_TOP_LOGPROBS, SEEDS, SamplingParams, check_int
from stoker.cache.blocks import BlockPool
from stoker.engine.plan import StepPlan
from stoker.engine.runner import Runner, Samples
from stoker.engine.scheduler import Output, Scheduler, SchedulerOptions
from stoker.engine.sequence import Purpose, Sequence
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.program import BLOCK_TOKENS, Int32
from stoker.sampling.rows import SampleResult, pack_params

StepLog = Callable[[StepPlan, SampleResult], None]


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """What an engine is made for. `context_tokens` and `eos_ids` come from the model file."""

    context_tokens: int  # most tokens of one sequence, prompt and answer, that the model was made for
    eos_ids: frozenset[int] = frozenset()  # tokens by which the model ends an answer
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)


class Engine:
    """`step` is the whole of it: plan, run, commit."""

    def __init__(
        self,
        interpreter: Interpreter,
        sampler: Samples,
        options: EngineOptions,
        *,
        log: StepLog | None = None,
    ) -> None:
        """`log`, if given, is called with the plan and the result of every step, before it is committed."""
        self.vocabulary = interpreter.vocabulary
        self.block_bytes = interpreter.block_bytes
        self.options = options
        self.pool = BlockPool(interpreter.num_blocks)
        self.scheduler = Scheduler(self.pool, options.scheduler)
        # One sequence alone always fits into the pool: what keeps preemption from going round in circles.
        self.context_tokens = min(options.context_tokens, interpreter.num_blocks * BLOCK_TOKENS)
        self._runner = Runner(interpreter, sampler, self.pool)
        self._log = log
        self._arrivals = 0
        self._open: dict[str, list[Sequence]] = {}  # unfinished choices by request id

    @property
    def busy(self) -> bool:
        """True while a request is open."""
        return bool(self._open)

    def add(self, request_id: str, prompt_ids: Iterable[int], params: SamplingParams, *, seed: int) -> None:
        """Queue a request for `params.n` choices; choice i draws with seed + i.

        Raises `PromptTooLongError`, or `RequestError` for an empty prompt, a token id outside the vocabulary,
        or an id that is open already. Nothing is queued then.
        """
        ids = self._checked_ids("prompt", prompt_ids)
        self._must_be_new(request_id)
        self._checked_ids("stop_token_ids", params.stop_token_ids, may_be_empty=True)
        packed = [pack_params(params, (seed + i) % SEEDS, self.vocabulary) for i in range(params.n)]
        needed = len(ids) + max(params.min_tokens, 1)
        if needed > self.context_tokens:
            raise self._too_long(len(ids), f"{needed - len(ids)} more to answer")
        limit = min(self.context_tokens, len(ids) + (params.max_tokens or self.context_tokens))
        stop_ids = frozenset(params.stop_token_ids)
        if not params.ignore_eos:
            stop_ids |= self.options.eos_ids
        choices = [
            Sequence(self._arrivals + i, request_id, i, ids, packed[i], limit=limit, stop_ids=stop_ids)
            for i in range(params.n)
        ]
        self._queue(request_id, choices)

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

    def step(self) -> list[Output]:
        """Advance every sequence the plan picks by its chunk; what became known, in the plan's order.

        If the model fails, all open requests are dropped, so that the engine stays usable, and `EngineError`
        (`CapacityError` if memory ran out) is raised from the cause.
        """
        plan = self.scheduler.plan()
        if not plan.chunks:
            if self._open:
                raise EngineError(f"step {plan.step} plans nothing, but {len(self._open)} requests are open")
            return []
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
        if self._log is not None:
            self._log(plan, result)
        outputs = self.scheduler.commit(plan, result)
        for output in outputs:
            if output.sequence.finish_reason is not None:
                self._forget(output.sequence)
        return outputs

    def open_choices(self, request_id: str) -> tuple[Sequence, ...]:
        """The unfinished choices of a request; none if it is not open."""
        return tuple(self._open.get(request_id, ()))

    def close(self, sequence: Sequence, stop_reason: str | int | None = None) -> None:
        """End one choice for a reason the engine cannot see (a stop string). Not during a step."""
        self.scheduler.close(sequence, "stop", stop_reason)
        self._forget(sequence)

    def abort(self, request_id: str) -> None:
        """Drop all choices of a request, between steps; an id that is not open is no error."""
        for sequence in self._open.pop(request_id, []):
            self.scheduler.close(sequence, "abort")

    def abort_all(self) -> None:
        """Drop every request."""
        for request_id in tuple(self._open):
            self.abort(request_id)

    def check(self) -> None:
        """Raise `EngineError` if the blocks do not add up, or any is held while nothing is open."""
        self.pool.check()
        if not self._open and self.pool.held:
            raise EngineError(f"{self.pool.held} blocks are held, but no request is open")

    def _queue(self, request_id: str, choices: list[Sequence]) -> None:
        self._arrivals += len(choices)
        self._open[request_id] = list(choices)
        self.scheduler.add(choices)

    def _forget(self, sequence: Sequence) -> None:
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
