"""A call's input of which the end is missing, because the answer's tokens ended before it did."""

from __future__ import annotations

import json
from typing import Any, NamedTuple


class _Open(NamedTuple):
    """The innermost bracket that is open at a place, and those around it. A chain, so that keeping what is
    open at a place costs nothing."""

    closer: str
    around: _Open | None


def partial_object(text: str) -> dict[str, Any]:
    """The JSON object that `text` is, or as much of it as is complete: members and items that were cut are
    left out. {} where nothing is."""
    for candidate in (text, _closed(text)):
        try:
            value = json.loads(candidate)
        except (ValueError, RecursionError):
            continue
        if isinstance(value, dict):
            return value
    return {}


def _closed(text: str) -> str:
    """The beginning of `text`, up to the last place where a member or item ends, and what closes it there."""
    still_open: _Open | None = None
    last_place, last_open = 0, still_open
    in_string = escaped = False
    for place, char in enumerate(text):
        if in_string:
            in_string = escaped or char != '"'
            escaped = char == "\\" and not escaped
        elif char == '"':
            in_string = True
        elif char == ",":
            last_place, last_open = place, still_open
        elif char in "{[":
            still_open = _Open("}" if char == "{" else "]", still_open)
            last_place, last_open = place + 1, still_open
        elif char in "}]" and still_open is not None:
            still_open = still_open.around
            last_place, last_open = place + 1, still_open
    closers = []
    while last_open is not None:
        closers.append(last_open.closer)
        last_open = last_open.around
    return text[:last_place] + "".join(closers)
