"""Run as a program: SHA-256 of what GGUF files compute on the target that STOKER_TARGET names, as JSON.

    python native_digest.py KV_TYPE THREADS TOKENS FILE [FILE ..]

The text is TOKENS fixed ids: all but the last four prefilled, in two chunks, the last four one by one.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import sys
from pathlib import Path

import numpy as np

from stoker import _native
from stoker.kernels.program import BLOCK_TOKENS, Batch
from stoker.models.load import load_native
from stoker.weights.gguf import GGUFFile


def digest(path: Path, kv_type: str, threads: int, tokens: int) -> str:
    """Of the logits and hidden states of the last rows of each step, as little-endian float32."""
    with GGUFFile.open(path) as file:
        interpreter = load_native(
            file,
            threads=threads,
            kv_bytes=1 << 28,
            batch_tokens=tokens,
            kv_type=kv_type,  # type: ignore[arg-type]
        )
    ids = np.arange(1, tokens + 1, dtype=np.int64) * 40503 % interpreter.vocabulary
    cuts = [0, (tokens - 4) // 3, *range(tokens - 4, tokens + 1)]
    total = hashlib.sha256()
    for begin, end in itertools.pairwise(cuts):
        count = end - begin
        rows = np.arange(max(0, count - 3), count, dtype=np.int32)
        batch = Batch(
            token_ids=ids[begin:end].astype(np.int32),
            positions=np.arange(begin, end, dtype=np.int32),
            query_start=np.array([0, count], np.int32),
            kv_tokens=np.array([end], np.int32),
            block_tables=np.arange(-(-end // BLOCK_TOKENS), dtype=np.int32)[None],
            logit_rows=rows,
            hidden_rows=rows,
        )
        for numbers in (interpreter.run(batch), interpreter.hidden_states):
            if not np.isfinite(numbers).all():
                raise SystemExit(f"{path.name}: numbers that are not finite")
            total.update(numbers.astype("<f4").tobytes())
    return total.hexdigest()


def main() -> None:
    """Print the digests of the arguments' files."""
    kv_type, threads, tokens, *files = sys.argv[1:]
    found = {Path(name).name: digest(Path(name), kv_type, int(threads), int(tokens)) for name in files}
    print(json.dumps({"target": _native.target, "digests": found}))


if __name__ == "__main__":
    main()
