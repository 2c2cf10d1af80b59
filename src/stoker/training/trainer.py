"""Trains a draft head: what it says after its own guesses should be what the target says there.

Loss: cross-entropy with the target's distribution over the draft vocabulary, at every unrolled step; after
the tokens of questions as well as of answers, as the target has something to say after any text. A run is a
function of the data and the options; it goes on from its last checkpoint.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from stoker.api.errors import RequestError
from stoker.kernels.program import Float32, Int32
from stoker.training.dataset import Dataset
from stoker.training.head import Unrolled

HELD_OUT_EVERY: Final = 20  # of so many conversations one is never trained on
_MOST_LENGTH: Final = 512  # tokens of a conversation that are used
_LENGTH_STEP: Final = 32
_STEP_WEIGHT: Final = 0.8  # of the loss of an unrolled step, to the power of its number
_BETAS: Final = (0.9, 0.95)
_MOST_GRADIENT: Final = 1.0
_SAVE_EVERY: Final = 100
_EVALUATED: Final = 48  # held-out conversations


@dataclass(frozen=True, slots=True)
class TrainOptions:
    """How long and how."""

    steps: int = 2000
    unroll: int = (
        3  # draft steps deep, in the last part of the run; a single one costs a third, and comes first
    )
    unrolled_share: float = 0.4  # of all steps
    batch_tokens: int = 2048
    learning_rate: float = 1.5e-3
    warmup_steps: int = 100
    seed: int = 0


class Target(NamedTuple):
    """What the head shares with its target, as float32 arrays."""

    embeddings: Float32  # [vocabulary, width]
    output: Float32  # [vocabulary, width]
    draft_vocabulary: Int32  # [V] ascending ids


class Report(NamedTuple):
    """Held out: by depth, how often the draft's likeliest token was the target's, all before it being
    right.
    """

    loss: float
    accepted: tuple[float, ...]
    tokens_per_step: float  # that a chain of this depth would bring, with the target's own one


Progress = Callable[[int, float, Report | None], None]  # (steps done, loss, held-out report now and then)


class _Batch(NamedTuple):
    token_ids: Tensor  # [B, L + 2]
    features: Tensor  # [B, L + 1, what the target says of a token]
    states: Tensor  # [B, L + 1, width] the hidden states among that
    wanted: Tensor  # [B, L] the token two places on counts


class Trainer:
    """Owns the head, the optimiser and the checkpoint."""

    def __init__(
        self,
        head: nn.Module,
        unrolled: Unrolled,
        data: Dataset,
        target: Target,
        options: TrainOptions,
        checkpoint: Path,
    ) -> None:
        """`unrolled`: what the head does."""
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.head = head.to(self.device)
        self._unroll = unrolled
        self.options = options
        self.step = 0
        self._data = data
        self._checkpoint = checkpoint
        vocabulary = torch.from_numpy(target.draft_vocabulary.astype(np.int64))
        self._embeddings = torch.from_numpy(target.embeddings).to(self.device)
        self._full_output = torch.from_numpy(target.output)
        self._output = self._full_output[vocabulary].to(self.device)
        self._vocabulary = vocabulary.to(self.device)
        self._optimiser = torch.optim.AdamW(
            head.parameters(), options.learning_rate, _BETAS, weight_decay=0.01
        )
        every = np.arange(data.conversations)
        self._train = every[every % HELD_OUT_EVERY != HELD_OUT_EVERY - 1]
        self._held_out = every[every % HELD_OUT_EVERY == HELD_OUT_EVERY - 1][:_EVALUATED]
        if not len(self._held_out):
            raise RequestError(
                f"the training text has {data.conversations} conversations; allowed: {HELD_OUT_EVERY} or "
                "more, one of which is held out"
            )

    def resume(self) -> bool:
        """Go on from the checkpoint. Raises `RequestError` if it belongs to other options or data."""
        if not self._checkpoint.exists():
            return False
        try:
            state = torch.load(self._checkpoint, map_location=self.device, weights_only=True)
        except Exception as error:  # torch raises what its parts raise
            raise RequestError(
                f"{self._checkpoint} is no checkpoint: {error!r:.120}; allowed: one that was written whole",
                hint="remove it to train from the start",
            ) from error
        if state["options"] != self._described():
            raise RequestError(
                f"{self._checkpoint} is of a run with {state['options']}; allowed: {self._described()}",
                hint="take the same options, or another folder",
            )
        self.head.load_state_dict(state["head"])
        self._optimiser.load_state_dict(state["optimiser"])
        self.step = state["step"]
        return True

    def run(self, progress: Progress, *, report_every: int = 200) -> Report:
        """To the last step. Returns the last held-out report."""
        report = None
        for batch in self._batches():
            if self.step >= self.options.steps:
                break
            loss = self._learn(batch)
            self.step += 1
            report = self.evaluate() if self.step % report_every == 0 else None
            progress(self.step, loss, report)
            if self.step % _SAVE_EVERY == 0 or self.step == self.options.steps:
                self._save()
        return report or self.evaluate()

    @torch.no_grad()
    def evaluate(self) -> Report:
        """On conversations that were not trained on."""
        self.head.eval()
        depth = self.options.unroll + 2
        right, tried, losses = np.zeros(depth), np.zeros(depth), []
        deepest = 0  # a head may have fewer steps than are asked for
        for batch in self._grouped(self._held_out):
            wanted = batch.wanted.cpu()
            best = self._likeliest(batch.states[:, 1:][batch.wanted])
            path = torch.zeros_like(wanted)  # guesses that are right, all before them on their path too
            for number, logits, teacher in self._unrolled(batch, depth):
                losses.append(float(_cross_entropy(logits, teacher)))
                hits = torch.zeros_like(wanted)
                hits[wanted] = self._vocabulary[logits.argmax(-1)].cpu() == best
                # Step k at position s ends a path that began k tokens before.
                reached = wanted if not number else functional.pad(path, (1, 0))[:, :-1] & wanted
                path = hits & reached
                tried[number] += int(reached.sum())
                right[number] += int(path.sum())
                deepest = max(deepest, number + 1)
        self.head.train()
        accepted = tuple((right / np.maximum(tried, 1))[:deepest].round(4).tolist())
        return Report(float(np.mean(losses)), accepted, 1.0 + float(np.cumprod(accepted).sum()))

    def _likeliest(self, features: Tensor) -> Tensor:
        """The target's greedy tokens after these states, of its whole vocabulary."""
        return torch.cat(
            [(part.float().cpu() @ self._full_output.T).argmax(-1) for part in features.split(512)]
        )

    def _learn(self, batch: _Batch) -> float:
        self._set_rate()
        total = torch.zeros((), device=self.device)
        first = 0.0
        options = self.options
        depth = options.unroll if self.step >= (1 - options.unrolled_share) * options.steps else 1
        for number, logits, teacher in self._unrolled(batch, depth):
            loss = _cross_entropy(logits, teacher)
            first = first or float(loss.detach())
            total = total + loss * _STEP_WEIGHT**number
        self._optimiser.zero_grad(set_to_none=True)
        total.backward()
        torch.nn.utils.clip_grad_norm_(self.head.parameters(), _MOST_GRADIENT)
        self._optimiser.step()
        return first

    def _unrolled(self, batch: _Batch, depth: int) -> Iterator[tuple[int, Tensor, Tensor]]:
        """(step, logits over the draft vocabulary, the target's probabilities) at the wanted positions."""
        with torch.autocast(self.device.type, torch.bfloat16):
            with torch.no_grad():
                following = batch.states[:, 1:][batch.wanted]
                teacher = torch.softmax((following @ self._output.T.to(following.dtype)).float(), -1)
            embeddings = self._embeddings[batch.token_ids[:, 1:-1]]
            features = batch.features[:, :-1]
            for number, hidden in enumerate(self._unroll(features, embeddings, depth)):
                yield number, (hidden[batch.wanted] @ self._output.T).float(), teacher

    def _set_rate(self) -> None:
        options = self.options
        if self.step < options.warmup_steps:
            rate = options.learning_rate * (self.step + 1) / options.warmup_steps
        else:
            done = (self.step - options.warmup_steps) / max(options.steps - options.warmup_steps, 1)
            rate = options.learning_rate * (0.02 + 0.98 * 0.5 * (1 + math.cos(math.pi * min(done, 1.0))))
        for group in self._optimiser.param_groups:
            group["lr"] = rate

    def _batches(self) -> Iterator[_Batch]:
        """Without end, in an order that the seed decides; from the present step on."""
        skipped = 0
        for epoch in range(1 << 30):
            order = np.random.default_rng((self.options.seed, epoch)).permutation(self._train)
            for rows in self._groups(order):
                skipped += 1
                if skipped > self.step:
                    yield self._batch(rows, with_questions=True)

    def _grouped(self, conversations: np.ndarray[Any, Any]) -> Iterator[_Batch]:
        return (self._batch(rows, with_questions=False) for rows in self._groups(conversations))

    def _groups(self, conversations: np.ndarray[Any, Any]) -> Iterator[list[int]]:
        """Conversations of like length, `batch_tokens` together; a batch's are drawn from 256 neighbours."""
        starts = self._data.starts
        rng = np.random.default_rng(int(conversations[0]))
        for place in range(0, len(conversations), 256):
            near = conversations[place : place + 256]
            lengths = np.minimum(starts[near + 1] - starts[near], _MOST_LENGTH)
            groups: list[list[int]] = [[]]
            for row, length in sorted(
                zip(near.tolist(), lengths.tolist(), strict=True), key=lambda pair: pair[1]
            ):
                if (len(groups[-1]) + 1) * length > self.options.batch_tokens and groups[-1]:
                    groups.append([])
                groups[-1].append(row)
            for index in rng.permutation(len(groups)):
                yield groups[index]

    def _batch(self, rows: list[int], *, with_questions: bool) -> _Batch:
        data = self._data
        spans = [
            (int(data.starts[r]), min(int(data.starts[r + 1]), int(data.starts[r]) + _MOST_LENGTH))
            for r in rows
        ]
        longest = max(end - begin for begin, end in spans)
        length = -(-longest // _LENGTH_STEP) * _LENGTH_STEP
        token_ids = np.zeros((len(rows), length), np.int64)
        features = np.zeros((len(rows), length, data.features.shape[1]), np.float16)
        wanted = np.zeros((len(rows), length), np.bool_)
        for row, (begin, end) in enumerate(spans):
            token_ids[row, : end - begin] = data.token_ids[begin:end]
            features[row, : end - begin] = data.features[begin:end]
            wanted[row, : end - begin - 2] = with_questions | data.answers[begin + 2 : end]
        to = self.device
        said = torch.from_numpy(features[:, :-1]).to(to, torch.bfloat16)
        return _Batch(
            torch.from_numpy(token_ids).to(to),
            said,
            said[..., : self._embeddings.shape[1]],
            torch.from_numpy(wanted[:, :-2]).to(to),
        )

    def _described(self) -> dict[str, Any]:
        return asdict(self.options) | {
            "tokens": len(self._data.token_ids),
            "features": self._data.features.shape[1],
            "draft_vocabulary": len(self._vocabulary),
        }

    def _save(self) -> None:
        partial = self._checkpoint.with_suffix(".partial")
        state = {
            "head": self.head.state_dict(),
            "optimiser": self._optimiser.state_dict(),
            "step": self.step,
            "options": self._described(),
        }
        torch.save(state, partial)
        os.replace(partial, self._checkpoint)


def _cross_entropy(logits: Tensor, teacher: Tensor) -> Tensor:
    return -(teacher * functional.log_softmax(logits, -1)).sum(-1).mean()
