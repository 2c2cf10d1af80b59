"""E1 where sequences of a step hold the same blocks: their rows are computed together, no bit changes."""

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
from tests.numerics.shared_prefix_run import BATCH_TOKENS, TREE, Branch, fan, run_branches  # noqa: E402

from stoker.kernels.native import KvType, NativeInterpreter  # noqa: E402
from stoker.models.config import SlidingWindow  # noqa: E402

# Groups of 1, 3, 4 and 12 heads; windows that end inside a shared prefix or a chunk of it; softcaps; heads
# whose values do not fill 64 columns.
MODELS = (
    TinyModel("shared-llama", tiny_config("llama", heads=9, kv_heads=3, head_size=64, width=96), "Q4_1"),
    TinyModel("shared-wide", tiny_config("llama", heads=12, kv_heads=1, layers=1), "Q8_0"),
    TinyModel("shared-single", tiny_config("llama", heads=2, head_size=80, layers=1), "Q8_0"),
    TinyModel(
        "shared-gemma",
        tiny_config(
            "gemma3", layers=3, vocabulary=144, kv_heads=1, head_size=32, window=SlidingWindow(150, 3),
            attention_softcap=20.0, rope_base=1e6,
        ),
        "Q8_0",
    ),
    TinyModel("shared-window", tiny_config("gemma3", layers=3, window=SlidingWindow(513, 2)), "Q4_0"),
)  # fmt: skip
KV_TYPES: tuple[KvType, ...] = ("int8", "f16")
PREFIXES = (0, 15, 16, 63, 64, 128, 511, 512, 513, 600, 1024, 1040)

Opened = Callable[..., NativeInterpreter]
each_model = pytest.mark.parametrize("name", [model.name for model in MODELS])
each_kv_type = pytest.mark.parametrize("kv_type", KV_TYPES)


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("shared")
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
@pytest.mark.parametrize("prefix", PREFIXES)
def test_a_shared_prefix_changes_no_bit(name: str, kv_type: KvType, prefix: int, opened: Opened) -> None:
    case = fan(prefix, [1 + 7 * i % 90 for i in range(19)])
    want = run_branches(opened(name, kv_type), case, together=False)
    assert_informative(want)
    for threads in (1, 2):
        assert_same_bits(run_branches(opened(name, kv_type, threads), case, together=True), want)


MOST_SEQUENCES = 64


def crowd(sequences: int) -> list[Branch]:
    """Behind one prefix: every third with up to 783 tokens of its own, past a split; the others with few."""
    return fan(590, [3 + (1 if i % 3 else 20) * (i % 40) for i in range(sequences)])


@pytest.fixture(scope="module")
def crowd_apart(opened: Opened) -> Callable[[str, KvType], np.ndarray]:
    """Logits of the largest crowd, each sequence alone: those of a smaller one are its first rows."""
    return cache(
        lambda name, kv_type: run_branches(opened(name, kv_type), crowd(MOST_SEQUENCES), together=False)
    )


@each_kv_type
@pytest.mark.parametrize("sequences", [2, 3, 5, 8, 32, 33, MOST_SEQUENCES])
def test_any_number_of_sequences(
    sequences: int, kv_type: KvType, opened: Opened, crowd_apart: Callable[[str, KvType], np.ndarray]
) -> None:
    """From two, whose splits are handed out one by one, to units that do not divide evenly.

    32 and 64 fill tiles of 16 tokens: threads then take rows through many steps.
    """
    for name in ("shared-llama", "shared-gemma"):
        want = crowd_apart(name, kv_type)[:sequences]
        for threads in (1, 2, 3):
            found = run_branches(opened(name, kv_type, threads), crowd(sequences), together=True)
            assert_same_bits(found, want)


@each_model
@pytest.mark.parametrize("query", [2, 4, 5])
def test_several_tokens_of_each(name: str, query: int, opened: Opened) -> None:
    """As verification of drafts has them: rows of several tokens of several sequences in one unit."""
    case = fan(200, [10 + 5 * i for i in range(9)], query)
    want = run_branches(opened(name, "int8"), case, together=False)
    for threads in (1, 2):
        assert_same_bits(run_branches(opened(name, "int8", threads), case, together=True), want)


@each_model
@each_kv_type
def test_prefixes_within_prefixes(name: str, kv_type: KvType, opened: Opened) -> None:
    want = run_branches(opened(name, kv_type), TREE, together=False)
    for threads in (1, 2):
        assert_same_bits(run_branches(opened(name, kv_type, threads), TREE, together=True), want)


@each_kv_type
@pytest.mark.parametrize("target", ["scalar", "avx2", "neon"])
def test_on_each_target(target: str, kv_type: KvType, files: dict[str, Path]) -> None:
    """Together on the target, apart on the best one."""
    if target not in native.available_targets.split(", "):
        pytest.skip(f"this machine runs {native.available_targets}")
    names = ("shared-gemma",) if target == "scalar" else tuple(files)

    def digest(on: str, mode: str) -> str:
        done = subprocess.run(
            [sys.executable, "-m", "tests.numerics.shared_prefix_run", mode, kv_type]
            + [str(files[name]) for name in names],
            cwd=Path(__file__).parents[2],
            env={**os.environ, "STOKER_TARGET": on},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    assert digest(target, "together") == digest(native.target, "apart")
