"""The description of a file: its numbers add up, it is JSON, and long things are cut short."""

from __future__ import annotations

import json

import pytest
from tests.gguf_builder import ARRAY, GGUF, STRING, U32, Tensor, small_file

from stoker.weights.gguf import GGUFFile
from stoker.weights.inspect import FileDescription, describe


def described(folder, file: GGUF, **options: int) -> FileDescription:
    path = folder / "m.gguf"
    path.write_bytes(file.to_bytes())
    with GGUFFile.open(path, allow_unsupported=True) as opened:
        description = describe(opened, **options)
    assert json.loads(json.dumps(description, allow_nan=False)) == description
    return description


def value_of(description: FileDescription, key: str) -> object:
    return next(row["value"] for row in description["metadata"] if row["key"] == key)


def test_small_file(tmp_path):
    description = described(tmp_path, small_file())
    assert description["architecture"] == "llama"
    assert description["name"] is None
    assert description["n_parameters"] == 128 + 3 + 512
    assert description["tensor_bytes"] == 72 + 12 + 288
    assert description["bits_per_weight"] == round(8 * 372 / 643, 4)
    assert [row["type"] for row in description["types"]] == ["Q4_K", "Q4_0", "F32"]
    assert sum(row["n_bytes"] for row in description["types"]) == 372
    assert description["tensors"][2]["shape"] == [1, 1, 2, 256]
    assert description["size_bytes"] == len(small_file().to_bytes())
    assert value_of(description, "nested") == [[1, 2], ["a"], []]
    assert value_of(description, "array.7") == [True, False, True]
    types = {row["key"]: row["type"] for row in description["metadata"]}
    assert types["number.4"] == "UINT32"
    assert types["tokens"] == "ARRAY of STRING"


def test_long_arrays_and_what_json_lacks(tmp_path):
    keys = [
        ("many", ARRAY, (STRING, [f"t{i}" for i in range(1000)])),
        ("bad", ARRAY, (STRING, [b"a\xff", "b"])),
        ("floats", ARRAY, (6, [float("nan"), float("inf"), 0.5])),
        ("minus", 12, float("-inf")),
        ("deep", ARRAY, (ARRAY, [(U32, list(range(9)))] * 3)),
    ]
    description = described(tmp_path, GGUF(keys=keys), max_elements=2)
    assert value_of(description, "many") == {"count": 1000, "first": ["t0", "t1"]}
    assert value_of(description, "bad") == ["a\ufffd", "b"]
    assert value_of(description, "floats") == {"count": 3, "first": ["nan", "inf"]}
    assert value_of(description, "minus") == "-inf"
    inner = {"count": 9, "first": [0, 1]}
    assert value_of(description, "deep") == {"count": 3, "first": [inner, inner]}
    assert (description["n_parameters"], description["bits_per_weight"]) == (0, 0.0)


def test_unsupported_types_are_marked(tmp_path):
    description = described(tmp_path, GGUF(tensors=[Tensor("w", [32], 39, 0)], data=bytes(17)))
    assert [(row["type"], row["supported"]) for row in description["types"]] == [("MXFP4", False)]


@pytest.mark.model
def test_real_models(smollm2_path, gemma3_path):
    for path, n_parameters in ((smollm2_path, 134_515_008), (gemma3_path, 268_098_176)):
        with GGUFFile.open(path) as opened:
            description = describe(opened)
        assert description["n_parameters"] == n_parameters
        assert description["tensor_bytes"] < description["size_bytes"] == path.stat().st_size
        assert len(json.dumps(description, allow_nan=False)) < 200_000
