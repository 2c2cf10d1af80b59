"""A block's bytes, taken out of one interpreter and put into another, go on with the same bits."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the gguf package writes the small models of these tests")
pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.numerics.native_models import (
    TinyModel,
    assert_informative,
    assert_same_bits,
    open_native,
    tiny_config,
)
from tests.numerics.reference_models import lazy_weights, make_batch

from stoker.api.errors import EngineError
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.native import KvType
from stoker.kernels.reference import ReferenceInterpreter
from stoker.models import program_from_gguf
from stoker.models.config import SlidingWindow
from stoker.weights.gguf import GGUFFile

MODELS = (
    TinyModel("llama", tiny_config("llama", heads=6, kv_heads=3, head_size=32), "Q4_1"),
    TinyModel("gemma3", tiny_config("gemma3", layers=3, head_size=32, window=SlidingWindow(20, 2)), "Q8_0"),
)
KV_TYPES: tuple[KvType, ...] = ("int8", "f16")
KNOWN = 48  # three blocks travel
IDS = [(7 * i + i * i) % 60 for i in range(70)]


def _goes_on(one: Interpreter, other: Interpreter) -> None:
    """`one` computes all; `other` gets the first blocks' bytes, elsewhere, and computes the rest."""
    whole = one.run(make_batch([(IDS, 0, [0, 1, 2, 3, 4])])).copy()
    assert_informative(whole)
    for source, destination in ((0, 6), (1, 2), (2, 5)):
        payload = one.read_block(source)
        assert payload.shape == (one.block_bytes,)
        assert payload.dtype == np.uint8
        payload.flags.writeable = False  # as a memory map's
        other.write_block(destination, payload)
        np.testing.assert_array_equal(other.read_block(destination), payload)
    rest = other.run(make_batch([(IDS[KNOWN:], KNOWN, [6, 2, 5, 0, 1])]))
    assert_same_bits(rest, whole[KNOWN:])


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
@pytest.mark.parametrize("kv_type", KV_TYPES)
def test_native_blocks_travel(model: TinyModel, kv_type: KvType, tmp_path: Path) -> None:
    path = model.write(tmp_path)
    _goes_on(open_native(path, kv_type), open_native(path, kv_type, threads=2))


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_reference_blocks_travel(model: TinyModel, tmp_path: Path) -> None:
    """The numpy interpreter's sums depend on the number of rows, so its rest is compared with its own."""
    with GGUFFile.open(model.write(tmp_path)) as file:
        program = program_from_gguf(file.metadata, file.tensors)
        weights = {name: np.array(make()) for name, make in lazy_weights(file).items()}
    one, other = (ReferenceInterpreter(program, weights, num_blocks=7, kv_type="float16") for _ in range(2))
    one.run(make_batch([(IDS[:KNOWN], 0, [0, 1, 2])]))
    for source, destination in ((0, 6), (1, 2), (2, 5)):
        other.write_block(destination, one.read_block(source))
    rest = other.run(make_batch([(IDS[KNOWN:], KNOWN, [6, 2, 5, 0, 1])])).copy()
    assert_informative(rest)
    assert_same_bits(rest, one.run(make_batch([(IDS[KNOWN:], KNOWN, [0, 1, 2, 3, 4])])))


def test_what_does_not_fit_is_refused(tmp_path: Path) -> None:
    native = open_native(MODELS[0].write(tmp_path))
    with pytest.raises(EngineError, match="allowed: 0 to"):
        native.read_block(native.num_blocks)
    with pytest.raises(EngineError, match="allowed: 0 to"):
        native.write_block(-1, native.read_block(0))
    for size in (0, native.block_bytes - 1, native.block_bytes + 1):
        with pytest.raises(EngineError, match=f"a block of {size} bytes; allowed: {native.block_bytes}"):
            native.write_block(0, np.zeros(size, np.uint8))
