"""The loop that is timed: batches straight to an interpreter, without an engine between.

`engine_rate` decodes the same way through `Engine.step`, so that Python's share can be told apart.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

import numpy as np

from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.bench.workload import CHUNK_TOKENS, Decode, Prefill
from stoker.engine.engine import Engine
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.program import BLOCK_TOKENS, Batch, Float32, Int32

Choose = Callable[[Float32], Int32]  # logits [R, vocabulary] -> token ids [R]


class Stepper:
    """Runs workloads on one interpreter and owns all of its KV blocks while it does.

    Sequence s holds the blocks s · n to s · n + n - 1 of the workload in hand. `clock` gives seconds.
    """

    def __init__(
        self,
        interpreter: Interpreter,
        choose: Choose,
        *,
        context_tokens: int,
        clock: Callable[[], float] = time.perf_counter,
        seed: int = 0,
    ) -> None:
        self._interpreter = interpreter
        self._choose = choose
        self._context_tokens = context_tokens
        self._clock = clock
        self._random = np.random.default_rng(seed)
        self._filled: tuple[int, int] | None = None  # (sequences, context) whose KV lies in the blocks

    def rate(self, workload: Prefill | Decode) -> float:
        """Tokens per second of one run. Raises RequestError if context or blocks do not hold the workload."""
        self.check(workload)
        if isinstance(workload, Prefill):
            self._filled = None
            return self._prefill_rate(workload)
        return self._decode_rate(workload)

    def forget(self) -> None:
        """Somebody else has used the blocks: the next decode run prefills its sequences again."""
        self._filled = None

    def check(self, workload: Prefill | Decode) -> None:
        """Raise RequestError unless `workload` fits the model's context and the interpreter's blocks."""
        longest = workload.tokens if isinstance(workload, Prefill) else workload.context + workload.steps
        if longest > self._context_tokens:
            raise RequestError(
                f"{workload} needs {longest} tokens of context; the model has {self._context_tokens}"
            )
        sequences = 1 if isinstance(workload, Prefill) else workload.sequences
        needed = sequences * _blocks(longest)
        if needed > self._interpreter.num_blocks:
            raise RequestError(
                f"{workload} needs {needed} KV blocks; there are {self._interpreter.num_blocks}"
            )

    def _prefill_rate(self, workload: Prefill) -> float:
        token_ids = self._draw(workload.tokens)
        started = self._clock()
        self._choose(self._prefill(token_ids, np.arange(_blocks(workload.tokens), dtype=np.int32)))
        return workload.tokens / (self._clock() - started)

    def _decode_rate(self, workload: Decode) -> float:
        sequences, context = workload.sequences, workload.context
        columns = _blocks(context + workload.steps)
        tables = np.arange(sequences * columns, dtype=np.int32).reshape(sequences, columns)
        if self._filled != (sequences, context):
            for table in tables:
                self._prefill(self._draw(context), table)
            self._filled = (sequences, context)
        # Every run writes the same slots past `context` again, so the prefilled part stays good for the next.
        token_ids = self._draw(sequences)
        starts = np.arange(sequences + 1, dtype=np.int32)
        rows = np.arange(sequences, dtype=np.int32)
        started = self._clock()
        for step in range(workload.steps):
            positions = np.full(sequences, context + step, np.int32)
            logits = self._interpreter.run(
                Batch(token_ids, positions, starts, positions + np.int32(1), tables, rows)
            )
            token_ids = self._choose(logits)
        return sequences * workload.steps / (self._clock() - started)

    def _prefill(self, token_ids: Int32, table: Int32) -> Float32:
        """Compute a prompt into the blocks of `table`; the logits [1, vocabulary] of its last token."""
        logits = np.empty((0, 0), np.float32)
        for start in range(0, len(token_ids), CHUNK_TOKENS):
            chunk = token_ids[start : start + CHUNK_TOKENS]
            end = start + len(chunk)
            wanted = [len(chunk) - 1] if end == len(token_ids) else []
            logits = self._interpreter.run(
                Batch(
                    token_ids=chunk,
                    positions=np.arange(start, end, dtype=np.int32),
                    query_start=np.array([0, len(chunk)], np.int32),
                    kv_tokens=np.array([end], np.int32),
                    block_tables=table[None, :],
                    logit_rows=np.array(wanted, np.int32),
                )
            )
        return logits

    def _draw(self, count: int) -> Int32:
        return self._random.integers(0, self._interpreter.vocabulary, count, dtype=np.int32)


def engine_rate(
    engine: Engine, workload: Decode, *, clock: Callable[[], float] = time.perf_counter, seed: int = 0
) -> float:
    """Tokens per second of decoding through `Engine.step`, greedily; the engine is idle before and after.

    Prompts are prefilled first, untimed; only steps in which every sequence takes one token are timed.
    """
    random = np.random.default_rng(seed)
    params = SamplingParams(
        temperature=0.0, ignore_eos=True, max_tokens=workload.steps + workload.sequences + 1
    )
    for number in range(workload.sequences):
        prompt = random.integers(0, engine.vocabulary, workload.context, dtype=np.int32).tolist()
        engine.add(f"bench-{number}", prompt, params, seed=number)
    # Prompts come in by chunks, so the first sequences are a few tokens ahead when the last one starts.
    while len(engine.step()) < workload.sequences:
        continue
    started = clock()
    tokens = sum(len(engine.step()) for _ in range(workload.steps))
    seconds = clock() - started
    engine.abort_all()
    return tokens / seconds


def median_rates(
    measures: Mapping[str, Callable[[], float]],
    *,
    runs: int,
    progress: Callable[[int, int, str], None] = lambda done, total, under_way: None,
) -> dict[str, float]:
    """Median of each measure over `runs` runs, after one that is not counted, for the caches.

    Rounds go over all measures, so that a slow minute of the machine touches all of them alike.
    """
    rates: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(runs + 1):
        for place, (name, measure) in enumerate(measures.items()):
            progress(number * len(measures) + place, (runs + 1) * len(measures), name)
            rate = measure()
            if number > 0:
                rates[name].append(rate)
    return {name: statistics.median(values) for name, values in rates.items()}


def _blocks(tokens: int) -> int:
    return -(-tokens // BLOCK_TOKENS)
