"""The GGUF reader: what it returns for good files, and the error for each kind of bad one."""

from __future__ import annotations

import contextlib
import gc
import os
import resource
import struct
from pathlib import Path

import numpy as np
import pytest
from tests.gguf_builder import ARRAY, GGUF, STRING, U32, Tensor, small_file, string

from stoker.api.errors import ModelFormatError, ModelNotFoundError, StokerError
from stoker.weights.ggml_type import GGMLType
from stoker.weights.gguf import GGUFFile
from stoker.weights.metadata import Array, ValueType, skip_strings


def write(folder: Path, content: bytes, name: str = "model.gguf") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def read(folder: Path, file: GGUF, **options: bool) -> GGUFFile:
    return GGUFFile.open(write(folder, file.to_bytes()), **options)


def refused(folder: Path, file: GGUF | bytes, *parts: str) -> None:
    """Opening fails, and the message names the file and each of ``parts``."""
    path = write(folder, file if isinstance(file, bytes) else file.to_bytes())
    with pytest.raises(ModelFormatError) as caught:
        GGUFFile.open(path)
    for part in (str(path), *parts):
        assert part in str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
def test_all_value_types_and_tensors(tmp_path, version):
    file = small_file()
    file.version = version
    with read(tmp_path, file) as opened:
        assert opened.version == version
        assert opened.metadata["general.architecture"] == "llama"
        for kind in (0, 1, 2, 3, 4, 5, 10, 11):
            assert opened.metadata[f"number.{kind}"] == 1
            assert opened.metadata[f"array.{kind}"] == [1, 0, 1]
            assert opened.metadata[f"array.{kind}"].numpy().tolist() == [1, 0, 1]
            assert opened.metadata_types[f"number.{kind}"] == kind
        assert opened.metadata["number.7"] is True
        assert opened.metadata["array.7"].tolist() == [True, False, True]
        assert opened.metadata["number.6"] == opened.metadata["number.12"] == 1.0
        assert opened.metadata["empty"] == []
        assert [list(element) for element in opened.metadata["nested"]] == [[1, 2], ["a"], []]
        info = opened.tensors["c.weight"]
        assert (info.shape, info.type) == ((1, 1, 2, 256), GGMLType.Q4_K)
        assert (info.n_bytes, info.n_elements) == (288, 512)
        assert opened.data("c.weight").tobytes() == file.data[128:]
        assert opened.data(opened.tensors["a.weight"]).tobytes() == file.data[:72]
        assert info.offset_bytes == len(file.to_bytes()) - 288
        assert opened.size_bytes == len(file.to_bytes())


def test_string_arrays_by_list_index_slice_and_bytes(tmp_path):
    expected = ["<s>", "", "ä", "x" * 300, "\0" * 9, "end"]
    tokens = read(tmp_path, small_file()).metadata["tokens"]
    assert isinstance(tokens, Array)
    assert tokens.tolist() == list(tokens) == tokens[:] == expected
    assert tokens == expected
    assert tokens != expected[:-1]
    assert [tokens[i] for i in range(-6, 0)] == expected
    assert tokens[1:4:2] == expected[1:4:2]
    assert tokens.head(2).tolist() == expected[:2]
    assert tokens.tobytes_list() == [text.encode() for text in expected]
    assert tokens.element_type is ValueType.STRING
    with pytest.raises(IndexError):
        tokens[6]
    with pytest.raises(TypeError):
        tokens.numpy()


def test_plain_strings_decode_in_one_go_to_the_same(tmp_path):
    words = [f"tok{i}" for i in range(3000)] + ["€" * 90] + [""] * 40
    tokens = read(tmp_path, GGUF(keys=[("t", ARRAY, (STRING, words))])).metadata["t"]
    assert tokens.tolist() == words


@pytest.mark.parametrize(
    "strings",
    [
        [b"ab"] * 5000,
        [b""] * 5000,
        [b"x" * 256] * 200,
        [b"x" * 255, b"y" * 256, b"z" * 65536] * 20,
        [b"\0" * n for n in range(200)],
        [b"\5" + b"\0" * 12] * 300,  # contents that look like lengths
        [b"a" * (i % 300) for i in range(4000)],
    ],
)
def test_skipping_strings_equals_a_plain_walk(strings):
    blob = b"".join(string(text) for text in strings)
    for lead in (0, 3):
        data = np.frombuffer(b"\7" * lead + blob + b"\0" * 5, np.uint8)
        found: list[np.ndarray] = []
        assert skip_strings(data, lead, len(strings), "x", found) == lead + len(blob)
        offsets = np.cumsum([lead] + [8 + len(text) for text in strings])[:-1]
        assert np.array_equal(np.concatenate(found), offsets)
        with pytest.raises(ModelFormatError):
            skip_strings(data, lead, len(strings) + 1, "x")
        with pytest.raises(ModelFormatError):
            skip_strings(data[: lead + len(blob) - 1], lead, len(strings), "x")


def test_views_outlive_the_file(tmp_path):
    file = small_file()
    opened = read(tmp_path, file)
    view, numbers = opened.data("a.weight"), opened.metadata["array.5"].numpy()
    opened.close()
    opened.close()
    with pytest.raises(ValueError, match="closed"):
        opened.data("a.weight")
    del opened
    gc.collect()
    assert view.tobytes() == file.data[:72]
    assert numbers.tolist() == [1, 0, 1]
    assert not view.flags.writeable
    with pytest.raises(ValueError):
        view[0] = 1


def test_release_gives_memory_back_and_keeps_the_bytes(tmp_path):
    rows = 4096
    content = np.random.default_rng(1).integers(0, 256, rows * 4096, np.uint8).tobytes()
    with read(tmp_path, GGUF(tensors=[Tensor("w", [1024, rows], 0, 0)], data=content)) as opened:
        assert opened.data("w").tobytes() == content  # touches each page
        before = _mapped_resident_kib(opened.path)
        opened.release("w", 8 << 20)
        assert _mapped_resident_kib(opened.path) <= before - 8 * 1024 + 64
        opened.release("w")
        after = _mapped_resident_kib(opened.path)
        assert before >= 16 * 1024
        assert after <= 64
        assert opened.data("w").tobytes() == content
        opened.release_all()
        assert _mapped_resident_kib(opened.path) <= 64
        assert opened.metadata == {}


def _mapped_resident_kib(path: Path) -> int:
    if not os.path.exists("/proc/self/smaps"):
        pytest.skip("resident pages of one mapping are only known on Linux")
    lines = Path("/proc/self/smaps").read_text().splitlines()
    start = next(i for i, line in enumerate(lines) if line.endswith(str(path)))
    return next(int(line.split()[1]) for line in lines[start:] if line.startswith("Rss:"))


def test_typed_access(tmp_path):
    opened = read(tmp_path, small_file())
    assert opened.value("number.4", int) == 1
    assert opened.value("number.4", float) == 1.0
    assert opened.value("missing", int, 7) == 7
    assert opened.value("missing", str, None) is None
    assert len(opened.value("tokens", Array)) == 6
    for key, kind, part in (("missing", int, "missing"), ("number.7", int, "BOOL"), ("tokens", str, "ARRAY")):
        with pytest.raises(ModelFormatError, match=part):
            opened.value(key, kind)
    with pytest.raises(ModelFormatError, match=r"nothing\.weight"):
        opened.data("nothing.weight")


# --- what is refused -------------------------------------------------------------------------------


def test_header(tmp_path):
    refused(tmp_path, b"", "0 bytes")
    refused(tmp_path, b"GGUF", "4 bytes")
    refused(tmp_path, b"PK\3\4" + bytes(40), "offset 0", "PK")
    refused(tmp_path, GGUF(version=1), "version 1", "allowed: 2, 3")
    refused(tmp_path, GGUF(version=4), "version 4")
    refused(tmp_path, b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "big-endian")
    for huge in (1 << 20, 1 << 40, (1 << 64) - 1):
        refused(tmp_path, GGUF(key_count=huge), f"{huge} metadata keys", "allowed")
        refused(tmp_path, GGUF(tensor_count=huge), f"{huge} tensors", "allowed")


def test_folders_and_files_that_cannot_be_read(tmp_path):
    with pytest.raises(ModelFormatError, match="folder"):
        GGUFFile.open(tmp_path)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        GGUFFile.open(tmp_path / "none.gguf")
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(ModelFormatError, match="regular"):
        GGUFFile.open(tmp_path / "pipe")  # must not wait for a writer
    with pytest.raises(StokerError):
        GGUFFile.open("a\0b")
    path = write(tmp_path, small_file().to_bytes())
    path.chmod(0)
    if os.geteuid() != 0:
        with pytest.raises(ModelFormatError, match="cannot be read"):
            GGUFFile.open(path)


def test_keys(tmp_path):
    refused(tmp_path, GGUF(keys=[("a", U32, 1), ("a", U32, 1)]), "'a' occurs twice")
    refused(tmp_path, GGUF(keys=[("", U32, 1)]), "key 0 is empty")
    refused(tmp_path, GGUF(keys=[(b"\xff", U32, 1)]), "UTF-8")
    refused(tmp_path, GGUF(keys=[("k" * 65536, U32, 1)]), "65536 bytes", "65535")
    refused(tmp_path, GGUF(keys=[("a", STRING, b"\xff")]), "'a'", "UTF-8")
    refused(tmp_path, GGUF(keys=[("a", 7, 2)]), "'a'", "bool", "2")
    refused(tmp_path, GGUF(keys=[("a", ARRAY, (7, [0, 1, 2]))]), "'a'", "bool")
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("some.key")
    refused(tmp_path, head + struct.pack("<IQ", 13, 0), "'some.key'", "value type 13")
    for huge in (1000, 1 << 33, (1 << 63) + 1, (1 << 64) - 1):
        refused(tmp_path, head + struct.pack("<IQ", STRING, huge) + bytes(50), "'some.key'", str(huge))
        for kind in (0, 12, STRING, ARRAY):
            array = struct.pack("<IIQ", ARRAY, kind, huge) + bytes(50)
            refused(tmp_path, head + array, "'some.key'", f"{huge} elements")
    deep = struct.pack("<I", ARRAY) + struct.pack("<IQ", ARRAY, 1) * 500
    refused(tmp_path, head + deep, "'some.key'", "deeper than 4")


def test_many_tiny_arrays_are_refused_not_built(tmp_path):
    count = 100_000
    body = struct.pack("<IQ", 0, 0) * count
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k")
    refused(tmp_path, head + struct.pack("<IIQ", ARRAY, ARRAY, count) + body, "65536 arrays")


@pytest.mark.parametrize("alignment", [0, 1, 4, 24, 33, 1 << 21, (1 << 32) - 1])
def test_alignment(tmp_path, alignment):
    refused(tmp_path, GGUF(keys=[("general.alignment", U32, alignment)]), "general.alignment", str(alignment))


def test_alignment_of_another_type_and_a_larger_one(tmp_path):
    refused(tmp_path, GGUF(keys=[("general.alignment", STRING, "32")]), "general.alignment", "'32'")
    refused(tmp_path, GGUF(keys=[("general.alignment", 7, 1)]), "general.alignment", "True")
    file = GGUF([("general.alignment", U32, 4096)], [Tensor("w", [2], 0, 4096)], bytes(4104), alignment=4096)
    assert read(tmp_path, file).tensors["w"].offset_bytes == 8192


def test_tensor_tables(tmp_path):
    def one(name="w", dims=(32,), type_id=0, offset=0, data=bytes(4096)) -> GGUF:
        return GGUF(tensors=[Tensor(name, dims, type_id, offset)], data=data)

    refused(tmp_path, one(dims=()), "'w'", "0 dimensions")
    refused(tmp_path, one(dims=(1,) * 5), "'w'", "5 dimensions")
    refused(tmp_path, one(dims=(4, 0)), "'w'", "[0, 4]")
    refused(tmp_path, one(dims=(31,), type_id=2), "'w'", "Q4_0", "multiple of 32")
    refused(tmp_path, one(dims=(128,), type_id=12), "'w'", "Q4_K", "multiple of 256")
    refused(tmp_path, one(type_id=99), "'w'", "99 (unknown)", "Q4_K")
    refused(tmp_path, one(type_id=4), "'w'", "Q4_2", "removed")
    refused(tmp_path, one(type_id=39), "'w'", "MXFP4", "not supported")
    refused(tmp_path, one(name=""), "tensor 0", "empty")
    refused(tmp_path, one(name="n" * 256), "256 bytes", "255")
    refused(tmp_path, one(offset=8), "'w'", "offset 8", "multiples of 32")
    refused(tmp_path, one(offset=4096), "'w'", "cut short")
    refused(tmp_path, one(offset=(1 << 64) - 32), "'w'", "cut short")
    refused(tmp_path, one(dims=(1 << 32, 1 << 32)), "'w'", str(1 << 66))
    refused(tmp_path, one(dims=((1 << 64) - 1,) * 4, type_id=24), "'w'")
    refused(tmp_path, one(dims=(1025,)), "'w'", "64 to 4164", "4160")
    refused(tmp_path, one(dims=(1041,)), "'w'", "4164 bytes", "4160")
    twice = GGUF(tensors=[Tensor("w", [8], 0, 0), Tensor("w", [8], 0, 32)], data=bytes(64))
    refused(tmp_path, twice, "'w' occurs twice")
    over = GGUF(tensors=[Tensor("b", [8], 0, 32), Tensor("a", [9], 0, 0)], data=bytes(64))
    refused(tmp_path, over, "'b'", "overlaps 'a'")
    same = GGUF(tensors=[Tensor("b", [8], 0, 0), Tensor("a", [8], 0, 0)], data=bytes(64))
    refused(tmp_path, same, "overlaps")


def test_unsupported_types_can_be_listed(tmp_path):
    file = GGUF(tensors=[Tensor("w", [32], 39, 0)], data=bytes(17))
    refused(tmp_path, file, "MXFP4")
    assert read(tmp_path, file, allow_unsupported=True).tensors["w"].type is GGMLType.MXFP4


def test_every_cut_and_every_flipped_byte_is_an_error_or_a_file(tmp_path):
    content = small_file().to_bytes()
    header = len(content) - len(small_file().data)
    path = write(tmp_path, content)
    for length in reversed([*range(header), *range(header, len(content), 19)]):
        os.truncate(path, length)
        with pytest.raises(ModelFormatError, match=r"model\.gguf"):
            GGUFFile.open(path)
    path = write(tmp_path, content)
    with open(path, "r+b", buffering=0) as handle:
        for place in range(header):
            os.pwrite(handle.fileno(), bytes([content[place] ^ 0xFF]), place)
            with contextlib.suppress(ModelFormatError):
                _read_everything(GGUFFile.open(path))
            os.pwrite(handle.fileno(), content[place : place + 1], place)


def _read_everything(opened: GGUFFile) -> None:
    for value in opened.metadata.values():
        if isinstance(value, Array):
            with contextlib.suppress(ModelFormatError):  # a string that is not UTF-8
                value.tolist()
    for info in opened.tensors.values():
        assert len(opened.data(info)) == info.n_bytes


def test_a_large_sparse_file_of_zeros_is_refused_fast_and_small(tmp_path):
    """Lengths and counts of zero all the way: the limits, not the file's end, must stop the reader."""
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string("k")
    path = write(tmp_path, head + struct.pack("<II", ARRAY, STRING))
    with open(path, "ab") as handle:
        handle.write(struct.pack("<Q", 1 << 28))
        handle.truncate(1 << 32)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    with pytest.raises(ModelFormatError, match="16777216 strings"):
        GGUFFile.open(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


# --- split models ----------------------------------------------------------------------------------


def part(number: int, count: int, total: int, tensors: list[Tensor], more: list | None = None) -> GGUF:
    keys = [("split.no", 2, number), ("split.count", 2, count), ("split.tensors.count", 5, total)]
    return GGUF(keys=[*(more or []), *keys], tensors=tensors, data=bytes(range(number, number + 32)))


def write_parts(folder: Path, parts: list[GGUF]) -> list[Path]:
    names = [f"m-{i + 1:05d}-of-{len(parts):05d}.gguf" for i in range(len(parts))]
    return [write(folder, file.to_bytes(), name) for file, name in zip(parts, names, strict=True)]


def three_parts() -> list[GGUF]:
    parts = [part(i, 3, 3, [Tensor(f"t{i}", [8], 0, 0)]) for i in range(3)]
    parts[0].keys.insert(0, ("general.architecture", STRING, "llama"))
    return parts


def test_any_part_opens_all(tmp_path):
    paths = write_parts(tmp_path, three_parts())
    for path in paths:
        with GGUFFile.open(path) as opened:
            assert list(opened.tensors) == ["t0", "t1", "t2"]
            assert opened.metadata["general.architecture"] == "llama"
            assert opened.paths == tuple(paths)
            assert opened.size_bytes == sum(path.stat().st_size for path in paths)
            for i in range(3):
                assert opened.data(f"t{i}").tolist() == list(range(i, i + 32))
                opened.release(f"t{i}")


def test_wrong_splits(tmp_path):
    paths = write_parts(tmp_path, three_parts())
    paths[1].unlink()
    with pytest.raises(ModelNotFoundError, match=r"m-00002-of-00003\.gguf"):
        GGUFFile.open(paths[0])

    def fails(change, match: str) -> None:
        parts = three_parts()
        change(parts)
        with pytest.raises(ModelFormatError, match=match):
            GGUFFile.open(write_parts(tmp_path, parts)[0])

    def set_key(parts, number, index, value):
        key, kind, _ = parts[number].keys[index]
        parts[number].keys[index] = (key, kind, value)

    fails(lambda parts: set_key(parts, 1, 0, 2), "split.no is 2, expected 1")
    fails(lambda parts: set_key(parts, 2, 1, 4), "split.count is 4, expected 3|says 00003 parts")
    fails(lambda parts: set_key(parts, 0, 3, 9), "split.tensors.count is 9")
    fails(lambda parts: parts[2].tensors.__setitem__(0, Tensor("t0", [8], 0, 0)), "'t0' is in two parts")
    fails(lambda parts: parts[2].keys.clear(), "split.no")


def test_parts_under_other_names(tmp_path):
    with pytest.raises(ModelFormatError, match="part 1 of 3"):
        GGUFFile.open(write(tmp_path, three_parts()[0].to_bytes()))
    with pytest.raises(ModelFormatError, match="says 00004 parts"):
        GGUFFile.open(write(tmp_path, three_parts()[0].to_bytes(), "m-00001-of-00004.gguf"))
    huge = part(0, 60000, 1, [Tensor("t", [8], 0, 0)])
    with pytest.raises(ModelFormatError, match="60000 parts"):
        GGUFFile.open(write(tmp_path, huge.to_bytes(), "m-00001-of-60000.gguf"))


# --- against the gguf package ----------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.model
@pytest.mark.parametrize("fixture", ["smollm2_path", "gemma3_path"])
def test_real_models_read_as_the_gguf_package_reads_them(fixture, request):
    gguf = pytest.importorskip("gguf")
    path = request.getfixturevalue(fixture)
    theirs = gguf.GGUFReader(path)
    with GGUFFile.open(path) as ours:
        fields = {key: value for key, value in theirs.fields.items() if not key.startswith("GGUF.")}
        assert list(ours.metadata) == list(fields)
        for key, value in fields.items():
            mine = ours.metadata[key]
            assert (mine.tolist() if isinstance(mine, Array) else mine) == value.contents(), key
            assert ours.metadata_types[key] == int(value.types[0])
        assert list(ours.tensors) == [tensor.name for tensor in theirs.tensors]
        for tensor in theirs.tensors:
            info = ours.tensors[tensor.name]
            assert info.type.name == tensor.tensor_type.name
            assert info.shape == tuple(int(n) for n in reversed(tensor.shape))
            assert (info.offset_bytes, info.n_bytes) == (tensor.data_offset, tensor.n_bytes)
            assert np.array_equal(ours.data(info), tensor.data.view(np.uint8).reshape(-1)), tensor.name
            ours.release(info)


def test_types_agree_with_the_gguf_package():
    constants = pytest.importorskip("gguf.constants")
    for kind in GGMLType:
        theirs = constants.GGMLQuantizationType[kind.name]
        assert kind.type_id == theirs.value
        assert (kind.block_size, kind.block_bytes) == constants.GGML_QUANT_SIZES[theirs]


def test_a_file_of_the_gguf_package_reads_back(tmp_path):
    gguf = pytest.importorskip("gguf")
    path = tmp_path / "w.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_uint32("a.u32", 7)
    writer.add_float64("a.f64", 0.1)
    writer.add_array("a.strings", ["x", "yy", "ü"])
    writer.add_array("a.floats", [0.5, 1.5])
    weight = np.arange(64, dtype=np.float32).reshape(2, 32)
    writer.add_tensor("w", weight)
    writer.add_tensor("h", weight.astype(np.float16))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with GGUFFile.open(path) as opened:
        assert opened.metadata["a.u32"] == 7
        assert opened.metadata["a.f64"] == 0.1
        assert opened.metadata["a.strings"] == ["x", "yy", "ü"]
        assert opened.metadata["a.floats"] == [0.5, 1.5]
        assert np.array_equal(opened.data("w").view(np.float32).reshape(opened.tensors["w"].shape), weight)
        assert opened.tensors["h"].type is GGMLType.F16


def test_the_header_digest_is_of_the_header_alone(tmp_path):
    file = small_file()
    digest = read(tmp_path, file).header_digest()
    file.data = bytes(byte ^ 1 for byte in file.data)
    assert read(tmp_path, file).header_digest() == digest
    file.keys = [*file.keys, ("more", U32, 1)]
    assert read(tmp_path, file).header_digest() != digest
