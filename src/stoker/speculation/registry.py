"""Drafters by name, and what an option of names means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from stoker.api.errors import RequestError
from stoker.speculation.drafter import Drafters
from stoker.speculation.lookahead import LookaheadDrafters
from stoker.speculation.ngram import NgramDrafters
from stoker.speculation.prediction import PredictionDrafters
from stoker.speculation.suffix import SuffixDrafters

DRAFTERS: Final[Mapping[str, Callable[[], Drafters]]] = MappingProxyType(
    {
        "prediction": PredictionDrafters,
        "ngram": NgramDrafters,
        "suffix": SuffixDrafters,
        "lookahead": LookaheadDrafters,
    }
)
AUTO: Final = "auto"  # all of them; each step asks the one that promises most
OFF: Final = "off"


def drafters_of(names: str) -> tuple[Drafters, ...]:
    """New drafters for "auto", "off", or names joined by commas. Raises `RequestError` for another name."""
    if names == OFF:
        return ()
    if names == AUTO:
        return tuple(make() for make in DRAFTERS.values())
    made = []
    for name in names.split(","):
        if name not in DRAFTERS:
            raise RequestError(
                f"speculation is {names!r:.80}; allowed: {AUTO}, {OFF}, or of {', '.join(DRAFTERS)} some, "
                "joined by commas"
            )
        made.append(DRAFTERS[name]())
    return tuple(made)
