"""Medusa's blocks as a torch module, with the names of its file; `speculation.medusa_head` runs them."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn
from torch.nn import functional

from stoker.speculation.head_format import MedusaShape
from stoker.training.head import moved_on


class Block(nn.Module):
    """h + down · (silu(gate · h) * (up · h)). Nothing is added at first: it begins as its target."""

    def __init__(self, shape: MedusaShape) -> None:
        super().__init__()
        self.gate = nn.Linear(shape.width, shape.inner, bias=False)
        self.up = nn.Linear(shape.width, shape.inner, bias=False)
        self.down = nn.Linear(shape.inner, shape.width, bias=False)
        nn.init.zeros_(self.down.weight)

    def forward(self, x: Tensor) -> Tensor:
        """[..., width]."""
        changed: Tensor = x + self.down(functional.silu(self.gate(x)) * self.up(x))
        return changed


class MedusaBlocks(nn.Module):
    """Block k: from the state at position p to a guess of the state at p + 1 + k."""

    def __init__(self, shape: MedusaShape) -> None:
        super().__init__()
        self.shape = shape
        self.medusa = nn.ModuleList(Block(shape) for _ in range(shape.heads))

    def unrolled(self, features: Tensor, embeddings: Tensor, depth: int) -> Iterator[Tensor]:
        """See `Unrolled`: no step knows of another, and none reads the token after its state."""
        features = features[..., : self.shape.width]
        for block in list(self.medusa)[:depth]:
            yield block(features)
            features = moved_on(features)
