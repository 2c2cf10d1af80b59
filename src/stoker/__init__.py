"""Stoker: LLM inference whose every token is exact, fast and replayable. Importing this does no work."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.api.request import SamplingParams
    from stoker.llm import LLM

__version__ = "0.1.0"
__all__ = ["LLM", "SamplingParams", "__version__"]


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: `stoker --version` needs neither."""
    if name == "LLM":
        from stoker.llm import LLM

        return LLM
    if name == "SamplingParams":
        from stoker.api.request import SamplingParams

        return SamplingParams
    raise AttributeError(f"module 'stoker' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
