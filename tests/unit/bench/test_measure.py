"""The timed loop, on an interpreter that records what it is asked and a clock that counts."""

from __future__ import annotations

import numpy as np
import pytest

from stoker.api.errors import RequestError
from stoker.bench import WORKLOADS, Decode, Prefill, Stepper, median_rates
from stoker.kernels.interpreter import check_batch
from stoker.kernels.program import Batch, Float32

VOCABULARY, BLOCKS, CONTEXT = 50, 400, 8192


class RecordingInterpreter:
    """Checks every batch, remembers it, and makes token 7 the likeliest."""

    vocabulary = VOCABULARY
    num_blocks = BLOCKS
    block_bytes = 1

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def run(self, batch: Batch) -> Float32:
        check_batch(batch, vocabulary=VOCABULARY, num_blocks=BLOCKS, context_tokens=CONTEXT)
        self.batches.append(batch)
        logits = np.zeros((len(batch.logit_rows), VOCABULARY), np.float32)
        logits[:, 7] = 1
        return logits

    def copy_block(self, source: int, destination: int) -> None:
        raise AssertionError("a benchmark shares no blocks")


class CountingClock:
    """A second passes at every look."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 1.0
        return self.now


def _stepper(interpreter: RecordingInterpreter) -> Stepper:
    def choose(logits: Float32) -> np.ndarray:
        return logits.argmax(axis=1).astype(np.int32)

    return Stepper(interpreter, choose, context_tokens=CONTEXT, clock=CountingClock())


@pytest.mark.parametrize("tokens", [1, 511, 512, 513, 4096])
def test_prefill_covers_every_position_once_in_chunks(tokens: int) -> None:
    interpreter = RecordingInterpreter()
    assert _stepper(interpreter).rate(Prefill(tokens)) == tokens  # the clock was read twice, a second apart
    positions = np.concatenate([batch.positions for batch in interpreter.batches])
    assert positions.tolist() == list(range(tokens))
    assert max(batch.tokens for batch in interpreter.batches) <= 512
    assert [len(batch.logit_rows) for batch in interpreter.batches[:-1]] == [0] * (
        len(interpreter.batches) - 1
    )
    assert interpreter.batches[-1].logit_rows.tolist() == [interpreter.batches[-1].tokens - 1]


def test_decode_feeds_the_chosen_tokens_back_and_keeps_the_prefilled_part() -> None:
    interpreter = RecordingInterpreter()
    stepper = _stepper(interpreter)
    workload = Decode(sequences=3, context=20, steps=4)
    assert stepper.rate(workload) == 3 * 4
    assert [batch.tokens for batch in interpreter.batches] == [20, 20, 20, 3, 3, 3, 3]
    steps = interpreter.batches[3:]
    assert [batch.positions.tolist() for batch in steps] == [[20 + i] * 3 for i in range(4)]
    assert all(batch.token_ids.tolist() == [7, 7, 7] for batch in steps[1:])
    stepper.rate(workload)
    assert [batch.tokens for batch in interpreter.batches[7:]] == [3, 3, 3, 3]
    stepper.rate(Prefill(20))  # overwrites the blocks, so the next run fills them again
    stepper.rate(workload)
    assert [batch.tokens for batch in interpreter.batches[11:]] == [20, 20, 20, 20, 3, 3, 3, 3]


def test_every_workload_of_a_run_fits_the_blocks_it_asks_for() -> None:
    stepper = _stepper(RecordingInterpreter())
    for workload in WORKLOADS.values():
        stepper.check(workload)


def test_what_does_not_fit_is_refused_with_both_numbers() -> None:
    stepper = _stepper(RecordingInterpreter())
    with pytest.raises(RequestError, match=r"9000 tokens.* 8192"):
        stepper.rate(Prefill(9000))
    with pytest.raises(RequestError, match=r"1000 KV blocks; there are 400"):
        stepper.rate(Decode(sequences=200, context=64, steps=4))


def test_the_first_round_is_not_counted() -> None:
    first, second = iter([100.0, 1.0, 3.0, 2.0]), iter([9.0, 5.0, 5.0, 7.0])
    seen = []
    medians = median_rates(
        {"a": lambda: next(first), "b": lambda: next(second)},
        runs=3,
        progress=lambda done, total, name: seen.append((done, total, name)),
    )
    assert medians == {"a": 2.0, "b": 5.0}
    assert seen[:3] == [(0, 8, "a"), (1, 8, "b"), (2, 8, "a")]
