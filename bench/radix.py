"""What the prefix cache costs: lookups, opening and closing, insertion, eviction, and the disk tier.

Usage: python -m bench.radix [--nodes N] [--tokens N] [--block-bytes N] [--folder DIR] [--json]

The tree is filled with texts that leave one long text at random places, until it has so many nodes; then the
long text is looked up. Medians, in microseconds. The disk tier is written and read in a temporary folder,
below --folder if given: with the operating system's memory in between, as in use.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from stoker.cache import BlockPool, RadixTree
from stoker.cache.disk import DiskTier
from stoker.kernels.program import BLOCK_TOKENS, Int32

ROUNDS = 300
VOCABULARY = 49152  # of SmolLM2
CONTINUATION_TOKENS = 600  # of each text after it left the long one


def main() -> None:
    """Print a line for each measurement."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--nodes", type=int, default=10_000)
    parser.add_argument("--tokens", type=int, default=4_000, help="of the text that is looked up")
    parser.add_argument("--block-bytes", type=int, default=195_840, help="SmolLM2-135M in int8")
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measure_tree(options.nodes, options.tokens) | measure_disk(options.block_bytes, options.folder)
    if options.json:
        print(json.dumps(found, indent=2))
        return
    for name, value in found.items():
        print(f"{name:36} {value:10.2f} us")


def measure_tree(nodes: int, tokens: int) -> dict[str, float]:
    """Microseconds of each thing the scheduler does with the tree."""
    draw = np.random.default_rng(0)
    pool = BlockPool(nodes + 2 * (tokens + CONTINUATION_TOKENS) // BLOCK_TOKENS)
    tree = RadixTree(pool)
    text = draw.integers(0, VOCABULARY, tokens).astype(np.int32)
    _remember(tree, text)
    while len(tree) < nodes:
        more = draw.integers(0, VOCABULARY, CONTINUATION_TOKENS).astype(np.int32)
        _remember(tree, np.concatenate([text[: draw.integers(0, tokens)], more]))
    match = tree.match(b"", text)
    open_us, close_us = [], []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        table = tree.open(match)
        opened = time.perf_counter()
        table.close()
        open_us.append((opened - start) * 1e6)
        close_us.append((time.perf_counter() - opened) * 1e6)
    found = {
        f"match, {tokens} tokens, {len(tree)} nodes": _median_us(lambda: tree.match(b"", text)),
        "open": statistics.median(open_us),
        "close": statistics.median(close_us),
        "insert, per token of a decode": _decode_us(tree),
        "hottest 8": _median_us(lambda: tree.hottest(8)),
    }
    start = time.perf_counter()
    evicted = tree.evict(nodes // 2)
    found["evict, per block"] = (time.perf_counter() - start) / evicted * 1e6
    return found


def measure_disk(block_bytes: int, folder: Path | None) -> dict[str, float]:
    """Microseconds to write and to read one block."""
    draw = np.random.default_rng(1)
    payloads = [draw.integers(0, 256, block_bytes, dtype=np.uint8) for _ in range(100)]
    names = [draw.bytes(32) for _ in payloads]
    with tempfile.TemporaryDirectory(dir=folder) as place:
        tier = DiskTier(Path(place), identity=b"", block_bytes=block_bytes, cap_bytes=200 * block_bytes)
        put, get = [], []
        for name, payload in zip(names, payloads, strict=True):
            start = time.perf_counter()
            tier.put(name, payload)
            put.append((time.perf_counter() - start) * 1e6)
        for name in names:
            start = time.perf_counter()
            tier.get(name)
            get.append((time.perf_counter() - start) * 1e6)
        tier.close()
    return {f"disk put, {block_bytes} bytes": statistics.median(put), "disk get": statistics.median(get)}


def _remember(tree: RadixTree, ids: Int32) -> None:
    match = tree.match(b"", ids)
    with tree.open(match) as table:
        table.extend(min(match.tokens, len(ids) - 1), len(ids))
        tree.insert(b"", ids, table, len(ids))


def _decode_us(tree: RadixTree) -> float:
    """A sequence that grows token by token, each offered to the tree."""
    ids = np.arange(2048, dtype=np.int32)
    with tree.pool.open_table() as table:
        table.extend(0, len(ids))
        start = time.perf_counter()
        for end in range(1, len(ids) + 1):
            tree.insert(b"decode", ids, table, end)
        return (time.perf_counter() - start) / len(ids) * 1e6


def _median_us(action: Callable[[], object]) -> float:
    spent = []
    for _ in range(ROUNDS):
        start = time.perf_counter()
        action()
        spent.append((time.perf_counter() - start) * 1e6)
    return statistics.median(spent)


if __name__ == "__main__":
    main()
