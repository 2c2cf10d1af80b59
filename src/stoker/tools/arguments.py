"""The schemas that a call's arguments, and answers in JSON, are held to."""

from __future__ import annotations

import json
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

# What decides together with `properties` which further ones may come: such an object is left as it is.
_DECIDES_MORE = frozenset(
    {
        "$ref",
        "additionalProperties",
        "allOf",
        "anyOf",
        "dependentSchemas",
        "if",
        "minProperties",
        "oneOf",
        "patternProperties",
        "unevaluatedProperties",
    }
)
_MOST_DEPTH = 64  # of nested objects that are looked at
_FORMS: Mapping[str, type] = MappingProxyType({"properties": dict, "required": list})


def arguments_schema(parameters: str) -> str:
    """The schema of arguments: an object, without properties that the tool's parameters do not name, unless
    they say that others may come. What fits it fits the parameters.

    `parameters`: the JSON text of a JSON Schema. Raises `ValueError` if it is none of an object.
    """
    schema = json.loads(parameters)
    if not isinstance(schema, dict):
        raise ValueError(f"it is {parameters!r:.80}; allowed: a JSON Schema of an object")
    kind = schema.get("type", "object")
    if kind != "object":
        raise ValueError(f'type is {json.dumps(kind):.80}; allowed: "object"')
    for name, form in _FORMS.items():
        if name in schema and not isinstance(schema[name], form):
            what = "an object" if form is dict else "an array"
            raise ValueError(f"{name} is {json.dumps(schema[name]):.80}; allowed: {what}")
    return json.dumps(_closed({"type": "object", "properties": {}, **schema}, 0), ensure_ascii=False)


def closed_schema(schema: dict[str, Any]) -> dict[str, Any]:
    """`schema` with its objects closed: a property that it does not name may not come, unless it says that
    others may. What fits the result fits `schema`; without this, small models invent properties for ever."""
    closed: dict[str, Any] = _closed(schema, 0)
    return closed


def _closed(schema: Any, depth: int) -> Any:
    """`schema` with its objects closed, where nothing but `properties` says what they have."""
    if not isinstance(schema, dict) or depth > _MOST_DEPTH:
        return schema
    closed = dict(schema)
    properties = schema.get("properties")
    if isinstance(properties, dict) and not _DECIDES_MORE & schema.keys() and _names_all(schema):
        closed["additionalProperties"] = False
        closed["properties"] = {name: _closed(value, depth + 1) for name, value in properties.items()}
    if isinstance(schema.get("items"), dict):
        closed["items"] = _closed(schema["items"], depth + 1)
    return closed


def _names_all(schema: dict[str, Any]) -> bool:
    """False if it requires a property that it does not describe."""
    required = schema.get("required", [])
    return not isinstance(required, list) or all(
        isinstance(name, str) and name in schema["properties"] for name in required
    )
