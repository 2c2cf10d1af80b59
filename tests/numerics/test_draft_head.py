"""Draft heads: their numbers against the reference, the same bits however they are asked, and bad files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

import gguf
from tests.drafts import FreeCost
from tests.numerics.draft_heads import (
    DIGEST,
    WINDOW,
    open_head,
    random_tensors,
    shape_for,
    write_random_head,
)
from tests.numerics.native_models import TinyModel, assert_same_bits, open_native, tiny_config
from tests.numerics.reference_models import blocks_for, int32

from stoker.api.errors import ModelFormatError, ModelNotFoundError
from stoker.api.request import SamplingParams
from stoker.engine import Engine
from stoker.engine.engine import EngineOptions
from stoker.kernels.program import Batch
from stoker.kernels.reference import ReferenceInterpreter
from stoker.sampling.native import native_sampler
from stoker.speculation import Speculator
from stoker.speculation.eagle import EagleDrafters
from stoker.speculation.head import MOST_STREAMS, DraftHead, eagle_program
from stoker.speculation.head_file import load_head
from stoker.weights.gguf import GGUFFile
from stoker.weights.packing import dequantize_reference

CONFIG = tiny_config("llama")
COUNT = 3 * WINDOW + 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("heads")
    TinyModel("target", CONFIG).write(made)
    write_random_head(made / "head.gguf", CONFIG)
    return made


@pytest.fixture
def head(folder: Path) -> DraftHead:
    found = open_head(folder / "head.gguf", folder / "target.gguf")
    assert isinstance(found, DraftHead)
    return found


def story() -> tuple[np.ndarray, np.ndarray]:
    """Token ids and states of a stream."""
    generator = np.random.default_rng(1)
    states = generator.standard_normal((COUNT, CONFIG.width)).astype(np.float32)
    return int32(generator.integers(0, CONFIG.vocabulary, COUNT)), states


def told(head: DraftHead, owner: object, pieces: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """Logits and states after each piece."""
    ids, states = story()
    logits, hidden, start = [], [], 0
    for count in pieces:
        guess = head.guess(owner, start, ids[start : start + count], states[start : start + count])
        logits.append(guess.logits.copy())
        hidden.append(guess.state[0])
        start += count
    return np.array(logits), np.array(hidden)


def test_numbers_are_the_references(folder: Path, head: DraftHead) -> None:
    ids, states = story()
    shape = shape_for(CONFIG)
    weights: dict[str, Any] = {}
    for path in (folder / "target.gguf", folder / "head.gguf"):
        with GGUFFile.open(path) as file:
            for name, tensor in file.tensors.items():
                rows, columns = (1, tensor.shape[0]) if len(tensor.shape) == 1 else tensor.shape
                values = dequantize_reference(
                    tensor.type.type_id, np.asarray(file.data(tensor)), rows, columns
                )
                weights[name] = values.reshape(tensor.shape).astype(np.float32)
    rows = weights["output.weight"] if "output.weight" in weights else weights["token_embd.weight"]
    weights["draft_output.weight"] = rows[head.token_ids]
    program = eagle_program(shape, CONFIG.vocabulary, CONFIG.context_tokens)
    blocks = blocks_for(COUNT)
    reference = ReferenceInterpreter(program, weights, num_blocks=blocks, kv_type="float32")
    last = int32([COUNT - 1])
    expected = reference.run(
        Batch(
            ids,
            int32(range(COUNT)),
            int32([0, COUNT]),
            int32([COUNT]),
            int32([range(blocks)]),
            last,
            last,
            states,
        )
    )[0]
    actual = told(head, "stream", [WINDOW, WINDOW, WINDOW, 5])[0][-1]
    # Q8_0 weights and int8 activations round to about 1 part in 200 of the largest number of 32, and
    # attention's int8 keys likewise: some percent of the logits' spread after a layer.
    assert np.abs(actual - expected).max() < 0.15 * expected.std()
    assert np.corrcoef(actual, expected)[0, 1] > 0.999


@pytest.mark.parametrize("threads", [1, 2])
def test_pieces_and_threads_change_no_bit(folder: Path, threads: int) -> None:
    head = open_head(folder / "head.gguf", folder / "target.gguf", threads=threads)
    assert isinstance(head, DraftHead)
    whole = told(head, "a", [WINDOW, WINDOW, WINDOW, 5])
    pieces_of = {"b": [1] * COUNT, "c": [3] * 49 + [2], "d": [WINDOW - 1, WINDOW, 40, 14]}
    for owner, pieces in pieces_of.items():
        parts = told(head, owner, pieces)
        assert_same_bits(parts[0][-1:], whole[0][-1:])
        assert_same_bits(parts[1][-1:], whole[1][-1:])


def test_of_many_streams_the_oldest_loses_its_keys_and_nothing_else(head: DraftHead) -> None:
    first = told(head, 0, [WINDOW])
    for owner in range(1, MOST_STREAMS + 1):
        assert_same_bits(told(head, owner, [WINDOW])[0], first[0])
    assert not head.holds(0)
    assert head.holds(1)
    head.forget(1)
    assert_same_bits(told(head, 0, [WINDOW])[0], first[0])
    assert head.holds(2)


@pytest.mark.parametrize(
    ("sampling", "concurrency"),
    [
        ({"temperature": 0.0}, 1),
        ({"temperature": 0.0}, 5),
        ({"temperature": 0.9, "top_p": 0.9}, 3),
        ({"temperature": 0.7, "presence_penalty": 0.5, "logit_bias": {4: 2.0}, "min_tokens": 8}, 2),
    ],
)
def test_answers_are_those_of_plain_decoding(
    folder: Path, sampling: dict[str, Any], concurrency: int
) -> None:
    interpreter = open_native(folder / "target.gguf", batch_tokens=512)
    sampler = native_sampler(interpreter.pool)
    assert interpreter.embedding is not None
    with GGUFFile.open(folder / "target.gguf") as file:
        head = load_head(
            folder / "head.gguf", file, interpreter.embedding, interpreter.pool,
            target_digest=DIGEST, context_tokens=interpreter.context_tokens,
        )  # fmt: skip
    answers = []
    for drafters in ((), (EagleDrafters(head, sampler),)):
        engine = Engine(interpreter, sampler, EngineOptions(2048), drafters=drafters)
        if drafters:
            engine._speculator = Speculator(drafters, FreeCost())
        found: dict[str, list[int]] = {}
        for number in range(concurrency):
            prompt = np.random.default_rng(number).integers(0, CONFIG.vocabulary, 70 + 20 * number)
            engine.add(str(number), prompt.tolist(), SamplingParams(max_tokens=90, **sampling), seed=number)
        while engine.busy:
            for output in engine.step():
                assert output.token_id is not None
                found.setdefault(output.sequence.request_id, []).extend((output.token_id, *output.written))
        engine.check()
        answers.append(found)
        if drafters:
            assert engine.stats().drafted_tokens > 0
    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"target_digest": "f" * 64}, "model with digest ffffffffffffffff"),
        ({"vocabulary": 99}, "vocabulary of 99"),
        ({"kind": "oracle"}, "stoker.draft.kind"),
        ({"passes": 0}, "stoker.draft.passes"),
        ({"draft_vocabulary": np.arange(15, dtype=np.int32)}, "token_ids"),
        ({"draft_vocabulary": np.arange(100, 164, dtype=np.int32)}, "token_ids"),
        ({"draft_vocabulary": np.zeros(16, np.int32)}, "token_ids"),
        ({"tensors": {"fc_feature.weight": np.zeros((64, 64), np.float32)}}, "is missing"),
    ],
)
def test_heads_of_others_are_refused(
    folder: Path, tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    path = write_random_head(tmp_path / "bad.gguf", CONFIG, **changes)
    with pytest.raises(ModelFormatError, match=message):
        open_head(path, folder / "target.gguf")


def test_files_that_are_no_head_are_refused(folder: Path, tmp_path: Path) -> None:
    whole = (folder / "head.gguf").read_bytes()
    for size in (0, 3, 100, len(whole) // 2, len(whole) - 1):
        (tmp_path / "short.gguf").write_bytes(whole[:size])
        with pytest.raises(ModelFormatError):
            open_head(tmp_path / "short.gguf", folder / "target.gguf")
    with pytest.raises(ModelFormatError, match="a draft head"):
        open_head(folder / "target.gguf", folder / "target.gguf")
    with pytest.raises(ModelNotFoundError):
        open_head(tmp_path / "none.gguf", folder / "target.gguf")


def test_numbers_that_are_none_are_refused(folder: Path, tmp_path: Path) -> None:
    tensors = random_tensors(shape_for(CONFIG))
    tensors["output_norm.weight"][3] = np.nan
    path = write_random_head(tmp_path / "nan.gguf", CONFIG, tensors=tensors)
    with pytest.raises(ModelFormatError, match="output_norm"):
        open_head(path, folder / "target.gguf")


def test_what_is_written_is_readable_by_others(folder: Path) -> None:
    reader = gguf.GGUFReader(folder / "head.gguf")
    assert {tensor.name for tensor in reader.tensors} == set(random_tensors(shape_for(CONFIG)))
