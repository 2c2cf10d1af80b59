"""The native core against the numpy reference: what int8 activations and KV types may cost, and no more."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the gguf package writes the small models of these tests")
pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.numerics.native_models import TinyModel, chunked_logits, open_native, random_k_blocks
from tests.numerics.reference_models import blocks_for, lazy_weights, make_batch, whole_text
from tests.numerics.test_native_equalities import MODELS
from tests.numerics.test_reference_models import TINY, TOLERANCE
from tests.numerics.test_reference_models import load as load_golden

from stoker import _native
from stoker.kernels.native import NativeInterpreter
from stoker.kernels.program import Embed, Float32, Linear, Program
from stoker.kernels.reference import ReferenceInterpreter
from stoker.kernels.reference import linear as plain_linear
from stoker.models.load import load_weights
from stoker.models.registry import program_from_gguf
from stoker.weights.gguf import GGUFFile
from stoker.weights.packing import dequantize_reference

EPSILON = 2.0**-24  # half a unit in the last place of float32: the largest relative error of one operation
GOLDENS = Path(__file__).parents[1] / "golden" / "models"
TYPES = {
    "F32": 0, "F16": 1, "BF16": 30, "Q4_0": 2, "Q4_1": 3, "Q5_0": 6, "Q5_1": 7, "Q8_0": 8,
    "Q2_K": 10, "Q3_K": 11, "Q4_K": 12, "Q5_K": 13, "Q6_K": 14,
}  # fmt: skip


def relative_rms(actual: np.ndarray, expected: np.ndarray) -> float:
    """Root mean square of the difference over the standard deviation of the expected."""
    wide = expected.astype(np.float64)
    return float(np.sqrt(np.mean((actual - wide) ** 2)) / wide.std())


# --- one linear layer ------------------------------------------------------------------------------


def quantised(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(scales [T, groups], what the int8 groups stand for, float64 [T, columns]); rounds half to even."""
    groups = x.reshape(len(x), -1, 32)
    most = np.abs(groups).max(axis=2)
    inverse = np.where(most > 1e-35, np.float32(127) / np.maximum(most, np.float32(1e-35)), np.float32(0))
    codes = np.rint(groups * inverse[:, :, None].astype(np.float32))
    scales = most * np.float32(1 / 127)
    return scales, (codes.astype(np.float64) * scales[:, :, None]).reshape(x.shape)


def linear_alone(kind: str, rows: int, columns: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(native result, x float32 [T, columns], weight float64) of embedding rows through one linear layer."""
    generator = np.random.default_rng(seed)
    table = generator.standard_normal((rows, columns)).astype(np.float32)
    table *= np.exp(generator.standard_normal(columns)).astype(np.float32)  # channels of different size
    table[3] = 0
    if kind.endswith("_K"):
        raw = random_k_blocks(kind, rows, columns, generator).reshape(-1)
    else:
        gguf = pytest.importorskip("gguf")
        values = generator.standard_normal((rows, columns)).astype(np.float32)
        raw = gguf.quants.quantize(values, gguf.GGMLQuantizationType[kind]).view(np.uint8).reshape(-1)
    matrices = {
        "table": _native.PackedMatrix.pack(0, table.view(np.uint8).reshape(-1), rows, columns),
        "weight": _native.PackedMatrix.pack(TYPES[kind], np.ascontiguousarray(raw), rows, columns),
    }
    program = Program((Embed("x", "table"), Linear("y", "x", "weight")), (), rows, rows, "test")
    interpreter = NativeInterpreter(
        program,
        matrices,
        {},
        _native.ThreadPool(1),
        kv_type="f16",
        num_blocks=blocks_for(rows),
        batch_tokens=rows,
        outliers=0,
    )
    logits = interpreter.run(whole_text(range(rows))).copy()
    weight = dequantize_reference(TYPES[kind], raw, rows, columns).astype(np.float64)
    return logits, table, weight


@pytest.mark.parametrize("rows", [16, 131])
@pytest.mark.parametrize("kind", TYPES)
def test_linear_is_the_product_with_rounded_activations(kind: str, rows: int) -> None:
    """Against float64 products of the same int8 activations: only the float32 additions of the groups differ.

    Each of the `groups` steps does at most 4 roundings on a partial sum that is at most the sum of |w x|.
    """
    columns = 768 if kind.endswith("_K") else 160
    y, x, weight = linear_alone(kind, rows, columns, seed=rows)
    is_float = kind in ("F32", "F16", "BF16")
    used = x.astype(np.float64) if is_float else quantised(x)[1]
    steps = columns if is_float else columns // 16
    # A minimum is added to its own product: |q scale| and |minimum| may both exceed the weight they make.
    size = np.abs(used) @ (np.abs(weight) + (0 if is_float else np.abs(weight).max())).T
    assert (np.abs(y - used @ weight.T) <= 4 * steps * EPSILON * size).all()
    assert (y[3] == 0).all()


@pytest.mark.parametrize("kind", [kind for kind in TYPES if kind not in ("F32", "F16", "BF16")])
def test_rounding_of_activations_is_bounded(kind: str) -> None:
    """Against the unrounded product. Rounding moves x by at most half a step, scale / 2, so y by at most
    sum |w| scale / 2; and by about sqrt(sum w^2 scale^2 / 12), as errors are uniform and independent.
    """
    columns = 768 if kind.endswith("_K") else 160
    y, x, weight = linear_alone(kind, 131, columns, seed=1)
    scales = np.repeat(quantised(x)[0].astype(np.float64), 32, axis=1)
    error = y - x.astype(np.float64) @ weight.T
    hard = scales / 2 @ np.abs(weight).T
    assert (np.abs(error) <= hard * (1 + 1e-4) + 1e-6).all()
    likely = np.sqrt(scales**2 / 12 @ (weight**2).T)
    ratio = error[likely > 0] / likely[likely > 0]
    assert 0.7 < np.sqrt(np.mean(ratio**2)) < 1.3
    assert abs(ratio.mean()) < 0.2  # no drift: rounding is to nearest


# --- whole models ----------------------------------------------------------------------------------

# Native and numpy round K and V to float16 alike, except where a number lies within float32's error of the
# middle between two: it then moves by 2^-11 of itself, as one of at least 16 numbers of a head.
F16_KV_TOLERANCE = TOLERANCE + 2.0**-11 / 8


@pytest.mark.parametrize("name", TINY)
def test_goldens_with_float16_kv(name: str) -> None:
    """F32 weights: beside KV rounding only float32's own errors are left."""
    program, weights, token_ids, expected = load_golden(name)
    logits = chunked_logits(open_native(GOLDENS / f"{name}.gguf", "f16"), token_ids, [len(token_ids)])
    peak = float(np.abs(expected).max())
    reference = ReferenceInterpreter(program, weights, num_blocks=2, kv_type="float16")
    same = reference.run(whole_text(token_ids))
    np.testing.assert_allclose(logits, same, rtol=0, atol=F16_KV_TOLERANCE * peak)
    # transformers keeps K and V in float32; rounding to float16 moves each by up to 2^-12 .. 2^-11 of itself.
    np.testing.assert_allclose(logits, expected, rtol=0, atol=4 * 2.0**-11 * peak)


@pytest.mark.parametrize("name", TINY)
def test_goldens_with_int8_kv(name: str) -> None:
    """Steps of max / 127 make errors of max / (127 sqrt(12)): 0.5 to 0.7 % of the root mean square of a head,
    whose largest number is two to three times that. Queries, keys and values are rounded: scores of size 1 to
    3 are then off by 0.01 to 0.02, and so are weights, and what attention adds to the rest of the row.
    """
    _, _, token_ids, expected = load_golden(name)
    logits = chunked_logits(open_native(GOLDENS / f"{name}.gguf", "int8"), token_ids, [len(token_ids)])
    assert 5e-4 < relative_rms(logits, expected) < 0.025


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("models")


def both(path: Path, outliers: int) -> tuple[NativeInterpreter, ReferenceInterpreter, set[int]]:
    """Native and numpy with float16 KV, and the ids of the reference's float (not int8) matrices."""
    with GGUFFile.open(path) as file:
        program = program_from_gguf(file.metadata, file.tensors)
        pool = _native.ThreadPool(2)
        matrices, vectors = load_weights(file, program, pool)
        weights = {key: np.array(make()) for key, make in lazy_weights(file).items()}
    native = NativeInterpreter(
        program, matrices, vectors, pool, kv_type="f16", num_blocks=20, batch_tokens=300, outliers=outliers
    )
    reference = ReferenceInterpreter(program, weights, num_blocks=20, kv_type="float16")
    return native, reference, {id(weights[key]) for key, matrix in matrices.items() if matrix.is_float}


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_models_are_the_reference_with_rounded_activations(
    model: TinyModel, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """numpy that rounds the inputs of int8 layers gives the same logits, nearly everywhere.

    Not quite everywhere: an activation within float32's error of the middle between two codes may go to the
    other one, which these random networks enlarge and attention hands on. So in many short sequences the
    median row is held to float32's error, and a long sequence to what a few codes make.
    """
    native, reference, floats = both(model.write(folder), outliers=0)

    def rounded_linear(x: Float32, weight: Float32, bias: Float32 | None = None) -> Float32:
        used = x if id(weight) in floats else quantised(x)[1].astype(np.float32)
        return plain_linear(x=used, weight=weight, bias=bias)

    monkeypatch.setattr("stoker.kernels.reference.linear", rounded_linear)
    ids = np.random.default_rng(3).integers(0, model.config.vocabulary, 300).tolist()
    short = make_batch([(ids[15 * i : 15 * i + 15], 0, [i]) for i in range(20)])
    actual, expected = native.run(short).copy(), reference.run(short)
    assert np.median([relative_rms(a, e) for a, e in zip(actual, expected, strict=True)]) < 100 * TOLERANCE
    assert relative_rms(chunked_logits(native, ids, [300]), reference.run(whole_text(ids))) < 0.03


@pytest.mark.parametrize("model", MODELS, ids=lambda model: model.name)
def test_outlier_columns_do_not_harm(model: TinyModel, folder: Path) -> None:
    """Columns kept in float32 bring the logits of short texts nearer to the unrounded ones."""
    errors = {}
    for outliers in (0, 4):
        native, reference, _ = both(model.write(folder), outliers)
        ids = np.random.default_rng(4).integers(0, model.config.vocabulary, 300).tolist()
        batch = make_batch([(ids[3 * i : 3 * i + 3], 0, [i]) for i in range(20)])
        actual, expected = native.run(batch).copy(), reference.run(batch)
        errors[outliers] = np.median([relative_rms(a, e) for a, e in zip(actual, expected, strict=True)])
    rounds = model.weight_type not in ("F32", "BF16")
    assert errors[4] < (0.8 * errors[0] if rounds else TOLERANCE)  # about half of it was seen
    assert errors[0] < 0.06
