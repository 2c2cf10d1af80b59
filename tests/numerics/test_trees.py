"""E1 for trees of drafts: each guess has the bits of the same tokens as a plain text, whatever it branches
from, and whoever else is in the step."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the gguf package writes the small models of these tests")
native = pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.numerics.native_models import (  # noqa: E402
    TinyModel,
    assert_informative,
    assert_same_bits,
    open_native,
    tiny_config,
)
from tests.numerics.reference_models import lazy_weights  # noqa: E402
from tests.numerics.tree_run import BATCH_TOKENS, BUSH, CHAIN, FAN, LONG, Tree, run_apart, run_together  # noqa: E402

from stoker.kernels.native import KvType, NativeInterpreter  # noqa: E402
from stoker.kernels.reference import ReferenceInterpreter  # noqa: E402
from stoker.models.config import SlidingWindow  # noqa: E402
from stoker.models.registry import build_program  # noqa: E402
from stoker.weights.gguf import GGUFFile  # noqa: E402

MODELS = (
    TinyModel("tree-llama", tiny_config("llama", heads=9, kv_heads=3, head_size=64, width=96), "Q4_1"),
    TinyModel(
        "tree-gemma",
        tiny_config(
            "gemma3", layers=3, vocabulary=144, kv_heads=1, head_size=32, window=SlidingWindow(20, 3),
            attention_softcap=20.0, rope_base=1e6,
        ),
        "Q8_0",
    ),
)  # fmt: skip
KV_TYPES: tuple[KvType, ...] = ("int8", "f16")
SHAPES = {"bush": BUSH, "fan": FAN, "long": LONG, "chain": CHAIN}

Opened = Callable[..., NativeInterpreter]
each_model = pytest.mark.parametrize("name", [model.name for model in MODELS])
each_kv_type = pytest.mark.parametrize("kv_type", KV_TYPES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("trees")
    return {model.name: model.write(folder) for model in MODELS}


@pytest.fixture(scope="module")
def opened(files: dict[str, Path]) -> Opened:
    """name, kv_type, threads -> interpreter; each is made once."""

    @cache
    def make(name: str, kv_type: KvType, threads: int = 1) -> NativeInterpreter:
        return open_native(files[name], kv_type, threads=threads, batch_tokens=BATCH_TOKENS)

    return make


@each_model
@each_kv_type
@pytest.mark.parametrize("known", [1, 2, 13, 15, 16, 17, 18, 62, 63, 64, 65, 66, 510, 511, 512, 513, 514])
def test_a_tree_has_the_bits_of_its_paths(name: str, kv_type: KvType, known: int, opened: Opened) -> None:
    for shape in (BUSH, LONG) if known > 1 else SHAPES.values():
        trees = [Tree(known, shape)]
        want = run_apart(opened(name, kv_type), trees)
        assert_informative(want)
        for threads in (1, 2):
            assert_same_bits(run_together(opened(name, kv_type, threads), trees), want)


@each_model
@each_kv_type
@pytest.mark.parametrize("others", [0, 1, 9, 30])
def test_several_trees_in_one_step(name: str, kv_type: KvType, others: int, opened: Opened) -> None:
    """Among streams that decode; 30 fill tiles, so that threads take rows through many steps."""
    trees = [Tree(33, BUSH), Tree(16, FAN), Tree(514, LONG), Tree(15, FAN), Tree(600, BUSH), Tree(64, CHAIN)]
    want = run_apart(opened(name, kv_type), trees)
    for threads in (1, 2, 3):
        found = run_together(opened(name, kv_type, threads), trees, others, order=threads)
        assert_same_bits(found, want)


@each_kv_type
@pytest.mark.parametrize("known", [16, 32, 512])
def test_one_token_of_each_sequence(kv_type: KvType, known: int, opened: Opened) -> None:
    """A branch that begins with a block needs no copy, and reads what its stem writes in the step: the
    kernels must not take the two for streams that decode side by side."""
    interpreter = opened("tree-llama", kv_type, 2)
    trees = [Tree(known, (-1,) * siblings) for siblings in (1, 9)]
    want = run_apart(interpreter, trees)
    assert_same_bits(run_together(interpreter, trees, others=20), want)


def test_a_branch_of_one_token_beside_a_stem_of_one(opened: Opened) -> None:
    """Both sequences of the batch have one token, as if they decoded; no copy tells of it."""
    from tests.numerics.reference_models import make_batch

    interpreter = opened("tree-llama", "int8", 1)
    text = [(7 * i + 3) % interpreter.vocabulary for i in range(17)]
    want = interpreter.run(make_batch([(text, 0, range(2))], [16])).copy()
    interpreter.run(make_batch([(text[:15], 0, [20])], [0]))
    crowd = []
    for number in range(6):
        interpreter.run(make_batch([([number, 1], 0, [30 + number])], [0]))
        crowd.append(([number], 2, [30 + number]))
    # The branch comes first: computed in order, it would read a slot that is not written yet.
    batch = make_batch([(text[16:], 16, [20, 21]), *crowd, (text[15:16], 15, [20])], [0])
    assert_same_bits(interpreter.run(batch), want)


@each_kv_type
@pytest.mark.parametrize("target", ["scalar", "avx2", "neon"])
def test_on_each_target(target: str, kv_type: KvType, files: dict[str, Path]) -> None:
    """Trees on the target, paths on the best one."""
    if target not in native.available_targets.split(", "):
        pytest.skip(f"this machine runs {native.available_targets}")
    names = ("tree-gemma",) if target == "scalar" else tuple(files)

    def digest(on: str, mode: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.numerics.tree_run", mode, kv_type]
            + [str(files[name]) for name in names],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "STOKER_TARGET": on},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert digest(target, "together") == digest(native.target, "apart")


@each_model
def test_the_reference_agrees(name: str, files: dict[str, Path]) -> None:
    """To rounding, as its matrix products depend on the number of rows; a key that is missing shows."""
    with GGUFFile.open(files[name]) as file:
        config = next(model.config for model in MODELS if model.name == name)
        program = build_program(config)
        weights = {name: weight() for name, weight in lazy_weights(file).items()}
        interpreter = ReferenceInterpreter(program, weights, num_blocks=64)
        for known in (15, 16):
            trees = [Tree(known, BUSH), Tree(33, FAN), Tree(known, LONG)]
            want = run_apart(interpreter, trees)
            found = run_together(interpreter, trees)
            assert np.abs(found - want).max() < 1e-4 * np.abs(want).max()
