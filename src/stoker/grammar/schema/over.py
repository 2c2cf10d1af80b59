"""Rewritten schemas and how they combine."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Over:
    """A schema that accepts at least what some other one does; `exact`: and nothing else."""

    schema: Any  # dict or bool, in the dialect that llguidance compiles
    exact: bool


TRUE = Over(True, True)
FALSE = Over(False, True)


def all_of(parts: Sequence[Over]) -> Over:
    """What all of them accept. An empty part is exact if it is known to be empty, whatever the others are."""
    if any(part.schema is False and part.exact for part in parts):
        return FALSE
    exact = all(part.exact for part in parts)
    schemas: list[Any] = []
    for part in parts:
        schema = part.schema
        if schema is True or schema == {}:
            continue
        if isinstance(schema, dict) and set(schema) == {"allOf"}:
            schemas += schema["allOf"]
        else:
            schemas.append(schema)
    if not schemas:
        return Over(True, exact)
    if any(schema is False for schema in schemas):
        return Over(False, exact)
    return Over(schemas[0] if len(schemas) == 1 else {"allOf": schemas}, exact)


def any_of(parts: Sequence[Over]) -> Over:
    """What any of them accepts."""
    if any(part.schema is True and part.exact for part in parts):
        return TRUE
    exact = all(part.exact for part in parts)
    schemas: list[Any] = []
    for part in parts:
        schema = part.schema
        if schema is True or schema == {}:
            return Over(True, exact)
        if schema is False:
            continue
        if isinstance(schema, dict) and set(schema) == {"anyOf"}:
            schemas += schema["anyOf"]
        else:
            schemas.append(schema)
    if not schemas:
        return Over(False, exact)
    return Over(schemas[0] if len(schemas) == 1 else {"anyOf": schemas}, exact)
