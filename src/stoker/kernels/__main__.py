"""`python -m stoker.kernels`: do all instruction sets of this CPU compute the same bits?

Runs a small random model on each target in a process of its own and compares digests of its logits. Exit
status 1 if they differ. Takes some seconds, needs no model and no network.
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from collections.abc import Mapping
from types import MappingProxyType

import numpy as np
import numpy.typing as npt

from stoker import _native
from stoker.kernels.native import KvType, NativeInterpreter
from stoker.kernels.program import (
    BLOCK_TOKENS,
    Add,
    Attention,
    Batch,
    Embed,
    Float32,
    GatedActivation,
    KvLayer,
    Linear,
    Op,
    Program,
    RmsNorm,
    Rope,
)

WIDTH, HIDDEN, VOCABULARY = 64, 96, 131
HEADS, KV_HEADS, HEAD_SIZE = 4, 2, 32
TOKENS = 77  # a chunk of attention and a part, no multiple of anything
# name: (ggml type, rows, columns); Q4_1, Q4_0, Q5_1, Q5_0, Q8_0 and F32 between them
MATRICES: Mapping[str, tuple[int, int, int]] = MappingProxyType(
    {
        "table": (0, VOCABULARY, WIDTH),
        "q": (3, HEADS * HEAD_SIZE, WIDTH),
        "k": (2, KV_HEADS * HEAD_SIZE, WIDTH),
        "v": (7, KV_HEADS * HEAD_SIZE, WIDTH),
        "o": (6, WIDTH, HEADS * HEAD_SIZE),
        "gate": (3, HIDDEN, WIDTH),
        "up": (8, HIDDEN, WIDTH),
        "down": (8, WIDTH, HIDDEN),
    }
)
# ggml type: (columns of a block, its bytes, how many float16 scales it begins with)
BLOCKS: Mapping[int, tuple[int, int, int]] = MappingProxyType(
    {0: (1, 4, 0), 2: (32, 18, 1), 3: (32, 20, 2), 6: (32, 22, 1), 7: (32, 24, 2), 8: (32, 34, 1)}
)


def noise(count: int, key: int) -> npt.NDArray[np.uint64]:
    """[count] numbers below 2^32, the same for a key on every machine (SplitMix64, Steele et al. 2014)."""
    x = (np.arange(1, count + 1, dtype=np.uint64) + np.uint64(key << 32)) * np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: npt.NDArray[np.uint64] = x >> np.uint64(32)
    return mixed


def small_program() -> Program:
    """One Llama layer with the table as output."""
    ops: tuple[Op, ...] = (
        Embed("x", "table"),
        RmsNorm("n", "x", "norm", 1e-5),
        Linear("q", "n", "q"),
        Rope("qr", "q", HEAD_SIZE, HEAD_SIZE, 10000.0, "interleaved"),
        Linear("k", "n", "k"),
        Rope("kr", "k", HEAD_SIZE, HEAD_SIZE, 10000.0, "interleaved"),
        Linear("v", "n", "v"),
        Attention("a", "qr", "kr", "v", 0, HEADS, KV_HEADS, HEAD_SIZE, HEAD_SIZE**-0.5),
        Linear("o", "a", "o"),
        Add("y", "x", "o"),
        RmsNorm("m", "y", "norm", 1e-5),
        Linear("gate", "m", "gate"),
        Linear("up", "m", "up"),
        GatedActivation("hidden", "gate", "up", "silu"),
        Linear("down", "hidden", "down"),
        Add("z", "y", "down"),
        RmsNorm("last", "z", "norm", 1e-5),
        Linear("logits", "last", "table"),
    )
    return Program(ops, (KvLayer(KV_HEADS, HEAD_SIZE),), VOCABULARY, 128, "self-check")


def random_matrix(kind: int, rows: int, columns: int, key: int) -> _native.PackedMatrix:
    """Any quants, and scales that make weights of about 1 / 8; numbers up to 2 for F32."""
    block, size, scales = BLOCKS[kind]
    if kind == 0:
        numbers = noise(rows * columns, key).astype(np.int64) % 256 - 128
        return _native.PackedMatrix.pack(0, (numbers / 64).astype(np.float32).view(np.uint8), rows, columns)
    blocks = rows * columns // block
    raw = (noise(blocks * size, key) % np.uint64(256)).astype(np.uint8).reshape(blocks, size)
    low = 0x1000 if kind == 8 else 0x1800  # float16 of 2^-11 and 2^-9: Q8_0's quants are larger
    codes = low + noise(blocks * scales, key + 100).astype(np.int64) % 0x400
    raw[:, : 2 * scales] = codes.astype("<u2").view(np.uint8).reshape(blocks, 2 * scales)
    return _native.PackedMatrix.pack(kind, raw.reshape(-1), rows, columns)


def digest() -> str:
    """SHA-256 of the logits of a fixed text, prefilled and decoded, with both KV types."""
    matrices = {name: random_matrix(*shape, key) for key, (name, shape) in enumerate(MATRICES.items())}
    norm: Float32 = (0.5 + noise(WIDTH, 99).astype(np.float64) / 2**32).astype(np.float32)
    norm[5] = 20  # a channel that is kept out of the int8 groups
    total = hashlib.sha256()
    kv_types: tuple[KvType, ...] = ("int8", "f16")
    for kv_type in kv_types:
        interpreter = NativeInterpreter(
            small_program(),
            matrices,
            {"norm": norm},
            _native.ThreadPool(1),
            kv_type=kv_type,
            num_blocks=8,
            batch_tokens=TOKENS,
        )
        for begin, end in ((0, TOKENS - 2), (TOKENS - 2, TOKENS - 1), (TOKENS - 1, TOKENS)):
            logits = interpreter.run(_step(begin, end))
            if not np.isfinite(logits).all():
                raise SystemExit("logits that are not finite")
            total.update(logits.tobytes())
    return total.hexdigest()


def _step(begin: int, end: int) -> Batch:
    positions = np.arange(begin, end, dtype=np.int32)
    return Batch(
        token_ids=positions * 29 % np.int32(VOCABULARY),
        positions=positions,
        query_start=np.array([0, end - begin], np.int32),
        kv_tokens=np.array([end], np.int32),
        block_tables=np.arange(7, 7 - -(-end // BLOCK_TOKENS), -1, dtype=np.int32)[None],
        logit_rows=np.arange(end - begin, dtype=np.int32),
    )


def main() -> int:
    """Print this CPU's targets and their digests; 1 if any two differ. With `digest`: this target's alone."""
    if sys.argv[1:] == ["digest"]:
        print(digest())
        return 0
    if sys.argv[1:]:
        print("usage: python -m stoker.kernels", file=sys.stderr)
        return 2
    print(f"in use: {_native.target}; this CPU and build offer: {_native.available_targets}")
    found = {}
    for target in _native.available_targets.split(", "):
        done = subprocess.run(
            [sys.executable, "-m", "stoker.kernels", "digest"],
            env={**os.environ, "STOKER_TARGET": target},
            capture_output=True,
            text=True,
        )
        found[target] = done.stdout.strip() if done.returncode == 0 else f"failed: {done.stderr.strip()}"
        print(f"{target:8} {found[target]}")
    same = len(set(found.values())) == 1 and not next(iter(found.values())).startswith("failed")
    print("the same bits on all of them" if same else "THEY DIFFER: please report this")
    return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
