"""An EAGLE head as torch modules, and how it is unrolled in training. Tensors have the names of the head
file.

Architecture after Li et al., "EAGLE", 2024 (one decoder layer over pairs of a hidden state and the token
after it); trained as in "EAGLE-3", 2025: on what it does to its own output, several steps deep.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

from stoker.speculation.head_format import HeadShape

# What a head's module does of (features, embeddings, depth): at most so many steps, [B, L, width] each. What
# step k gives at position p is meant to be the target's state at p + 1, said when nothing after p - k was
# known but guesses. features, embeddings: the target's states [B, L, width or more], of which a head may read
# the first numbers only, and [B, L, width] of the tokens after them.
Unrolled = Callable[[Tensor, Tensor, int], Iterator[Tensor]]
_SEEN_FROM = -1e9  # logits of keys that are not seen; no infinity, whose gradients may be NaN


class Step(NamedTuple):
    """One unrolled step of all positions."""

    keys: Tensor  # [B, kv heads, L, head size]
    values: Tensor
    hidden: Tensor  # [B, L, width] what it hands to the next step, normed


class RmsNorm(nn.Module):
    """x · weight / sqrt(mean(x²) + eps)."""

    def __init__(self, width: int, eps: float) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.ones(width))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """[..., width]."""
        return functional.rms_norm(x.float(), x.shape[-1:], self.weight, self.eps)


class EagleHead(nn.Module):
    """Pairs of (state at position p, embedding of the token at p + 1) to a guess of the state at p + 1.

    With `shape.layers` the target's state has what goes into these layers beside it, [target_width] in all,
    as in "EAGLE-3"; a state of the head's own is [width].
    """

    def __init__(self, shape: HeadShape) -> None:
        super().__init__()
        width, query, kv = shape.width, shape.heads * shape.head_size, shape.kv_heads * shape.head_size
        self.shape = shape
        self.embedding_norm = RmsNorm(width, shape.norm_eps)
        self.feature_norm = RmsNorm(width, shape.norm_eps)
        self.fc_embedding = nn.Linear(width, width, bias=False)
        self.fc_feature = nn.Linear(width, width, bias=False)
        if shape.layers:
            self.target_norm = RmsNorm(width, shape.norm_eps)
            self.fc_target = nn.Linear(shape.target_width, width, bias=False)
        self.attn_norm = RmsNorm(width, shape.norm_eps)
        self.attn_q = nn.Linear(width, query, bias=False)
        self.attn_k = nn.Linear(width, kv, bias=False)
        self.attn_v = nn.Linear(width, kv, bias=False)
        self.attn_output = nn.Linear(query, width, bias=False)
        self.ffn_norm = RmsNorm(width, shape.norm_eps)
        self.ffn_gate = nn.Linear(width, shape.feed_forward, bias=False)
        self.ffn_up = nn.Linear(width, shape.feed_forward, bias=False)
        self.ffn_down = nn.Linear(shape.feed_forward, width, bias=False)
        self.output_norm = RmsNorm(width, shape.norm_eps)

    def forward(self, features: Tensor, embeddings: Tensor, earlier: list[Step], seen: Tensor) -> Step:
        """One step of every position s: [B, L, width] twice -> the same.

        `features`: in the first step the target's states [B, L, target_width]; then `earlier[-1].hidden`
        moved on by one position.
        A position of step k began k tokens before: it sees the first step's keys up to there, and of each
        later step the key on its own path. seen: [L, L], added to the first step's logits for k = 0.
        """
        joined = self.fc_embedding(self.embedding_norm(embeddings))
        if self.shape.layers and not earlier:
            parts = features.unflatten(-1, (-1, self.shape.width))
            joined = joined + self.fc_target(self.target_norm(parts).flatten(-2))
        else:
            joined = joined + self.fc_feature(self.feature_norm(features))
        normed = self.attn_norm(joined)
        batch, length, _ = joined.shape
        size = self.shape.head_size

        def heads(x: Tensor) -> Tensor:
            return x.view(batch, length, -1, size).transpose(1, 2)

        angles = _angles(length, size, self.shape.rope_base, joined.device)
        queries = _turned(heads(self.attn_q(normed)), angles)
        keys = _turned(heads(self.attn_k(normed)), angles)
        values = heads(self.attn_v(normed))
        mixed = _attend(queries, [*earlier, Step(keys, values, joined)], seen)
        middle = joined + self.attn_output(mixed.transpose(1, 2).reshape(batch, length, -1))
        inner = self.ffn_norm(middle)
        result = middle + self.ffn_down(functional.silu(self.ffn_gate(inner)) * self.ffn_up(inner))
        return Step(keys, values, self.output_norm(result))

    def unrolled(self, features: Tensor, embeddings: Tensor, depth: int) -> Iterator[Tensor]:
        """See `Unrolled`: each step goes on from the one before it."""
        earlier: list[Step] = []
        for number in range(depth):
            seen = window_mask(features.shape[1], self.shape.window, number, features.device)
            step = self(features, embeddings, earlier, seen)
            yield step.hidden
            earlier.append(step)
            features = moved_on(step.hidden)


def window_mask(length: int, window: int, step: int, device: torch.device) -> Tensor:
    """[L, L] 0 where a position of an unrolled step sees a key of the first, else far below."""
    places = torch.arange(length, device=device)
    behind = places[:, None] - places[None, :]  # of key j before query s
    return torch.where((behind >= step) & (behind < window), 0.0, _SEEN_FROM)


def moved_on(x: Tensor) -> Tensor:
    """What position p gave, at p + 1; zeros at the first."""
    return functional.pad(x, (0, 0, 1, 0))[:, :-1]


def _attend(queries: Tensor, steps: list[Step], seen: Tensor) -> Tensor:
    group = queries.shape[1] // steps[0].keys.shape[1]
    scale = queries.shape[-1] ** -0.5
    first = steps[0]
    spread = [(s.keys.repeat_interleave(group, 1), s.values.repeat_interleave(group, 1)) for s in (first,)]
    logits = [queries @ spread[0][0].transpose(-1, -2) * scale + seen]
    own: list[Tensor] = []
    for back, step in enumerate(reversed(steps[1:])):  # the path's keys: the latest step's stands here
        keys = _shifted(step.keys, back).repeat_interleave(group, 1)
        own.append(_shifted(step.values, back).repeat_interleave(group, 1))
        logits.append((queries * keys).sum(-1, keepdim=True) * scale)
    weights = torch.softmax(torch.cat(logits, -1).float(), -1).to(queries.dtype)
    length = first.keys.shape[2]
    mixed = weights[..., :length] @ spread[0][1]
    for place, values in enumerate(own):
        mixed = mixed + weights[..., length + place : length + place + 1] * values
    return mixed


def _shifted(x: Tensor, by: int) -> Tensor:
    """[B, heads, L, size] what stood `by` positions before."""
    return x if not by else functional.pad(x, (0, 0, by, 0))[:, :, :-by]


def _angles(length: int, size: int, base: float, device: torch.device) -> tuple[Tensor, Tensor]:
    frequency = base ** (-2.0 * torch.arange(size // 2, device=device) / size)
    angle = torch.arange(length, device=device)[:, None] * frequency
    return angle.cos(), angle.sin()


def _turned(x: Tensor, angles: tuple[Tensor, Tensor]) -> Tensor:
    """Rotary embedding on pairs of neighbouring columns, as GGUF's llama files have them."""
    cos, sin = (part.to(x.dtype) for part in angles)
    even, odd = x[..., 0::2], x[..., 1::2]
    return torch.stack((even * cos - odd * sin, even * sin + odd * cos), -1).flatten(-2)
