"""What a draft head learns from: conversations as tokens, and what the target says of each: its hidden state,
and what goes into some of its layers.

Two files beside the corpus: `tokens.npz` (ids, which of them are answers, where conversations begin) and
`features.f16`, a row for each token. The engine's own kernels compute the states, as they do when it serves.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from stoker.api.errors import RequestError
from stoker.kernels.interpreter import Interpreter
from stoker.kernels.program import BLOCK_TOKENS, NO_ROWS, Batch, Float32, Int32
from stoker.training.corpus import Conversation

Float16 = npt.NDArray[np.float16]
Bool = npt.NDArray[np.bool_]
Progress = Callable[[int, int], None]  # (tokens done, of how many)

LEAST_ANSWER_TOKENS = 2048  # fewer say nothing about what a held-out answer would be like
_LEAST_TOKENS = 4  # of a conversation: a state, the token after it, and two to guess


def read_layers(layers: int) -> tuple[int, ...]:
    """Of a target with so many layers those whose inputs heads read: an early, a middle and a late one, as in
    "EAGLE-3" (Li et al., 2025)."""
    return tuple(sorted({layers // 6, layers // 2, layers * 5 // 6}))


@dataclass(frozen=True)
class Dataset:
    """All conversations one after the other."""

    token_ids: Int32  # [N]
    answers: Bool  # [N] tokens that the target sampled
    starts: Int32  # [conversations + 1]
    features: Float16  # [N, width of all that the target says of a token], the hidden state first

    @property
    def conversations(self) -> int:
        """How many."""
        return len(self.starts) - 1

    @property
    def answer_tokens(self) -> int:
        """Tokens that the target sampled."""
        return int(self.answers.sum())


def load_dataset(folder: Path) -> Dataset | None:
    """What `compute_dataset` left in a folder; none if it did not finish."""
    tokens, features = folder / "tokens.npz", folder / "features.f16"
    if not tokens.exists() or not features.exists():
        return None
    try:
        with np.load(tokens) as arrays:
            token_ids, answers, starts = arrays["token_ids"], arrays["answers"], arrays["starts"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # it was cut; it is computed again
    width = features.stat().st_size // 2 // max(len(token_ids), 1)
    if not width or features.stat().st_size != len(token_ids) * width * 2:
        return None
    # Into memory, 4.6 gigabytes for a million tokens of SmolLM2: batches are drawn from all over the file.
    states = np.fromfile(features, np.float16).reshape(len(token_ids), width)
    return Dataset(token_ids, answers, starts, states)


def compute_dataset(
    folder: Path,
    conversations: Sequence[Conversation],
    interpreter: Interpreter,
    *,
    batch_tokens: int,
    progress: Progress = lambda done, total: None,
) -> Dataset:
    """Run the target over every conversation. Raises `RequestError` for too few answers to learn from."""
    usable = [c for c in conversations if len(c.prompt) + len(c.answer) >= _LEAST_TOKENS and c.answer]
    answer_tokens = sum(len(c.answer) for c in usable)
    if answer_tokens < LEAST_ANSWER_TOKENS:
        raise RequestError(
            f"the training text has {answer_tokens} tokens of answers in {len(usable)} conversations; "
            f"allowed: {LEAST_ANSWER_TOKENS} or more",
            hint="give more prompts, or let the model think of its own",
        )
    token_ids = np.concatenate([np.array([*c.prompt, *c.answer], np.int32) for c in usable])
    answers = np.concatenate([np.arange(len(c.prompt) + len(c.answer)) >= len(c.prompt) for c in usable])
    starts = np.cumsum([0, *(len(c.prompt) + len(c.answer) for c in usable)]).astype(np.int32)
    partial = folder / "features.partial"
    with partial.open("wb") as out:
        for begin, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
            for states in _states(interpreter, token_ids[begin:end], batch_tokens):
                out.write(states.astype(np.float16).tobytes())
            progress(end, len(token_ids))
    np.savez(folder / "tokens.npz", token_ids=token_ids, answers=answers, starts=starts)
    partial.replace(folder / "features.f16")
    dataset = load_dataset(folder)
    assert dataset is not None
    return dataset


def _states(interpreter: Interpreter, token_ids: Int32, batch_tokens: int) -> Iterator[Float32]:
    """What the target says of one conversation, chunk by chunk: [tokens, all widths]."""
    blocks = np.arange(-(-len(token_ids) // BLOCK_TOKENS), dtype=np.int32)[None]
    for start in range(0, len(token_ids), batch_tokens):
        chunk = token_ids[start : start + batch_tokens]
        interpreter.run(
            Batch(
                token_ids=np.ascontiguousarray(chunk),
                positions=np.arange(start, start + len(chunk), dtype=np.int32),
                query_start=np.array([0, len(chunk)], np.int32),
                kv_tokens=np.array([start + len(chunk)], np.int32),
                block_tables=blocks,
                logit_rows=NO_ROWS,
                hidden_rows=np.arange(len(chunk), dtype=np.int32),
            )
        )
        yield interpreter.draft_states
