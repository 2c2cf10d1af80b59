"""A JSON Schema as written: the keywords at a place, of any draft, brought to one form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from stoker.api.errors import RequestError
from stoker.grammar.schema.references import Place, References

TYPES = ("null", "boolean", "number", "string", "array", "object")

COUNTS = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties"}
    | {"minContains", "maxContains"}
)
NUMBERS = frozenset({"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"})
_SCHEMAS = frozenset(
    {"not", "if", "then", "else", "contains", "propertyNames", "items", "additionalItems"}
    | {"additionalProperties", "unevaluatedItems", "unevaluatedProperties"}
)
_LISTS = frozenset({"allOf", "anyOf", "oneOf", "prefixItems"})
_MAPS = frozenset({"properties", "patternProperties", "dependentSchemas"})
_STRINGS = frozenset({"pattern", "format", "$ref", "$dynamicRef", "$recursiveRef"})
_OTHERS = frozenset({"type", "enum", "const", "required", "uniqueItems", "dependentRequired", "dependencies"})
KEYWORDS = COUNTS | NUMBERS | _SCHEMAS | _LISTS | _MAPS | _STRINGS | _OTHERS

_SIBLINGS_IGNORED = re.compile(r"draft-0[3467]\b")  # in these drafts nothing counts beside a $ref
_ALLOWED: Mapping[str, str] = MappingProxyType(
    {
        "type": "null, boolean, integer, number, string, array, object, or a list of them",
        "enum": "a list",
        "required": "a list of strings",
        "uniqueItems": "true or false",
        "dependentRequired": "an object of lists of strings",
        "dependencies": "an object of lists of strings and schemas",
    }
)


class Document:
    """One schema with all that its references can reach. Raises RequestError for what is no schema."""

    def __init__(self, schema: Any) -> None:
        if not isinstance(schema, (dict, bool)):
            raise RequestError(f"json_schema is {schema!r:.60}; allowed: an object, true or false")
        dialect = schema.get("$schema") if isinstance(schema, dict) else None
        self._siblings_ignored = isinstance(dialect, str) and bool(_SIBLINGS_IGNORED.search(dialect))
        self._references = References(
            schema if isinstance(schema, dict) else {"allOf": [schema]},
            siblings_ignored=self._siblings_ignored,
        )
        self.root = self._references.root
        self._keywords: dict[int, dict[str, Any]] = {}  # by id of the schema, which the root keeps alive

    def child(self, place: Place, schema: Any, *steps: str | int) -> Place:
        """The schema under `place` that `steps` lead to."""
        return self._references.child(place, schema, *steps)

    def follow(self, place: Place) -> Place:
        """What the $ref at `place` means. Raises RequestError if it leads nowhere, or back to itself."""
        seen: set[int] = set()
        while True:
            if id(place.schema) in seen:
                raise RequestError(f"$ref at {place.at} refers to nothing but itself")
            seen.add(id(place.schema))
            static = "$ref" in place.schema
            step = self._references.follow if static else self._references.follow_dynamic
            place = step(place, self.keywords(place)["$ref"])
            if set(self.keywords(place)) != {"$ref"}:
                return place

    def keywords(self, place: Place) -> dict[str, Any]:
        """The keywords that count at `place`, in the form of 2020-12 and in the schema's order.

        Annotations and unknown words are left out. Raises RequestError for a value that a keyword cannot
        have.
        """
        if isinstance(place.schema, bool):
            return {} if place.schema else {"not": True}
        known = self._keywords.get(id(place.schema))
        if known is None:
            known = self._read(place)
            self._keywords[id(place.schema)] = known
        return known

    def _read(self, place: Place) -> dict[str, Any]:
        schema = place.schema
        if self._siblings_ignored and isinstance(schema.get("$ref"), str):
            return {"$ref": schema["$ref"]}
        found: dict[str, Any] = {}
        for name, value in schema.items():
            if name in KEYWORDS:
                _check_shape(name, value, place.at)
                _add(found, schema, name, value)
        return found


def _add(found: dict[str, Any], schema: dict[str, Any], name: str, value: Any) -> None:
    """Put one keyword of any draft into `found`, as of 2020-12."""
    if name in ("exclusiveMinimum", "exclusiveMaximum") and isinstance(value, bool):
        return  # of draft 4: dealt with at minimum and maximum
    if name in ("minimum", "maximum") and schema.get("exclusiveM" + name[1:]) is True:
        name = "exclusiveM" + name[1:]
    if name == "items" and isinstance(value, list):
        if value:
            found["prefixItems"] = value
        if "additionalItems" in schema:
            found["items"] = schema["additionalItems"]
    elif name == "dependencies":
        required = {key: [need] for key, need in value.items() if isinstance(need, str)}
        required |= {key: need for key, need in value.items() if isinstance(need, list)}
        schemas = {key: need for key, need in value.items() if isinstance(need, (dict, bool))}
        if required:
            found["dependentRequired"] = found.get("dependentRequired", {}) | required
        if schemas:
            found["dependentSchemas"] = found.get("dependentSchemas", {}) | schemas
    elif name in ("dependentRequired", "dependentSchemas"):
        found[name] = found.get(name, {}) | value
    elif name in ("$dynamicRef", "$recursiveRef"):
        found["$ref"] = value
    elif name in COUNTS:
        found[name] = int(value)
    elif name != "additionalItems" and not (name == "uniqueItems" and not value):
        found[name] = value


def _check_shape(name: str, value: Any, at: str) -> None:
    if name in COUNTS:
        good, allowed = _is_number(value) and 0 <= value == value // 1, "a whole number, 0 or more"
    elif name == "multipleOf":
        good, allowed = _is_number(value) and value > 0, "a number above 0"
    elif name in NUMBERS:
        good = _is_number(value) or (name.startswith("exclusive") and isinstance(value, bool))
        allowed = "a number"
    elif name in _LISTS:
        good = isinstance(value, list) and bool(value) and all(map(_is_schema, value))
        allowed = "a list of schemas, not empty"
    elif name in _MAPS:
        good = isinstance(value, dict) and all(map(_is_schema, value.values()))
        allowed = "an object of schemas"
    elif name in _SCHEMAS:
        several = name == "items" and isinstance(value, list) and all(map(_is_schema, value))
        good, allowed = several or _is_schema(value), "a schema"
    elif name in _STRINGS:
        good, allowed = isinstance(value, str), "a string"
    else:
        good, allowed = _other_shape(name, value), _ALLOWED.get(name, "")
    if not good:
        raise RequestError(f"{name} at {at} is {value!r:.80}; allowed: {allowed}")


def _other_shape(name: str, value: Any) -> bool:
    if name == "type":
        names = value if isinstance(value, list) else [value]
        return bool(names) and all(isinstance(x, str) and x in (*TYPES, "integer") for x in names)
    if name == "enum":
        return isinstance(value, list)
    if name == "required":
        return _is_names(value)
    if name == "uniqueItems":
        return isinstance(value, bool)
    if name == "dependentRequired":
        return isinstance(value, dict) and all(map(_is_names, value.values()))
    if name == "dependencies":
        return isinstance(value, dict) and all(
            _is_schema(x) or isinstance(x, str) or _is_names(x) for x in value.values()
        )
    return True


def _is_schema(value: Any) -> bool:
    return isinstance(value, (dict, bool))


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(x, str) for x in value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and value - value == 0
