"""Trees of drafted tokens computed in one step, and each of their paths as a plain text of its own.

Run as a program it prints a SHA-256 of the logits, on the target that STOKER_TARGET names:

    python -m tests.numerics.tree_run together|apart KV_TYPE FILE [FILE ..]
"""

from __future__ import annotations

import dataclasses
import hashlib
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from tests.numerics.native_models import open_native
from tests.numerics.reference_models import blocks_for, int32, make_batch

from stoker.kernels.interpreter import Interpreter
from stoker.speculation.draft import Draft

BATCH_TOKENS = 1100
BLOCK = 16


@dataclass(frozen=True)
class Tree:
    """A text of `known` tokens, the last of which is computed with the guesses; `parents` as in `Draft`."""

    known: int
    parents: tuple[int, ...]


CHAIN = tuple(range(-1, 7))
BUSH = (-1, 0, 1, 2, -1, 4, 5, 0, 7, 1, -1, 9, 7)  # depths up to 4, branches of branches, several at a guess
FAN = (-1, -1, -1, -1)
LONG = (*range(-1, 19), *(17, 20, 21), *(3, 23), 22)  # a stem over two blocks, branches early and late


def tokens_of(tree: Tree, number: int, vocabulary: int) -> tuple[list[int], Draft]:
    """Random ids: of the text, and of the guesses."""
    generator = np.random.default_rng([number, tree.known])
    text = generator.integers(0, vocabulary, tree.known).tolist()
    guesses = generator.integers(0, vocabulary, len(tree.parents)).tolist()
    for i, parent in enumerate(tree.parents):  # siblings differ
        siblings = [guesses[j] for j in range(i) if tree.parents[j] == parent]
        while guesses[i] in siblings:
            guesses[i] = (guesses[i] + 1) % vocabulary
    return text, Draft(tuple(guesses), tree.parents)


def run_apart(interpreter: Interpreter, trees: Sequence[Tree]) -> np.ndarray:
    """Logits of the last known token and of each guess, [sum of 1 + guesses, vocabulary]: every one the last
    row of a text computed alone, its tail in a step of its own."""
    found = []
    for number, tree in enumerate(trees):
        text, draft = tokens_of(tree, number, interpreter.vocabulary)
        blocks = range(blocks_for(tree.known + len(tree.parents)))
        if tree.known > 1:
            interpreter.run(make_batch([(text[:-1], 0, blocks[: blocks_for(tree.known - 1)])], [0]))
        for guess in range(-1, len(tree.parents)):
            path: list[int] = []
            at = guess
            while at >= 0:
                path.insert(0, draft.tokens[at])
                at = draft.parent(at)
            tail = [text[-1], *path]
            batch = make_batch([(tail, tree.known - 1, blocks)], [len(tail) - 1])
            found.append(interpreter.run(batch).copy())
    return np.concatenate(found)


def run_together(
    interpreter: Interpreter, trees: Sequence[Tree], others: int = 0, order: int = 0
) -> np.ndarray:
    """The same rows from one step with all trees, and `others` that decode a token each. Blocks lie in any
    order."""
    free = np.random.default_rng(order).permutation(interpreter.num_blocks).tolist()
    entries: list[tuple[list[int], int, list[int]]] = []
    copies: list[tuple[int, int]] = []
    rows: list[int] = []
    first = 0
    for number, tree in enumerate(trees):
        text, draft = tokens_of(tree, number, interpreter.vocabulary)
        start = tree.known - 1
        owner: dict[int, int] = {}  # guess -> which of this tree's tables has it
        token_of = {-1: first}  # guess -> row of the batch
        tables: list[list[int]] = []
        base = len(entries)
        for parent, guesses in draft.paths():
            begin = start + 1 + draft.depth(guesses[0])
            end = begin + len(guesses)
            if not tables:
                table = [free.pop() for _ in range(blocks_for(end))]
                if start:
                    held = table[: blocks_for(start)]
                    interpreter.run(make_batch([(text[:-1], 0, held)], logit_rows=[0]))
                entries.append(([text[-1], *(draft.tokens[g] for g in guesses)], start, table))
                rows.append(first)
                first += 1
            else:
                whole = begin // BLOCK
                stem = tables[owner.get(parent, 0)]
                table = [*stem[:whole], *[free.pop() for _ in range(blocks_for(end) - whole)]]
                if start > whole * BLOCK:  # what was computed before comes with the block
                    interpreter.copy_block(stem[whole], table[whole])
                ancestor, position = parent, begin - 1
                while position >= max(start, whole * BLOCK):
                    copies.append((token_of[ancestor], len(entries)))
                    ancestor, position = (draft.parent(ancestor) if ancestor >= 0 else -1), position - 1
                entries.append(([draft.tokens[g] for g in guesses], begin, table))
            for i, guess in enumerate(guesses):
                owner[guess], token_of[guess] = len(tables), first + i
            first += len(guesses)
            tables.append(table)
        rows += [token_of[guess] for guess in range(len(draft.tokens))]
        assert len(entries) - base == len(tables)
    for number in range(others):
        text = np.random.default_rng([1, number]).integers(0, interpreter.vocabulary, 20 + number).tolist()
        table = [free.pop() for _ in range(blocks_for(len(text)))]
        interpreter.run(make_batch([(text[:-1], 0, table[: blocks_for(len(text) - 1)])], logit_rows=[0]))
        entries.append((text[-1:], len(text) - 1, table))
    batch = dataclasses.replace(
        make_batch(entries, sorted(rows)), kv_copies=int32(sorted(copies)).reshape(-1, 2)
    )
    logits = interpreter.run(batch)
    return logits[np.argsort(np.argsort(rows))].copy()


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
        for known in (17, 64, 513):
            trees = [Tree(known, BUSH), Tree(40, FAN)]
            logits = (run_together if mode == "together" else run_apart)(interpreter, trees)
            total.update(logits.astype("<f4").tobytes())
    print(total.hexdigest())


if __name__ == "__main__":
    main()
