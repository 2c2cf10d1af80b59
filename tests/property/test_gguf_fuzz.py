"""Damaged GGUF files: the reader says no, or gives a file that is safe to read; it never does more.

Each example is a small valid file with a few edits: bytes overwritten, inserted, cut out, repeated,
and whole numbers set to values that overflow something.
"""

from __future__ import annotations

import contextlib
import struct
import tracemalloc
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.gguf_builder import small_file

from stoker.api.errors import ModelFormatError, StokerError
from stoker.weights.gguf import GGUFFile
from stoker.weights.inspect import describe
from stoker.weights.metadata import Array

MAX_PEAK_BYTES = 4 << 20  # what reading a file of 2 KB may take, objects and numpy's windows included

EDGES = [0, 1, 7, 31, 32, 255, 256, 65535, 65536, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, 1 << 32]
EDGES += [1 << 40, (1 << 63) - 1, 1 << 63, (1 << 64) - 32, (1 << 64) - 1]

place = st.integers(0, 4000)
edits = st.one_of(
    st.tuples(st.just("set"), place, st.binary(min_size=1, max_size=9)),
    st.tuples(st.just("insert"), place, st.binary(min_size=1, max_size=40)),
    st.tuples(st.just("u64"), place, st.sampled_from(EDGES)),
    st.tuples(st.just("u32"), place, st.sampled_from([edge for edge in EDGES if edge < 1 << 32])),
    st.tuples(st.just("cut"), place, st.integers(1, 64)),
    st.tuples(st.just("repeat"), place, st.integers(1, 64)),
    st.tuples(st.just("flip"), place, st.integers(0, 7)),
    st.tuples(st.just("end"), place, st.just(0)),
)


def edited(content: bytes, changes: list[tuple[str, int, int | bytes]]) -> bytes:
    """``content`` with the changes made in order."""
    out = bytearray(content)
    for kind, at, value in changes:
        at = min(at, len(out))
        if isinstance(value, bytes):
            out[at : at + (len(value) if kind == "set" else 0)] = value
        elif kind in ("u32", "u64"):
            raw = struct.pack("<I" if kind == "u32" else "<Q", value)
            out[at : at + len(raw)] = raw
        elif kind == "cut":
            del out[at : at + value]
        elif kind == "repeat":
            out[at:at] = out[at : at + value]
        elif kind == "flip" and at < len(out):
            out[at] ^= 1 << value
        elif kind == "end":
            del out[at:]
    return bytes(out)


def check_one(path: Path) -> bool:
    """Open and read the file at ``path``; whether it was accepted. Anything but an error of ours fails."""
    tracemalloc.start()
    try:
        with GGUFFile.open(path, allow_unsupported=True) as opened:
            end = 0
            for info in sorted(opened.tensors.values(), key=lambda info: info.offset_bytes):
                assert end <= info.offset_bytes
                end = info.offset_bytes + info.n_bytes
                assert info.n_bytes * info.type.block_size == info.n_elements * info.type.block_bytes
                assert len(opened.data(info)) == info.n_bytes
                opened.release(info)
            assert end <= opened.size_bytes
            for value in opened.metadata.values():
                if isinstance(value, Array):
                    with contextlib.suppress(ModelFormatError):
                        assert len(value.tolist()) == len(value)
            describe(opened)
        accepted = True
    except StokerError as error:
        assert path.name in str(error)  # noqa: PT017 (both outcomes are right, this one must name the file)
        accepted = False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < MAX_PEAK_BYTES
    return accepted


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def test_the_undamaged_file_is_accepted(folder):
    path = folder / "good.gguf"
    path.write_bytes(small_file().to_bytes())
    assert check_one(path)


@settings(max_examples=400, deadline=None)
@given(changes=st.lists(edits, min_size=1, max_size=4))
def test_edited_files(folder, changes):
    path = folder / "edited.gguf"
    path.write_bytes(edited(small_file().to_bytes(), changes))
    check_one(path)


@settings(max_examples=150, deadline=None)
@given(changes=st.lists(edits, min_size=1, max_size=3))
def test_edited_files_of_the_gguf_package(folder, changes):
    gguf = pytest.importorskip("gguf")
    np = pytest.importorskip("numpy")
    original = folder / "written.gguf"
    if not original.exists():
        writer = gguf.GGUFWriter(original, "llama")
        writer.add_block_count(1)
        writer.add_token_list(["<s>", "a", "b"])
        writer.add_token_scores([0.0, -1.0, -2.0])
        writer.add_tensor("w", np.zeros((4, 18), np.uint8), raw_dtype=gguf.GGMLQuantizationType.Q4_0)
        writer.add_tensor("b", np.arange(5, dtype=np.float32))
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        assert check_one(original)
    path = folder / "edited.gguf"
    path.write_bytes(edited(original.read_bytes(), changes))
    check_one(path)


@settings(max_examples=100, deadline=None)
@given(body=st.binary(max_size=400), n_tensors=st.integers(0, 3), n_keys=st.integers(0, 3))
def test_noise_behind_a_valid_header(folder, body, n_tensors, n_keys):
    path = folder / "noise.gguf"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, n_tensors, n_keys) + body)
    check_one(path)
