"""The architectures that are known, by the name GGUF files give them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

from stoker.api.errors import ModelFormatError
from stoker.kernels.program import Program
from stoker.models.config import ModelConfig, Shaped, config_from_gguf
from stoker.models.gemma3 import gemma3
from stoker.models.llama import llama
from stoker.models.qwen2 import qwen2
from stoker.models.qwen3 import qwen3

ARCHITECTURES: Mapping[str, Callable[[ModelConfig], Program]] = MappingProxyType(
    {"gemma3": gemma3, "llama": llama, "qwen2": qwen2, "qwen3": qwen3}
)


def build_program(config: ModelConfig) -> Program:
    """The Program of a config. Raises ModelFormatError, with the known names, for an unknown architecture."""
    return _builder(config.architecture)(config)


def program_from_gguf(metadata: Mapping[str, Any], tensors: Mapping[str, Shaped]) -> Program:
    """The Program of a GGUF file (`file.metadata`, `file.tensors`), which uses each of its tensors.

    Raises ModelFormatError for an unknown architecture, for metadata or shapes that are missing or wrong,
    for a tensor that the architecture needs and the file lacks, and for one that it has no use for.
    """
    _builder(metadata.get("general.architecture"))  # named first: keys of unknown architectures mean nothing
    config = config_from_gguf(metadata, tensors)
    program = build_program(config)
    used = program.weights
    for name in used:
        if name not in tensors:
            raise ModelFormatError(f"tensor {name!r} is missing; {config.architecture} needs it")
    for name in tensors:
        if name not in used:
            raise ModelFormatError(
                f"tensor {name!r} is not part of a {config.architecture} model",
                hint="computing without it would give wrong answers",
            )
    return program


def _builder(architecture: object) -> Callable[[ModelConfig], Program]:
    builder = ARCHITECTURES.get(architecture) if isinstance(architecture, str) else None
    if builder is None:
        found = "missing" if architecture is None else repr(architecture)
        raise ModelFormatError(
            f"general.architecture is {found}; allowed: {', '.join(sorted(ARCHITECTURES))}"
        )
    return builder
