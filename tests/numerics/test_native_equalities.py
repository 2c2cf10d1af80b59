"""E1 on small models: the same bits however a sequence is computed, for every architecture and layout."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("gguf", reason="the gguf package writes the small models of these tests")
pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.numerics.native_models import (
    Story,
    TinyModel,
    assert_informative,
    assert_same_bits,
    chunked_logits,
    in_chunks,
    open_native,
    tiny_config,
)
from tests.numerics.reference_models import blocks_for, make_batch

from stoker.kernels.native import KvType, NativeInterpreter
from stoker.models.config import SlidingWindow

# Between them: every packed layout, all pairings and scalings of rope, windows, softcaps, biases, head norms,
# GQA groups 1, 2, 3, 4 and 6, heads of 16 to 256 numbers, widths and vocabularies that fill no panel. (A
# vocabulary under a final softcap is a multiple of 16: lowering refuses others.)
MODELS = (
    TinyModel("llama-f32", tiny_config("llama", optional_tensors=frozenset({"output.weight"}))),
    TinyModel(
        "llama-q4_1",
        tiny_config("llama", heads=9, kv_heads=3, head_size=64, width=96, rope_base=1e5),
        "Q4_1",
    ),
    TinyModel(
        "llama-window-q8_0",
        tiny_config("llama", heads=3, kv_heads=3, head_size=96, rotary=32, window=SlidingWindow(100)),
        "Q8_0",
    ),
    TinyModel(
        "llama-biases-q5_1",
        tiny_config(
            "llama",
            rope_scale=0.25,
            optional_tensors=frozenset(
                f"blk.{i}.{name}.bias"
                for i in range(2)
                for name in ("attn_q", "attn_output", "ffn_gate", "ffn_down")
            ),
        ),
        "Q5_1",
    ),
    TinyModel(
        "llama-factors-q4_k",
        tiny_config(
            "llama", width=256, feed_forward=512, head_size=32, heads=8,
            optional_tensors=frozenset({"rope_freqs.weight"}),
        ),
        "Q4_K", "Q6_K",
    ),
    TinyModel("qwen2-q5_0", tiny_config("qwen2", heads=6, kv_heads=1, head_size=32), "Q5_0"),
    TinyModel("qwen3-bf16", tiny_config("qwen3", heads=4, kv_heads=1, head_size=128, width=80), "BF16"),
    TinyModel(
        "qwen3-q2_k",
        tiny_config("qwen3", heads=16, kv_heads=4, width=256, feed_forward=256, head_size=48),
        "Q2_K", "Q3_K",
    ),
    TinyModel(
        "gemma3-q5_k",
        tiny_config(
            "gemma3", layers=3, vocabulary=144, width=256, feed_forward=256, kv_heads=1, head_size=256,
            window=SlidingWindow(70, 3), attention_softcap=20.0, final_softcap=10.0, rope_base=1e6,
        ),
        "Q5_K", "Q8_0",
    ),
    TinyModel(
        "gemma3-q4_0",
        tiny_config("gemma3", layers=3, head_size=32, window=SlidingWindow(513, 2)),
        "Q4_0", "F16",
    ),
)  # fmt: skip
BY_NAME = {model.name: model for model in MODELS}
KV_TYPES: tuple[KvType, ...] = ("int8", "f16")
LONG = 1045  # crosses chunks of 64, splits of 512, blocks of 16, and ends inside each

Opened = Callable[..., NativeInterpreter]


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory) -> Opened:
    """name, kv_type, threads -> interpreter; each is made once, its blocks hold what earlier tests left."""
    folder = tmp_path_factory.mktemp("tiny")

    @cache
    def path(name: str) -> Path:
        return BY_NAME[name].write(folder)

    @cache
    def make(name: str, kv_type: KvType, threads: int = 1) -> NativeInterpreter:
        return open_native(path(name), kv_type, threads=threads)

    return make


@pytest.fixture(scope="module")
def expected(opened: Opened) -> Callable[[str, KvType], np.ndarray]:
    """Logits [LONG, vocabulary] of ids(name), prefilled whole, alone, on one thread."""

    @cache
    def compute(name: str, kv_type: KvType) -> np.ndarray:
        logits = chunked_logits(opened(name, kv_type), ids(name), [LONG])
        assert_informative(logits)
        return logits

    return compute


def ids(name: str, number: int = 0, count: int = LONG) -> list[int]:
    """Random token ids: sequence `number` of a model's tests."""
    generator = np.random.default_rng([number, *name.encode()])
    return generator.integers(0, BY_NAME[name].config.vocabulary, count).tolist()


each_model = pytest.mark.parametrize("name", list(BY_NAME))
each_kv_type = pytest.mark.parametrize("kv_type", KV_TYPES)


@each_model
@each_kv_type
@pytest.mark.parametrize("size", [16, 17, 512])
def test_chunks_of_the_prompt(name: str, kv_type: KvType, size: int, opened: Opened, expected: Any) -> None:
    logits = chunked_logits(opened(name, kv_type), ids(name), in_chunks(LONG, size))
    assert_same_bits(logits, expected(name, kv_type))


@each_model
@each_kv_type
def test_one_token_at_a_time(name: str, kv_type: KvType, opened: Opened, expected: Any) -> None:
    """Decoding past every boundary: blocks of 16, chunks of 64, splits of 512."""
    logits = chunked_logits(opened(name, kv_type), ids(name), [1] * LONG)
    assert_same_bits(logits, expected(name, kv_type))


@each_model
@each_kv_type
def test_threads(name: str, kv_type: KvType, opened: Opened, expected: Any) -> None:
    for threads in (2, 3):
        interpreter = opened(name, kv_type, threads)
        # Few rows and a long context: each split is a unit of work of its own, joined afterwards.
        chunks = [500, 11, 1, 1, 510, 1, 1, 1, 19]
        assert sum(chunks) == LONG
        assert_same_bits(chunked_logits(interpreter, ids(name), chunks), expected(name, kv_type))


@each_model
@each_kv_type
@pytest.mark.parametrize("others", [2, 7, 33])
def test_others_in_the_batch(name: str, kv_type: KvType, others: int, opened: Opened, expected: Any) -> None:
    """Others of random lengths begin, go on and end while it is prefilled and decoded among them."""
    interpreter = opened(name, kv_type, 1 + others % 2)
    generator = np.random.default_rng(others)
    table = generator.permutation(interpreter.num_blocks).tolist()
    subject = Story(ids(name), [table.pop() for _ in range(blocks_for(LONG))])
    crowd = [
        Story(ids(name, number, length), [table.pop() for _ in range(blocks_for(length))])
        for number, length in enumerate(generator.integers(1, 200, others).tolist(), start=1)
    ]
    wanted = [37, 1, 1, 26, 1, 400, 45, 1, 1, 1, 300, 1, 209, 1, 1, *[1] * 19]
    assert sum(wanted) == LONG
    found = []
    for count in wanted:
        entries = []
        for other in crowd:
            step = min(int(generator.choice([0, 1, 1, 5, 40])), len(other.token_ids) - other.done)
            if step:
                entries.append(other.next(step))
        place = int(generator.integers(0, len(entries) + 1))
        first = sum(len(entry[0]) for entry in entries[:place])
        entries.insert(place, subject.next(count))
        # Some of the others' logits are wanted as well, so that rows after SelectRows are shared too.
        total = sum(len(entry[0]) for entry in entries)
        rows = sorted({*range(first, first + count), *generator.integers(0, total, 3).tolist()})
        logits = interpreter.run(make_batch(entries, logit_rows=rows))
        found.append(logits[[rows.index(row) for row in range(first, first + count)]])
    assert_same_bits(np.concatenate(found), expected(name, kv_type))


@each_model
@each_kv_type
def test_where_blocks_lie(name: str, kv_type: KvType, opened: Opened, expected: Any) -> None:
    interpreter = opened(name, kv_type)
    permuted = np.random.default_rng(5).permutation(interpreter.num_blocks)[: blocks_for(LONG)]
    for blocks in (permuted.tolist(), list(reversed(range(blocks_for(LONG))))):
        logits = chunked_logits(interpreter, ids(name), [700, 1, 1, LONG - 702], blocks)
        assert_same_bits(logits, expected(name, kv_type))


@each_model
@each_kv_type
def test_a_copied_block_goes_on_alike(name: str, kv_type: KvType, opened: Opened, expected: Any) -> None:
    """A fork in the middle of a block, while the original goes elsewhere in the same step."""
    interpreter = opened(name, kv_type)
    common, blocks = 600, range(blocks_for(LONG))
    story = Story(ids(name), blocks)
    interpreter.run(make_batch([story.next(common)], logit_rows=[common - 1]))
    fork_blocks = [*blocks[: common // 16], *range(100, 100 + len(blocks) - common // 16)]
    interpreter.copy_block(common // 16, 100)
    fork = Story(ids(name), fork_blocks, common)
    other = Story([*ids(name)[:common], *ids(name, 1)], blocks, common)
    rest = LONG - common
    batch = make_batch([other.next(rest), fork.next(rest)], logit_rows=range(rest, 2 * rest))
    logits = interpreter.run(batch)
    assert_same_bits(logits, expected(name, kv_type)[common:])


@each_kv_type
@pytest.mark.parametrize("length", [1, 15, 16, 17, 63, 64, 65, 511, 512, 513, 1023, 1024, 1025])
def test_one_more_token_at_a_boundary(kv_type: KvType, length: int, opened: Opened, expected: Any) -> None:
    """Contexts that end at a boundary, or one off: prefilled, then one decoded alone, then in a crowd."""
    for name in ("llama-q4_1", "gemma3-q5_k"):
        interpreter = opened(name, kv_type, 2)
        want = expected(name, kv_type)[length - 1 : length + 1]
        prefilled = chunked_logits(interpreter, ids(name)[: length + 1], [length, 1])
        assert_same_bits(prefilled[-2:], want)
        # 20 copies at once, in blocks of their own, each reading its own memory.
        blocks = blocks_for(length + 1)
        copies = [Story(ids(name), range(i * blocks, (i + 1) * blocks)) for i in range(20)]
        if length > 50:  # computing each would take long, and blocks are copied to the bit
            interpreter.run(make_batch([copies[0].next(length)], logit_rows=[length - 1]))
            for copy in copies[1:]:
                copy.done = length
                for source, destination in zip(copies[0].blocks, copy.blocks, strict=True):
                    interpreter.copy_block(source, destination)
        else:
            interpreter.run(make_batch([copy.next(length) for copy in copies], logit_rows=[0]))
        together = interpreter.run(make_batch([copy.next(1) for copy in copies]))
        for row in together:
            assert_same_bits(row[None], want[1:])


def test_the_choice_of_outliers_depends_on_the_weights_alone(tmp_path: Path) -> None:
    """Not on how large a step may be: an engine with small steps has the bits of one with large steps."""
    for model in (BY_NAME["llama-q4_1"], BY_NAME["qwen2-q5_0"], BY_NAME["gemma3-q4_0"]):
        path = model.write(tmp_path)
        text = ids(model.name)[:30]
        large, small = open_native(path, batch_tokens=512), open_native(path, batch_tokens=5)
        assert_same_bits(chunked_logits(small, text, [5] * 6), chunked_logits(large, text, [30]))
