"""How far int8 arithmetic is from float32: perplexity and top-1 agreement against an oracle's likelihoods.

    python -m bench.accuracy ORACLE MODEL [--kv int8|f16] [--outliers N] [--threads N]

ORACLE: a file of JSON lines, each with `ids` (token ids), `nll` (negative log-likelihoods of ids 2 to n from
a float32 run of the same GGUF file) and `argmax` (the likeliest next token at every position). MODEL: a GGUF
file. tests/integration/test_accuracy.py holds a few of such texts to bounds.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from stoker import _native
from stoker.kernels.native import OUTLIERS, KvType, NativeInterpreter, blocks_in
from stoker.kernels.program import BLOCK_TOKENS, Batch, Float32
from stoker.models.load import load_weights
from stoker.models.registry import program_from_gguf
from stoker.weights.gguf import GGUFFile

# Logits of a step are rows of up to 262 144 numbers: 64 rows are 67 MB.
STEP_TOKENS = 64


@dataclass(frozen=True)
class Agreement:
    """Totals over texts. likelihoods are sums over `tokens`; top-1 is counted at every position."""

    tokens: int
    positions: int
    likelihood: float
    reference_likelihood: float
    same_top: int

    @property
    def perplexity(self) -> float:
        """Of the model as computed here."""
        return float(np.exp(self.likelihood / self.tokens))

    @property
    def reference_perplexity(self) -> float:
        """Of the oracle."""
        return float(np.exp(self.reference_likelihood / self.tokens))

    @property
    def top1(self) -> float:
        """Share of positions with the oracle's likeliest token."""
        return self.same_top / self.positions


def load(path: Path, *, kv_type: KvType, outliers: int, threads: int) -> NativeInterpreter:
    """The model of a GGUF file with KV room for one long text."""
    with GGUFFile.open(path) as file:
        program = program_from_gguf(file.metadata, file.tensors)
        pool = _native.ThreadPool(threads)
        matrices, vectors = load_weights(file, program, pool)
    return NativeInterpreter(
        program,
        matrices,
        vectors,
        pool,
        kv_type=kv_type,
        num_blocks=blocks_in(1 << 30, program, kv_type),
        batch_tokens=STEP_TOKENS,
        outliers=outliers,
    )


def logits_in_steps(interpreter: NativeInterpreter, ids: Sequence[int]) -> Iterable[tuple[int, Float32]]:
    """(first position, logits of the positions of a step), step by step."""
    blocks = np.arange(-(-len(ids) // BLOCK_TOKENS), dtype=np.int32)[None]
    for start in range(0, len(ids), STEP_TOKENS):
        end = min(start + STEP_TOKENS, len(ids))
        yield (
            start,
            interpreter.run(
                Batch(
                    token_ids=np.array(ids[start:end], np.int32),
                    positions=np.arange(start, end, dtype=np.int32),
                    query_start=np.array([0, end - start], np.int32),
                    kv_tokens=np.array([end], np.int32),
                    block_tables=blocks,
                    logit_rows=np.arange(end - start, dtype=np.int32),
                )
            ),
        )


def compare(interpreter: NativeInterpreter, texts: Iterable[Mapping[str, Any]]) -> Agreement:
    """Run every text and add up; see the module's text for what a text holds."""
    tokens = positions = same = 0
    likelihood = reference = 0.0
    for text in texts:
        ids = text["ids"]
        expected = np.asarray(text["argmax"])
        for start, logits in logits_in_steps(interpreter, ids):
            same += int((logits.argmax(axis=1) == expected[start : start + len(logits)]).sum())
            targets = np.asarray(ids[start + 1 : start + 1 + len(logits)])
            rows = logits[: len(targets)].astype(np.float64)
            peak = rows.max(axis=1)
            total = peak + np.log(np.exp(rows - peak[:, None]).sum(axis=1))
            likelihood += float((total - rows[np.arange(len(targets)), targets]).sum())
        reference += float(np.sum(text["nll"]))
        tokens += len(ids) - 1
        positions += len(ids)
    return Agreement(tokens, positions, likelihood, reference, same)


def main() -> None:
    """Print one line of totals."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("oracle", type=Path)
    parser.add_argument("model", type=Path)
    parser.add_argument("--kv", choices=("int8", "f16"), default="int8")
    parser.add_argument("--outliers", type=int, default=OUTLIERS, help="columns per norm kept in float32")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    interpreter = load(given.model, kv_type=given.kv, outliers=given.outliers, threads=given.threads)
    with given.oracle.open(encoding="utf-8") as lines:
        found = compare(interpreter, (json.loads(line) for line in lines if line.strip()))
    difference = found.perplexity - found.reference_perplexity
    print(
        f"tokens {found.tokens}  perplexity {found.perplexity:.5f}  reference "
        f"{found.reference_perplexity:.5f}  difference {difference:+.5f}  top-1 {100 * found.top1:.3f} %"
    )


if __name__ == "__main__":
    main()
