"""What differs between the kinds of draft heads when they are trained: module, shape, names, how deep."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Final

import numpy as np
import torch
from torch import nn

from stoker.kernels.lowering import GROUP_COLUMNS
from stoker.kernels.program import Float32
from stoker.models.config import ModelConfig
from stoker.speculation.head_format import EAGLE, MEDUSA, HeadShape, MedusaShape
from stoker.training.dataset import read_layers
from stoker.training.export import file_names
from stoker.training.head import EagleHead, Unrolled
from stoker.training.medusa import MedusaBlocks
from stoker.weights.gguf import GGUFFile
from stoker.weights.packing import dequantize_reference

_LAYER = (
    "attn_norm",
    "attn_q",
    "attn_k",
    "attn_v",
    "attn_output",
    "ffn_norm",
    "ffn_gate",
    "ffn_up",
    "ffn_down",
)
_INTERLEAVED = ("llama",)  # architectures whose layers turn neighbouring columns, as the head's does
_MEDUSA_PART: Final = 2  # a block is as wide inside as its states divided by this: half the paper's weights


@dataclass(frozen=True, slots=True)
class Lesson:
    """A new head to be trained, and what its file and card will say of it."""

    module: nn.Module
    unrolled: Unrolled
    shape: HeadShape | MedusaShape
    tensors: Mapping[str, str]  # parameter to name in the file
    passes: int
    unrolled_share: float  # of the steps: the last ones, in which more than the first guess is trained
    checkpoint: Path
    matrix_type: str  # of GGUF, in the file
    finer: Mapping[str, str]  # of some matrices another one
    what: str  # for the card
    how: str  # was it trained


def lesson(
    kind: str, file: GGUFFile, config: ModelConfig, folder: Path, *, passes: int, unroll: int, window: int
) -> Lesson:
    """Of a kind that `KINDS_TRAINED` has, for an open target. torch's generator is to be seeded before."""
    return KINDS_TRAINED[kind](file, config, folder, passes, unroll, window)


def _eagle(
    file: GGUFFile, config: ModelConfig, folder: Path, passes: int, unroll: int, window: int
) -> Lesson:
    shape = _shape(config, window)
    head = _head_like(shape, _last_layer(file, config), read_tensor(file, "output_norm.weight"))
    return Lesson(
        head,
        head.unrolled,
        shape,
        file_names(dict(head.named_parameters())),
        passes,
        0.4,  # a single step costs a third, and comes first
        folder / "checkpoint.pt",
        "Q4_1",  # a pass reads all of it: half as much as of Q8_0, for 0.4 % of the guesses
        {"fc_target.weight": "Q8_0"},  # read once in a draft
        f"EAGLE, one decoder layer of width {shape.width}, {shape.heads} heads, window {shape.window}; reads "
        f"the target's last state and what goes into its layers {', '.join(map(str, shape.layers))}",
        f"unrolled {unroll} deep at the end",
    )


def _medusa(
    file: GGUFFile, config: ModelConfig, folder: Path, passes: int, unroll: int, window: int
) -> Lesson:
    inner = -(-config.width // _MEDUSA_PART // GROUP_COLUMNS) * GROUP_COLUMNS
    shape = MedusaShape(config.width, inner, unroll)
    head = MedusaBlocks(shape)
    return Lesson(
        head,
        head.unrolled,
        shape,
        {name: name for name, _ in head.named_parameters()},
        1,
        1.0,  # no head is in another's way, and each is cheap
        folder / "checkpoint-medusa.pt",
        "Q8_0",  # its blocks are a tenth of what a pass reads
        {},
        f"Medusa, {unroll} residual blocks of width {shape.width}, {shape.inner} inside",
        f"all {unroll} blocks at once",
    )


KINDS_TRAINED: Final[Mapping[str, Callable[[GGUFFile, ModelConfig, Path, int, int, int], Lesson]]] = (
    MappingProxyType({EAGLE: _eagle, MEDUSA: _medusa})
)


def _shape(config: ModelConfig, window: int) -> HeadShape:
    return HeadShape(
        width=config.width,
        feed_forward=config.feed_forward,
        heads=config.heads,
        kv_heads=config.kv_heads,
        head_size=config.head_size,
        norm_eps=config.norm_eps,
        rope_base=config.rope_base,
        window=window,
        layers=read_layers(config.layers),
    )


def read_tensor(file: GGUFFile, name: str) -> Float32:
    """One of the target's, as float32."""
    tensor = file.tensors[name]
    rows, columns = tensor.shape if len(tensor.shape) == 2 else (1, tensor.shape[0])
    values = dequantize_reference(tensor.type.type_id, np.asarray(file.data(tensor)), rows, columns)
    file.release(tensor)
    return values.astype(np.float32).reshape(tensor.shape)


def _last_layer(file: GGUFFile, config: ModelConfig) -> dict[str, Float32]:
    """To begin with, where the target's layers are of the head's kind; else nothing."""
    if config.architecture not in _INTERLEAVED or config.rotary != config.head_size:
        return {}
    return {f"{name}.weight": read_tensor(file, f"blk.{config.layers - 1}.{name}.weight") for name in _LAYER}


def _head_like(shape: HeadShape, last_layer: dict[str, Float32], output_norm: Float32) -> EagleHead:
    """A head that begins with its target's last layer and output norm, and hands states on as they are."""
    head = EagleHead(shape)
    with torch.no_grad():
        for name, weight in last_layer.items():
            # What the layer adds is small at first: it was made for states before it that were much larger
            # (measured after 60 steps: loss 5.2 with a tenth, 6.3 as it is, 5.5 from random numbers).
            scale = 0.1 if name in ("attn_output.weight", "ffn_down.weight") else 1.0
            head.get_parameter(name).copy_(torch.from_numpy(weight * np.float32(scale)))
        head.output_norm.weight.copy_(torch.from_numpy(output_norm))
        head.fc_feature.weight.copy_(torch.eye(shape.width))
        if shape.layers:
            head.fc_target.weight.zero_()
            head.fc_target.weight[:, : shape.width] = torch.eye(shape.width)
        head.fc_embedding.weight.normal_(std=0.5 / math.sqrt(shape.width))
    return head
