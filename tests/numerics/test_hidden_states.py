"""Hidden states, what the output matrix is given: the same bits however they are computed."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the gguf package writes the small models of these tests")
pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.numerics.native_models import Story, assert_informative, assert_same_bits, in_chunks, open_native
from tests.numerics.reference_models import blocks_for, make_batch, whole_text
from tests.numerics.test_native_equalities import BY_NAME, KV_TYPES, Opened, each_kv_type, each_model, ids
from tests.numerics.test_native_reference import F16_KV_TOLERANCE, GOLDENS, both, relative_rms
from tests.numerics.test_reference_models import TINY, TOLERANCE
from tests.numerics.test_reference_models import load as load_golden

from stoker.api.errors import EngineError, ModelFormatError
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.native import KvType, NativeInterpreter
from stoker.kernels.program import Linear
from stoker.kernels.reference import ReferenceInterpreter, linear
from stoker.models.layers import with_draft_states

LONG = 581  # past a split of 512, not a multiple of anything


def chunked_hidden(interpreter: Interpreter, token_ids: list[int], chunks: list[int]) -> np.ndarray:
    """Hidden states of every position, float32 [T, width], computed alone, in these chunks, no logits."""
    return chunked_draft(interpreter, token_ids, chunks)[:, : interpreter.hidden_states.shape[1]]


def chunked_draft(interpreter: Interpreter, token_ids: list[int], chunks: list[int]) -> np.ndarray:
    """The same with what stands beside them, float32 [T, all widths]."""
    story = Story(token_ids, range(blocks_for(len(token_ids))))
    found = []
    for count in chunks:
        logits = interpreter.run(make_batch([story.next(count)], [], range(count)))
        assert len(logits) == 0
        found.append(interpreter.draft_states.copy())
    return np.concatenate(found)


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def make(name: str, kv_type: KvType, threads: int = 1) -> NativeInterpreter:
        return open_native(BY_NAME[name].write(folder), kv_type, threads=threads)

    return make


@pytest.fixture(scope="module")
def expected(opened: Opened) -> Any:
    """Hidden states [LONG, width] of ids(name), prefilled whole, alone, on one thread."""

    @cache
    def compute(name: str, kv_type: KvType) -> np.ndarray:
        hidden = chunked_hidden(opened(name, kv_type), ids(name)[:LONG], [LONG])
        assert_informative(hidden)
        assert hidden.shape[1] == BY_NAME[name].config.width
        return hidden

    return compute


@each_model
@each_kv_type
def test_chunks_and_threads(name: str, kv_type: KvType, opened: Opened, expected: Any) -> None:
    want = expected(name, kv_type)
    for threads, size in ((1, 16), (1, 17), (2, 512), (3, 100)):
        interpreter = opened(name, kv_type, threads)
        assert_same_bits(chunked_hidden(interpreter, ids(name)[:LONG], in_chunks(LONG, size)), want)
    decoded = chunked_hidden(opened(name, kv_type, 2), ids(name)[:100], [60] + [1] * 40)
    assert_same_bits(decoded, want[:100])


@each_model
@each_kv_type
def test_others_in_the_batch_and_logits_beside_it(
    name: str, kv_type: KvType, opened: Opened, expected: Any
) -> None:
    """Random rows of both kinds, in batches of any composition; logits are those of a step without them."""
    interpreter = opened(name, kv_type, 2)
    generator = np.random.default_rng(1)
    free = generator.permutation(interpreter.num_blocks).tolist()
    subject = Story(ids(name)[:LONG], [free.pop() for _ in range(blocks_for(LONG))])
    crowd = [
        Story(ids(name, number, length), [free.pop() for _ in range(blocks_for(length))])
        for number, length in enumerate(generator.integers(1, 200, 9).tolist(), start=1)
    ]
    found = []
    for count in [37, 1, 26, 1, 300, 209, 1, *[1] * 6]:
        entries = []
        for other in crowd:
            step = min(int(generator.choice([0, 1, 1, 5, 40])), len(other.token_ids) - other.done)
            if step:
                entries.append(other.next(step))
        place = int(generator.integers(0, len(entries) + 1))
        first = sum(len(entry[0]) for entry in entries[:place])
        entries.insert(place, subject.next(count))
        total = sum(len(entry[0]) for entry in entries)
        hidden_rows = sorted({*range(first, first + count), *generator.integers(0, total, 3).tolist()})
        logit_rows = sorted(set(generator.integers(0, total, 5).tolist()))
        logits = interpreter.run(make_batch(entries, logit_rows, hidden_rows)).copy()
        hidden = interpreter.hidden_states
        found.append(hidden[[hidden_rows.index(row) for row in range(first, first + count)]])
        # The same step again writes the same keys and values.
        assert_same_bits(interpreter.run(make_batch(entries, logit_rows)), logits)
    assert_same_bits(np.concatenate(found), expected(name, kv_type))


@each_model
@each_kv_type
def test_draft_states_change_no_bit_of_the_rest(
    name: str, kv_type: KvType, opened: Opened, expected: Any, tmp_path: Path
) -> None:
    """A program that also says what goes into its layers gives the logits and hidden states that it gave, and
    the same states whatever the chunks and threads; the first layer's are the normed embeddings' alone."""
    path = BY_NAME[name].write(tmp_path)
    config = BY_NAME[name].config
    text = ids(name)[:LONG]
    whole = open_native(path, kv_type, draft_layers=(0, 1))
    states = chunked_draft(whole, text, [LONG])
    assert states.shape == (LONG, 3 * config.width)
    assert_same_bits(states[:, : config.width], expected(name, kv_type))
    first, again = text.index(text[-1]), len(text) - 1
    assert first != again
    assert_same_bits(
        states[first, config.width : 2 * config.width], states[again, config.width : 2 * config.width]
    )
    for threads, size in ((1, 17), (2, 100), (2, 512)):
        other = open_native(path, kv_type, threads=threads, draft_layers=(0, 1))
        assert_same_bits(chunked_draft(other, text, in_chunks(LONG, size)), states)
    rows = [3, 40, 99]
    batch = make_batch([(text[:100], 0, range(blocks_for(100)))], rows, [5, 99])
    logits = opened(name, kv_type).run(batch).copy()
    assert_same_bits(whole.run(batch), logits)
    assert_same_bits(whole.draft_states, states[[5, 99]])


def test_layers_that_there_are_not_are_refused(tmp_path: Path) -> None:
    path = BY_NAME["llama-f32"].write(tmp_path)
    with pytest.raises(ModelFormatError, match="layer 2 are wanted; allowed: 0 to 1"):
        open_native(path, draft_layers=(0, 2))


def test_a_step_without_hidden_rows_has_none(opened: Opened) -> None:
    interpreter = opened("llama-f32", "int8")
    interpreter.run(whole_text([1, 2, 3]))
    for states in ("hidden_states", "draft_states"):
        with pytest.raises(EngineError, match="no hidden rows"):
            getattr(interpreter, states)


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_against_the_reference(name: str, kv_type: KvType) -> None:
    """Their product with the output matrix is the golden logits; the core's are the reference's, as exact as
    its logits are (bounds of test_native_reference)."""
    program, weights, token_ids, golden = load_golden(name)
    last = len(program.kv_layers) - 1
    program = with_draft_states(program, (last,))
    reference = ReferenceInterpreter(program, weights, num_blocks=2, kv_type="float16")
    rows = range(len(token_ids))
    batch = make_batch([(token_ids, 0, range(blocks_for(len(token_ids))))], [3], rows)
    reference.run(batch)
    same = reference.hidden_states
    assert same.shape == (len(token_ids), same.shape[1])
    output = next(op for op in reversed(program.ops) if isinstance(op, Linear))
    weight = weights[output.weight]
    if output.out == "logits":  # else a softcap follows
        product = linear(same, weight() if callable(weight) else weight)
        np.testing.assert_allclose(product, golden, rtol=0, atol=4 * 2.0**-11 * float(np.abs(golden).max()))
    native = open_native(GOLDENS / f"{name}.gguf", kv_type, draft_layers=(last,))
    native.run(batch)
    width = same.shape[1]
    beside = reference.draft_states[:, width:]
    assert beside.shape == same.shape
    for ours, theirs in ((native.hidden_states, same), (native.draft_states[:, width:], beside)):
        if kv_type == "f16":
            peak = float(np.abs(theirs).max())
            np.testing.assert_allclose(ours, theirs, rtol=0, atol=F16_KV_TOLERANCE * peak)
        else:
            assert relative_rms(ours, theirs) < 0.025


@pytest.mark.parametrize("name", ["llama-q4_1", "gemma3-q5_k"])
def test_quantised_models_against_the_reference(name: str, tmp_path: Path) -> None:
    """Short texts of one row each differ by what int8 activations cost, as logits do."""
    native, reference, _ = both(BY_NAME[name].write(tmp_path), outliers=4)
    text = np.random.default_rng(4).integers(0, BY_NAME[name].config.vocabulary, 60).tolist()
    batch = make_batch([(text[3 * i : 3 * i + 3], 0, [i]) for i in range(20)], [], range(60))
    native.run(batch)
    reference.run(batch)
    assert TOLERANCE < relative_rms(native.hidden_states, reference.hidden_states) < 0.06
