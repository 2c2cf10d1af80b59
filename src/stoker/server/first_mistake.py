"""Bodies whose mistakes outnumber what anybody reads: the first one is enough.

pydantic lists every mistake, and each takes about a kilobyte: 3 MB of `{},{},{}` for messages became 1.9 GB,
and 12 seconds in which no stream went on.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

# Of one list that says no less: no context is longer. Items that are objects cost 5 us and more each.
MOST_ITEMS = 1 << 20
MOST_OBJECTS = 1 << 16
_COLLECTIONS = ("list", "dict", "set", "frozenset", "tuple")
_PLAIN = ("int", "float", "str", "bool")


def stopping_at_first(schema: Any) -> Any:
    """A core schema whose collections end at their first mistake; its lists have a largest length."""
    stack = [schema]
    while stack:
        part = stack.pop()
        if isinstance(part, dict):
            if part.get("type") in _COLLECTIONS:
                part["fail_fast"] = True
            if part.get("type") == "list":
                items = part.get("items_schema", {}).get("type")
                part.setdefault("max_length", MOST_ITEMS if items in _PLAIN else MOST_OBJECTS)
            stack += part.values()
        elif isinstance(part, list | tuple):
            stack += part
    return schema


def with_one_unknown(given: Any, known: Mapping[str, Any]) -> Any:
    """`given`, if it is an object, with the first only of its fields that are not known."""
    if not isinstance(given, dict) or given.keys() <= known.keys():
        return given
    first = next(name for name in given if name not in known)
    return {name: value for name, value in given.items() if name in known or name == first}
