"""Medusa training: which position learns what, that it learns, and that it goes on where it was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from stoker.api.errors import RequestError
from stoker.engine.heads import head_name
from stoker.speculation.head_format import MedusaShape
from stoker.training.dataset import Dataset
from stoker.training.train import DraftOptions


def test_options_know_the_kinds() -> None:
    assert DraftOptions().depth == 3
    assert DraftOptions(kind="medusa").depth == 4
    assert DraftOptions(kind="medusa", unroll=2).depth == 2
    with pytest.raises(RequestError, match="eagle, medusa"):
        DraftOptions(kind="oracle")
    with pytest.raises(RequestError, match="unroll"):
        DraftOptions(kind="medusa", unroll=9)


def test_kinds_have_files_of_their_own() -> None:
    digest = "ab" * 32
    assert head_name("m", digest) == f"m-{digest[:16]}.gguf"
    assert head_name("m", digest, "medusa") == f"m-medusa-{digest[:16]}.gguf"


WIDTH = 32
VOCABULARY = 16


def data(conversations: int = 40, length: int = 24) -> Dataset:
    """The token after token t is t + 1, and a token's state names the token after it."""
    rng = np.random.default_rng(0)
    token_ids = (rng.integers(0, VOCABULARY, (conversations, 1)) + np.arange(length)) % VOCABULARY
    features = 6.0 * np.eye(VOCABULARY, WIDTH)[(token_ids + 1) % VOCABULARY]
    return Dataset(
        token_ids.reshape(-1).astype(np.int32),
        np.tile(np.arange(length) >= 6, conversations),
        (np.arange(conversations + 1) * length).astype(np.int32),
        features.reshape(-1, WIDTH).astype(np.float16),
    )


def trainer_for(checkpoint: Path, steps: int, heads: int = 3):
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'stoker[train]'")
    from stoker.training.medusa import MedusaBlocks
    from stoker.training.trainer import Target, Trainer, TrainOptions

    torch.manual_seed(0)
    output = np.eye(VOCABULARY, WIDTH, dtype=np.float32)
    head = MedusaBlocks(MedusaShape(WIDTH, 32, heads))
    options = TrainOptions(
        steps=steps, unroll=heads, unrolled_share=1.0, batch_tokens=512, learning_rate=2e-2, warmup_steps=4
    )
    target = Target(output, output, np.arange(VOCABULARY, dtype=np.int32))
    return Trainer(head, head.unrolled, data(), target, options, checkpoint)


def test_it_learns_what_comes_k_tokens_on(tmp_path: Path) -> None:
    trainer = trainer_for(tmp_path / "checkpoint.pt", 60)
    before = trainer.evaluate()
    assert len(before.accepted) == 3  # as many as it has blocks
    assert before.accepted[0] < 0.1  # an untrained block says the token that is known already
    losses = []
    after = trainer.run(lambda step, loss, report: losses.append(loss), report_every=30)
    assert losses[-1] < 0.5 * losses[0]
    assert min(after.accepted) > 0.9
    assert after.tokens_per_step > 3.5


def test_it_goes_on_from_its_checkpoint(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'stoker[train]'")
    whole = trainer_for(tmp_path / "whole.pt", 6)
    whole.run(lambda *_: None)
    part = trainer_for(tmp_path / "part.pt", 6)

    def stop(step: int, loss: float, report: object) -> None:
        if step == 3:
            part._save()
            raise InterruptedError

    with pytest.raises(InterruptedError):
        part.run(stop)
    again = trainer_for(tmp_path / "part.pt", 6)
    assert again.resume()
    assert again.step == 3
    again.run(lambda *_: None)
    for name, value in whole.head.state_dict().items():
        assert torch.equal(value, again.head.state_dict()[name])
    with pytest.raises(RequestError, match="is of a run with"):
        trainer_for(tmp_path / "part.pt", 7).resume()


def test_a_block_begins_as_the_identity() -> None:
    torch = pytest.importorskip("torch", reason="needs torch: pip install 'stoker[train]'")
    from stoker.speculation.medusa_head import medusa_tensor_shapes
    from stoker.training.medusa import MedusaBlocks

    shape = MedusaShape(WIDTH, 64, 2)
    head = MedusaBlocks(shape)
    assert {n: tuple(p.shape) for n, p in head.named_parameters()} == medusa_tensor_shapes(shape)
    states = torch.randn(1, 5, WIDTH)
    first, second = head.unrolled(states, states, 7)
    assert torch.equal(first, states)
    assert torch.equal(second[:, 1:], states[:, :-1])  # of the position one earlier
