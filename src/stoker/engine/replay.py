"""Plans every step of a journal again, without a model, and says where a plan differs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

import numpy as np

from stoker.api.errors import EngineError
from stoker.api.request import SamplingParams
from stoker.engine.engine import Engine, EngineOptions
from stoker.engine.journal import Aborted, Added, AddedEmbedding, AddedScore, Closed, Entry, Lent, Stepped
from stoker.engine.plan import StepPlan
from stoker.grammar.guide import Guides
from stoker.kernels.program import Batch, Float32, UInt8
from stoker.sampling.rows import SampleResult, SampleRow
from stoker.speculation.draft import Draft


class _RecordedModel:
    """An interpreter and a sampler in one, which say what was said."""

    def __init__(self, results: Iterator[SampleResult], engine: RecordedEngine) -> None:
        self.vocabulary = engine.vocabulary
        self.num_blocks = engine.num_blocks
        self.block_bytes = 0
        self.context_tokens = engine.context_tokens
        self.draft_states: Float32 = np.empty((0, 1), np.float32)
        self._results = results

    def run(self, batch: Batch) -> Float32:
        """No logits: nothing reads them."""
        self.draft_states = np.ones((len(batch.hidden_rows), 1), np.float32)  # of embeddings nobody reads
        return np.empty((len(batch.logit_rows), 0), np.float32)

    @property
    def hidden_states(self) -> Float32:
        """Of the last step."""
        return self.draft_states

    def copy_block(self, source: int, destination: int) -> None:
        """There are no blocks to copy."""

    def read_block(self, block: int) -> UInt8:
        """There is nothing in a block."""
        return np.empty(0, np.uint8)

    def write_block(self, block: int, payload: object) -> None:
        """There is nowhere to write."""

    def sample(self, logits: Float32, rows: list[SampleRow]) -> SampleResult:
        """What was sampled when the journal was written."""
        return next(self._results)


@dataclass(frozen=True, slots=True)
class RecordedEngine:
    """What a journal does not say of the engine that wrote it. A disk tier is not replayed."""

    vocabulary: int
    num_blocks: int
    context_tokens: int
    options: EngineOptions


GuidesOf = Callable[[SamplingParams], Guides | None]


def replay(
    engine: RecordedEngine, entries: Iterable[Entry], *, guides_of: GuidesOf | None = None
) -> Iterator[StepPlan]:
    """Plan every step of the journal again, with the budgets and samples it has; the plans, one by one.

    `guides_of`: compiles constraints, which write tokens of their own; needed if a request had one.
    Raises `EngineError` at the first plan that differs from the recorded one.
    """
    entries = tuple(entries)
    results = (e.result for e in entries if isinstance(e, Stepped) and len(e.result.token_ids))
    model = _RecordedModel(results, engine)
    again = Engine(model, model, engine.options)
    for entry in entries:
        if isinstance(entry, Stepped):
            plan = again.step_planned(entry.plan.budget_tokens, _drafts(entry.plan))
            if plan != entry.plan:
                raise EngineError(f"step {entry.plan.step} was {entry.plan}, and is {plan} in the replay")
            yield plan
        else:
            _apply(again, entry, guides_of)


def _drafts(plan: StepPlan) -> dict[int, Draft]:
    return {chunk.number: chunk.guesses for chunk in plan.chunks if chunk.draft}


def _apply(
    engine: Engine,
    entry: Added | AddedScore | AddedEmbedding | Closed | Aborted | Lent,
    guides_of: GuidesOf | None,
) -> None:
    if isinstance(entry, Added):
        engine.add(
            entry.request_id, entry.prompt_ids, entry.params,
            seed=entry.seed, standing=entry.standing, resume=entry.resume,
            guides=None if guides_of is None else guides_of(entry.params),
        )  # fmt: skip
    elif isinstance(entry, Lent):
        engine.lender.repeat(entry.number, entry.end)
    elif isinstance(entry, AddedEmbedding):
        engine.add_embedding(entry.request_id, entry.token_ids, entry.pooling, standing=entry.standing)
    elif isinstance(entry, AddedScore):
        engine.add_score(entry.request_id, entry.token_ids, top_k=entry.top_k)
    elif isinstance(entry, Closed):
        for sequence in engine.open_choices(entry.request_id):
            if sequence.choice == entry.choice:
                engine.stop(sequence, entry.stop_reason)
    else:
        assert isinstance(entry, Aborted)
        engine.abort(entry.request_id)
