"""Engines in processes of their own: started, watched, restarted where they were; several, under a cap."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from stoker.process.endpoint import ProcessEndpoint
    from stoker.process.options import ProcessOptions
    from stoker.process.shelf import ModelShelf, ShelfOptions

__all__ = ["ModelShelf", "ProcessEndpoint", "ProcessOptions", "ShelfOptions"]

_MODULE_BY_NAME = (
    ("ModelShelf", "shelf"),
    ("ProcessEndpoint", "endpoint"),
    ("ProcessOptions", "options"),
    ("ShelfOptions", "shelf"),
)


def __getattr__(name: str) -> Any:
    """The public names, imported when they are first asked for: the worker lives in this package too, and
    needs neither asyncio nor anything else of its parent's."""
    for known, module in _MODULE_BY_NAME:
        if known == name:
            return getattr(import_module(f"stoker.process.{module}"), name)
    raise AttributeError(f"module 'stoker.process' has no attribute {name!r}")
