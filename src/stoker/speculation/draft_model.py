"""A smaller model of the same vocabulary says what it would say, token by token, with the target's own noise.

After Leviathan et al., "Fast inference from transformers via speculative decoding", 2023, without the
rejection sampling: the draft's tokens are sampled with the seed, position and parameters that the target's
will be (E2), so that two models that think alike draw alike at every temperature. Its keys and values lie in
blocks lent by the target's pool.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Final, Protocol

import numpy as np

from stoker.api.errors import EngineError
from stoker.api.request import SamplingParams
from stoker.cache.lending import BlockLender, Loan
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.program import BLOCK_TOKENS, NO_ROWS, Batch, Float32, Int32
from stoker.sampling.rows import PackedParams, SampleResult, SampleRow, pack_params
from stoker.speculation.drafter import Opening, Proposal

NAME: Final = "model"
PASSES = 5  # tokens of a draft at most: of more the last is rarely reached, and each costs a pass
# A token's probability to the draft says most about whether the target says it too; from these down, and how
# deep in the draft it stands, each is a kind.
_CONFIDENT = (0.9, 0.7, 0.5, 0.3, 0.15, 0.0)
# A token that is less likely to be reached, by the draft's own probabilities, is worth no pass.
_LEAST_REACHED = 0.15
_DEPTHS = 3  # the first, the second, and all others
_CHANCES = (0.9, 0.75, 0.6, 0.45, 0.3, 0.15)  # by confidence, until experience says so


class Samples(Protocol):
    """What is asked of a sampler."""

    def sample(self, logits: Float32, rows: list[SampleRow]) -> SampleResult:
        """One token for each row of logits [R, vocabulary]."""
        ...


@dataclass(frozen=True, slots=True)
class DraftModel:
    """A loaded draft model. Its interpreter has a KV slot for every block of the target's pool."""

    interpreter: Interpreter
    sampler: Samples
    context_tokens: int
    batch_tokens: int  # most tokens of a run


class DraftModelDrafter:
    """One sequence: what is known of it, and of which tokens the draft's keys and values are there."""

    def __init__(self, model: DraftModel, loan: Loan, opening: Opening) -> None:
        self._model = model
        self._loan = loan
        params = SamplingParams(temperature=0) if opening.packed is None else opening.packed.params
        seed = 0 if opening.packed is None else opening.packed.seed
        # The drafted token's log-probability is wanted, whatever the request asks for.
        self._packed: PackedParams = pack_params(
            replace(params, logprobs=0), seed, model.interpreter.vocabulary
        )
        self._prompt_tokens = opening.prompt_tokens
        self._stop_ids = opening.stop_ids
        self._banned = tuple(sorted(opening.stop_ids))  # before min_tokens
        self._known: list[int] = []
        self._cached: list[int] = []  # tokens whose keys and values lie in the loan, guesses included
        self._agreed = 0  # so many of them were found to be the known ones

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`."""
        self._known += token_ids

    @property
    def behind(self) -> int:
        """See `CatchesUp`."""
        return max(len(self._known) - 1 - self._rewind(), 0)

    def catch_up(self, most: int) -> int:
        """See `CatchesUp`."""
        start = self._rewind()
        end = min(start + min(most, self._model.batch_tokens), len(self._known) - 1)
        if start >= end or len(self._known) >= self._model.context_tokens or not self._loan.extend(end):
            return 0
        self._run(start, self._known[start:end], wanted=False)
        return end - start

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`. A pass for each token, the first of which reads what is new."""
        start, known = self._rewind(), len(self._known)
        most = min(most, PASSES, self._model.context_tokens - known)
        if most <= 0 or known - start > self._model.batch_tokens or not self._loan.extend(known + most - 1):
            return None
        chunk = self._known[start:]
        tokens: list[int] = []
        kinds: list[int] = []
        reached = 1.0
        while len(tokens) < most and reached >= _LEAST_REACHED:
            logits = self._run(start, chunk, wanted=True)
            token, probability = self._sample(logits, tokens)
            # Of an end nothing is saved: where it is right, the token before it brings it along.
            if token < 0 or token in self._stop_ids:
                break
            confidence = sum(probability < least for least in _CONFIDENT)
            kinds.append(_DEPTHS * confidence + min(len(tokens), _DEPTHS - 1))
            tokens.append(token)
            reached *= probability
            start, chunk = start + len(chunk), [token]
        return Proposal(tokens, kinds) if tokens else None

    def close(self) -> None:
        """See `Drafter`. Nothing is kept."""
        self._loan.close()

    def _rewind(self) -> int:
        """How many of the known tokens have keys and values here that can be gone on from. The last known one
        is always computed: that yields its logits."""
        cached, known = self._cached, self._known
        if self._loan.slots < len(cached):  # the blocks were taken back
            cached.clear()
            self._agreed = 0
        agreed, end = self._agreed, min(len(cached), len(known))
        while agreed < end and cached[agreed] == known[agreed]:
            agreed += 1
        self._agreed = agreed
        return max(min(agreed, len(known) - 1), 0)

    def _run(self, start: int, tokens: list[int], *, wanted: bool) -> Float32:
        """Compute these tokens at positions from `start` on; the last one's logits, if wanted."""
        end = start + len(tokens)
        logits = self._model.interpreter.run(
            Batch(
                token_ids=np.array(tokens, np.int32),
                positions=np.arange(start, end, dtype=np.int32),
                query_start=np.array([0, len(tokens)], np.int32),
                kv_tokens=np.array([end], np.int32),
                block_tables=self._loan.batch_table(-(-end // BLOCK_TOKENS)),
                logit_rows=np.array([len(tokens) - 1], np.int32) if wanted else NO_ROWS,
            )
        )
        del self._cached[start:]
        self._cached += tokens
        self._agreed = min(self._agreed, start)
        return logits

    def _sample(self, logits: Float32, drafted: list[int]) -> tuple[int, float]:
        """The token after these drafted ones as the target would sample it from such logits, -1 for none; and
        its probability to the draft."""
        packed, known = self._packed, len(self._known) + len(drafted)
        banned: tuple[int, ...] = ()
        if known - self._prompt_tokens < packed.params.min_tokens:
            banned = self._banned
        history: Int32 | None = None
        if packed.needs_history:
            history = np.array(self._known + drafted, np.int32)
        row = SampleRow(packed, known, history, self._prompt_tokens if packed.needs_history else 0, banned)
        result = self._model.sampler.sample(logits, [row])
        logprob = float(result.logprobs[0])
        return int(result.token_ids[0]), math.exp(logprob) if math.isfinite(logprob) else 0.0


class DraftModelDrafters:
    """A draft model for the sequences of an engine, which lends it blocks."""

    name = NAME
    chances = tuple(chance for chance in _CHANCES for _ in range(_DEPTHS))
    passes = PASSES
    feature_tokens = 0

    def __init__(self, model: DraftModel, lender: BlockLender | None = None) -> None:
        self._model = model
        self._lender = lender

    def borrow(self, lender: BlockLender) -> DraftModelDrafters:
        """See `Borrower`. Raises `EngineError` if the pool has more blocks than the draft model has slots."""
        if lender.end_block > self._model.interpreter.num_blocks:
            raise EngineError(
                f"the draft model has KV slots for {self._model.interpreter.num_blocks} blocks; allowed: "
                f"{lender.end_block}, as many as the pool has"
            )
        return DraftModelDrafters(self._model, lender)

    def open(self, opening: Opening) -> DraftModelDrafter:
        """See `Drafters`. Raises `EngineError` before `borrow`."""
        if self._lender is None:
            raise EngineError("nobody lends the draft model blocks")
        return DraftModelDrafter(self._model, self._lender.open(), opening)
