"""Model architectures: functions from a checked config to a `Program`."""

from stoker.models.config import ModelConfig, SlidingWindow, config_from_gguf
from stoker.models.registry import ARCHITECTURES, build_program, program_from_gguf

__all__ = [
    "ARCHITECTURES",
    "ModelConfig",
    "SlidingWindow",
    "build_program",
    "config_from_gguf",
    "program_from_gguf",
]
