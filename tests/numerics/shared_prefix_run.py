"""Sequences that hold the same blocks, computed in one step or each in a step of its own.

Run as a program it prints a SHA-256 of the logits, on the target that STOKER_TARGET names:

    python -m tests.numerics.shared_prefix_run together|apart KV_TYPE FILE [FILE ..]
"""

from __future__ import annotations

import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.numerics.native_models import open_native
from tests.numerics.reference_models import blocks_for, make_batch

from stoker.kernels.native import NativeInterpreter

BATCH_TOKENS = 1100


@dataclass(frozen=True)
class Branch:
    """A sequence: the first `shared` tokens and whole blocks of an earlier one, then `own` tokens.

    The last `query` tokens are what the compared step computes; 0 keeps the sequence out of it.
    """

    parent: int | None
    shared: int
    own: int
    query: int = 1


def fan(prefix: int, owns: Sequence[int], query: int = 1) -> list[Branch]:
    """One prefix, and sequences of so many tokens of their own behind it."""
    return [Branch(None, 0, max(1, prefix), query=0), *[Branch(0, prefix, own, query) for own in owns]]


# Parting inside a block, a chunk and a split, at a split's end and in the next; two that share more with each
# other; one alone; one with a longer query behind the prefix, one that begins.
TREE = (
    Branch(None, 0, 1040, query=0),
    Branch(0, 40, 30), Branch(0, 100, 3), Branch(0, 100, 600), Branch(0, 512, 1), Branch(0, 512, 70, query=3),
    Branch(0, 530, 5), Branch(0, 560, 540), Branch(7, 1090, 7, query=2), Branch(7, 1050, 64),
    Branch(0, 1039, 1), Branch(None, 0, 333), Branch(0, 700, 30, query=30), Branch(None, 0, 50, query=50),
    Branch(0, 1030, 9),
)  # fmt: skip


def run_branches(interpreter: NativeInterpreter, branches: Sequence[Branch], *, together: bool) -> np.ndarray:
    """Logits [sum of queries, vocabulary]: of one step, or of one step each. Blocks lie in any order."""
    free = np.random.default_rng(int(together)).permutation(interpreter.num_blocks).tolist()
    texts: list[list[int]] = []
    blocks: list[list[int]] = []
    entries = []
    for number, branch in enumerate(branches):
        own = np.random.default_rng([number, branch.own]).integers(0, interpreter.vocabulary, branch.own)
        shared = [] if branch.parent is None else texts[branch.parent][: branch.shared]
        texts.append([*shared, *own.tolist()])
        whole = len(shared) // 16
        held = [] if branch.parent is None else blocks[branch.parent][:whole]
        blocks.append([*held, *[free.pop() for _ in range(blocks_for(len(texts[-1])) - whole)]])
        if branch.parent is not None and len(shared) % 16:
            interpreter.copy_block(blocks[branch.parent][whole], blocks[-1][whole])
        text, past = texts[-1], len(texts[-1]) - branch.query
        if past > len(shared):
            held = blocks[-1][: blocks_for(past)]
            interpreter.run(make_batch([(text[len(shared) : past], len(shared), held)], logit_rows=[0]))
        if branch.query:
            entries.append((text[past:], past, blocks[-1]))
    if together:
        return interpreter.run(make_batch(entries)).copy()
    return np.concatenate([interpreter.run(make_batch([entry])).copy() for entry in entries])


def main() -> None:
    """Print the digest of the arguments' files."""
    mode, kv_type, *files = sys.argv[1:]
    total = hashlib.sha256()
    for file in files:
        interpreter = open_native(
            Path(file),
            kv_type,  # type: ignore[arg-type]
            threads=2,
            batch_tokens=BATCH_TOKENS,
        )
        for case in (TREE, fan(192, [1, 5, 70, 3, 40, 2])):
            logits = run_branches(interpreter, case, together=mode == "together")
            total.update(logits.astype("<f4").tobytes())
    print(total.hexdigest())


if __name__ == "__main__":
    main()
