"""Whole models on every instruction set this CPU has: one SHA-256 of the logits for all of them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("gguf", reason="the gguf package writes the small models of these tests")
native = pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.numerics import native_digest  # noqa: E402
from tests.numerics.native_models import TinyModel, tiny_config  # noqa: E402
from tests.numerics.test_native_equalities import MODELS  # noqa: E402


def digests(target: str, kv_type: str, threads: int, tokens: int, files: list[Path]) -> dict[str, str]:
    """By file name, from a process that runs on `target`."""
    if target not in native.available_targets.split(", "):
        pytest.skip(f"this machine runs {native.available_targets}")
    done = subprocess.run(
        [sys.executable, native_digest.__file__, kv_type, str(threads), str(tokens), *map(str, files)],
        env={**os.environ, "STOKER_TARGET": target},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["target"] == target
    return answer["digests"]


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("targets")
    return [model.write(folder) for model in MODELS]


@pytest.mark.parametrize("kv_type", ["int8", "f16"])
@pytest.mark.parametrize("target", ["avx512", "avx2", "neon"])
def test_small_models_on_each_target(target: str, kv_type: str, files: list[Path]) -> None:
    expected = digests("scalar", kv_type, 1, 80, files)
    assert len(set(expected.values())) == len(files)
    assert digests(target, kv_type, 2, 80, files) == expected


@pytest.mark.parametrize("kv_type", ["int8", "f16"])
def test_long_contexts_on_avx2(kv_type: str, files: list[Path]) -> None:
    """600 tokens cross a split; scalar would take long."""
    if native.target == "avx2":
        pytest.skip("avx2 is the best target of this machine")
    assert digests("avx2", kv_type, 2, 600, files) == digests(native.target, kv_type, 1, 600, files)


def test_self_check_compares_them() -> None:
    done = subprocess.run([sys.executable, "-m", "stoker.kernels"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    targets = native.available_targets.split(", ")
    assert [line.split()[0] for line in lines[1:-1]] == targets
    assert len({line.split()[1] for line in lines[1:-1]}) == 1
    assert lines[-1] == "the same bits on all of them"
    wrong = subprocess.run([sys.executable, "-m", "stoker.kernels", "fast"], capture_output=True, text=True)
    assert wrong.returncode == 2


def test_many_heads_to_a_kv_head_are_refused_or_computed(tmp_path: Path) -> None:
    """In a process of its own, as what goes wrong is memory. 32 is the most rows of a unit of attention."""
    many = [TinyModel(f"llama-{n}", tiny_config("llama", heads=n, kv_heads=1)) for n in (32, 40)]
    assert len(set(digests(native.target, "int8", 1, 80, [many[0].write(tmp_path)]).values())) == 1
    done = subprocess.run(
        [sys.executable, native_digest.__file__, "int8", "1", "80", str(many[1].write(tmp_path))],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 or "ModelFormatError" in done.stderr


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_real_models_on_each_target(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    targets = [name for name in native.available_targets.split(", ") if name != "scalar"]
    if len(targets) < 2:
        pytest.skip(f"this machine runs {native.available_targets}")
    found = [digests(target, "int8", threads, 150, [path]) for threads, target in enumerate(targets, start=1)]
    assert all(each == found[0] for each in found)


@pytest.mark.model
@pytest.mark.slow
@pytest.mark.parametrize("model", ["smollm2_path", "gemma3_path"])
def test_a_real_model_on_scalar(model: str, request: pytest.FixtureRequest) -> None:
    path: Path = request.getfixturevalue(model)
    if native.target == "scalar":
        pytest.skip("scalar is the only target of this machine")
    expected = digests(native.target, "int8", 2, 10, [path])  # few: scalar is some hundred times slower
    assert digests("scalar", "int8", 2, 10, [path]) == expected
