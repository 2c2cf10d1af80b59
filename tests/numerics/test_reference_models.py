"""Whole models through the numpy interpreter: against transformers, and in other batches."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tests.numerics.reference_models import (
    blocks_for,
    lazy_weights,
    make_batch,
    negative_log_likelihoods,
    whole_text,
)

from stoker.api.errors import EngineError, ModelFormatError
from stoker.kernels.program import Attention, Batch, Embed, Linear, Op, Program, RmsNorm, Rope, Softcap
from stoker.kernels.reference import ReferenceInterpreter
from stoker.models import ARCHITECTURES, program_from_gguf
from stoker.weights.gguf import GGUFFile

GOLDENS = Path(__file__).parents[1] / "golden" / "models"
TINY = sorted(path.stem for path in GOLDENS.glob("*.gguf"))

# Largest difference between two float32 runs of a tiny model, relative to its largest logit: at most 7 layers
# of some 7 roundings each, in sums of up to 96 numbers whose roundings are independent (their square root).
# It comes to 2.9e-5; 1.1e-6 was the most that was seen.
TOLERANCE = 7 * 7 * 96**0.5 * 2.0**-24


def load(name: str) -> tuple[Program, dict[str, Any], list[int], np.ndarray]:
    """(program, weights, token ids, expected logits [T, vocabulary]) of a tiny model."""
    file = GGUFFile.open(GOLDENS / f"{name}.gguf")
    program = program_from_gguf(file.metadata, file.tensors)
    weights = {key: np.array(make()) for key, make in lazy_weights(file).items()}
    file.close()
    expected = np.load(GOLDENS / f"{name}.npz")
    return program, weights, expected["token_ids"].tolist(), expected["logits"]


def assert_same(actual: np.ndarray, expected: np.ndarray) -> None:
    """Within TOLERANCE of the largest logit."""
    assert actual.dtype == np.float32
    np.testing.assert_allclose(actual, expected, rtol=0, atol=TOLERANCE * float(np.abs(expected).max()))


def test_every_architecture_has_a_golden() -> None:
    assert {load(name)[0].architecture for name in TINY} == set(ARCHITECTURES)


@pytest.mark.parametrize("name", TINY)
def test_logits_are_those_of_transformers(name: str) -> None:
    program, weights, token_ids, expected = load(name)
    interpreter = ReferenceInterpreter(program, weights, num_blocks=blocks_for(len(token_ids)))
    assert_same(interpreter.run(whole_text(token_ids)), expected)


@pytest.mark.parametrize("name", TINY)
def test_chunks_in_a_batch_give_the_same_logits(name: str) -> None:
    program, weights, token_ids, expected = load(name)
    interpreter = ReferenceInterpreter(program, weights, num_blocks=9)
    other = [(token + 1) % program.vocabulary for token in token_ids]
    tables = ([7, 2], [4, 0])  # neither in order nor adjacent
    rows = []
    for start, end in ((0, 1), (1, 14), (14, 17), (17, 27)):
        batch = make_batch(
            [(other[start:end], start, tables[1]), (token_ids[start:end], start, tables[0])],
            logit_rows=range(end - start, 2 * (end - start)),
        )
        rows.append(interpreter.run(batch))
    assert_same(np.concatenate(rows), expected)


@pytest.mark.parametrize("name", ["llama-tied", "gemma3-linear"])
def test_a_copied_block_continues_as_the_original(name: str) -> None:
    program, weights, token_ids, expected = load(name)
    interpreter = ReferenceInterpreter(program, weights, num_blocks=4)
    interpreter.run(make_batch([(token_ids[:20], 0, [0, 1])]))
    interpreter.copy_block(1, 3)
    interpreter.run(make_batch([([5, 6, 7], 20, [0, 1])]))  # the original goes another way
    assert_same(interpreter.run(make_batch([(token_ids[20:], 20, [0, 3])])), expected[20:])


def test_no_rows_wanted_gives_no_logits() -> None:
    program, weights, token_ids, _ = load("llama-tied")
    interpreter = ReferenceInterpreter(program, weights, num_blocks=2)
    batch = make_batch([(token_ids, 0, [0, 1])], logit_rows=[])
    assert interpreter.run(batch).shape == (0, program.vocabulary)


def test_float16_kv_costs_little_accuracy() -> None:
    program, weights, token_ids, expected = load("llama-tied")
    interpreter = ReferenceInterpreter(program, weights, num_blocks=2, kv_type="float16")
    assert interpreter.block_bytes == 2 * 16 * 2 * (2 * 16) * 2  # k and v, slots, layers, heads · size, bytes
    difference = np.abs(interpreter.run(whole_text(token_ids)) - expected).max()
    assert 0 < difference < 20 * 2.0**-11 * np.abs(expected).max()


# What each op's fields mean must show in the logits: a golden that does not react to one would not test it.
CHANGES: dict[str, tuple[type, Callable[[Any], Op]]] = {
    "rope base": (Rope, lambda op: replace(op, base=op.base * 1.5)),
    "rope pairing": (
        Rope,
        lambda op: replace(op, pairing={"half": "interleaved", "interleaved": "half"}[op.pairing]),
    ),
    "rope scale": (Rope, lambda op: replace(op, linear_scale=op.linear_scale * 0.5)),
    "rope factors": (Rope, lambda op: replace(op, factors=None)),
    "attention scale": (Attention, lambda op: replace(op, scale=op.scale * 0.9)),
    "attention window": (Attention, lambda op: replace(op, window=None)),
    "attention window + 1": (Attention, lambda op: replace(op, window=op.window and op.window + 1)),
    "attention softcap": (Attention, lambda op: replace(op, softcap=None)),
    "embedding scale": (Embed, lambda op: replace(op, scale=op.scale * 1.1)),
    "bias": (Linear, lambda op: replace(op, bias=None)),
    "head norm": (RmsNorm, lambda op: replace(op, eps=1.0) if op.head_size else op),
    "final softcap": (Softcap, lambda op: replace(op, cap=op.cap * 2)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_goldens_notice_a_change(change: str) -> None:
    kind, edit = CHANGES[change]
    changed_any = False
    for name in TINY:
        program, weights, token_ids, expected = load(name)
        ops = tuple(edit(op) if isinstance(op, kind) else op for op in program.ops)
        if ops == program.ops:
            continue
        changed_any = True
        interpreter = ReferenceInterpreter(replace(program, ops=ops), weights, num_blocks=2)
        logits = interpreter.run(whole_text(token_ids))
        assert np.abs(logits - expected).max() > 100 * TOLERANCE * np.abs(expected).max(), name
    assert changed_any


def test_missing_weight_is_named() -> None:
    program, weights, _, _ = load("llama-tied")
    del weights["blk.1.ffn_up.weight"]
    with pytest.raises(ModelFormatError, match=r"blk\.1\.ffn_up\.weight"):
        ReferenceInterpreter(program, weights, num_blocks=1)


GOOD = make_batch([([1, 2, 3], 16, [0, 1]), ([4], 0, [2])], logit_rows=[2, 3])


def ints(*values: int) -> np.ndarray:
    """int32 array."""
    return np.array(values, np.int32)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("token_ids", ints(1, 2, 3, 131), "token_ids holds 131"),
        ("token_ids", ints(1, 2, 3, -1), "token_ids holds -1"),
        ("token_ids", np.array([1, 2, 3, 4]), "int64"),
        ("token_ids", ints(1, 2, 3), "positions has 4 entries; allowed: 3"),
        ("positions", ints(16, 17, 18, 1), "positions"),
        ("positions", ints(16, 17, 18), "positions"),
        ("query_start", ints(0, 3), "query_start"),
        ("query_start", ints(0, 4, 4), "query_start"),
        ("query_start", ints(1, 3, 4), "query_start"),
        ("query_start", ints(0, 5, 4), "query_start"),
        ("kv_tokens", ints(2, 1), "allowed: at least its 3 tokens"),
        ("kv_tokens", ints(0, 1), "kv_tokens holds 0"),
        ("kv_tokens", ints(65, 1), "kv_tokens holds 65"),
        ("kv_tokens", ints(), "sequences"),
        ("block_tables", np.array([[0, 9], [2, -1]], np.int32), "block_tables holds 9"),
        ("block_tables", np.array([[0, -1], [2, -1]], np.int32), "block_tables holds -1"),
        ("block_tables", np.array([[0], [2]], np.int32), "block_tables has 1 columns; allowed: at least 2"),
        ("block_tables", np.array([[0, 1]], np.int32), "block_tables has 1 entries; allowed: 2"),
        ("block_tables", np.array([[0, 2], [2, -1]], np.int32), "share a slot"),
        ("logit_rows", ints(4), "logit_rows holds 4"),
        ("logit_rows", ints(3, 2), "rising"),
        ("logit_rows", ints(2, 2), "rising"),
    ],
)
def test_contradicting_batches_are_refused(field: str, value: np.ndarray, said: str) -> None:
    program, weights, _, _ = load("llama-tied")
    interpreter = ReferenceInterpreter(program, weights, num_blocks=9)
    interpreter.run(GOOD)
    with pytest.raises(EngineError, match=said):
        interpreter.run(replace(GOOD, **{field: value}))


def test_copy_of_no_such_block_is_refused() -> None:
    program, weights, _, _ = load("llama-tied")
    interpreter = ReferenceInterpreter(program, weights, num_blocks=2)
    for source, destination in ((0, 2), (-1, 0)):
        with pytest.raises(EngineError, match="allowed: 0 to 1"):
            interpreter.copy_block(source, destination)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2", "gemma3-270m"])
def test_real_model_has_the_likelihoods_of_transformers(model: str, request: pytest.FixtureRequest) -> None:
    """Tolerance: the golden's rounding to 4 decimals (5e-5), and two float32 runs.

    A run's relative error in the final row is about 2^-24 · sqrt(600 columns) · sqrt(60 blocks) = 1.1e-5, at
    random; a logit is a sum over the row, up to 30 or so, giving 1.1e-5 · 30 / sqrt(600) per logit for errors
    of independent sign, and twice as much for a difference of two runs: 3e-5. Seen on eight texts: 1.8e-5.
    """
    path = request.getfixturevalue("smollm2_path" if model == "smollm2" else "gemma3_path")
    golden = json.loads((GOLDENS / f"{model}.json").read_text())
    token_ids = golden["token_ids"]
    with GGUFFile.open(path) as file:
        program = program_from_gguf(file.metadata, file.tensors)
        interpreter = ReferenceInterpreter(program, lazy_weights(file), num_blocks=blocks_for(len(token_ids)))
        logits = interpreter.run(whole_text(token_ids))
    actual = negative_log_likelihoods(logits, token_ids)
    np.testing.assert_allclose(actual, golden["negative_log_likelihoods"], rtol=0, atol=5e-5 + 3e-5)
    assert logits.argmax(axis=1).tolist() == golden["most_likely"]


def test_good_batch_is_what_it_says() -> None:
    assert isinstance(GOOD, Batch)
    assert GOOD.positions.tolist() == [16, 17, 18, 0]
    assert GOOD.kv_tokens.tolist() == [19, 1]
