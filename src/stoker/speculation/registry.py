"""Drafters by name, and what an option of names means."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Final

from stoker.api.errors import RequestError
from stoker.speculation.draft_model import NAME as DRAFT_MODEL
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
# Made for one model, from files of their own, when it is loaded.
BOUND: Final = ("eagle", "medusa", DRAFT_MODEL)
AUTO: Final = "auto"  # each step asks the one that promises most
OFF: Final = "off"
# Guesses of the window of lookahead are verified as they come, which pays only where rows are free.
_NOT_AUTO: Final = frozenset({"lookahead"})
_NONE: Final[Mapping[str, Drafters]] = MappingProxyType({})


def drafter_names(option: str) -> tuple[str, ...]:
    """What "auto", "off", or names joined by commas mean. Raises `RequestError` for another name."""
    known = (*DRAFTERS, *BOUND)
    if option == OFF:
        return ()
    if option == AUTO:
        return tuple(name for name in known if name not in _NOT_AUTO)
    names = tuple(dict.fromkeys(option.split(",")))
    for name in names:
        if name not in known:
            raise RequestError(
                f"speculation is {option!r:.80}; allowed: {AUTO}, {OFF}, or of {', '.join(known)} some, "
                "joined by commas"
            )
    return names


def drafters_of(option: str, bound: Mapping[str, Drafters] = _NONE) -> tuple[Drafters, ...]:
    """New drafters for an option, and of those that belong to a model the ones it has. Raises
    `RequestError`.
    """
    made = (DRAFTERS[name]() if name in DRAFTERS else bound.get(name) for name in drafter_names(option))
    return tuple(one for one in made if one is not None)
