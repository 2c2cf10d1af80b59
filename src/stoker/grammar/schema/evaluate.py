"""Whether a value satisfies a JSON Schema: the meaning of every keyword, plainly.

This is what the rewriting must agree with, and what decides where the grammar alone cannot.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from fractions import Fraction
from types import MappingProxyType
from typing import Any

from stoker.api.errors import RequestError
from stoker.grammar.schema.document import Document
from stoker.grammar.schema.references import Place
from stoker.grammar.schema.strings import StringTests

# Schemas applied inside one another to one value; Python's own stack bears some 180. Values are nested by
# thirty levels at most in real use, and a schema that refers to itself for ever ends here too.
MOST_DEPTH = 120


class Evaluator:
    """Decides about values under one document."""

    def __init__(self, document: Document, strings: StringTests) -> None:
        self._document = document
        self._strings = strings
        self._depth = 0

    def accepts(self, place: Place, value: Any, only: frozenset[str] | None = None) -> bool:
        """Whether `value` satisfies the schema at `place`, or `only` some keywords. Raises RequestError."""
        self._depth += 1
        try:
            if self._depth > MOST_DEPTH:
                raise RequestError(
                    f"the schema at {place.at} refers to itself without end, or a value is nested too deeply"
                )
            keywords = self._document.keywords(place)
            for name in keywords:
                test = _TESTS.get(name)
                if test is None or (only is not None and name not in only):
                    continue
                if not test(self, place, keywords, value):
                    return False
            return True
        finally:
            self._depth -= 1

    def child(self, place: Place, value: Any, *steps: str | int) -> bool:
        """Whether `value` satisfies the schema that `steps` lead to from the keywords at `place`."""
        schema: Any = self._document.keywords(place)
        for step in steps:
            schema = schema[step]
        return self.accepts(self._document.child(place, schema, *steps), value)

    # --- keywords that need more than a line -------------------------------------------------------

    def _reference(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return self.accepts(self._document.follow(place), value)

    def _conditional(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        branch = "then" if self.child(place, value, "if") else "else"
        return branch not in keywords or self.child(place, value, branch)

    def _properties(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return not isinstance(value, dict) or all(
            self.child(place, value[name], "properties", name)
            for name in keywords["properties"]
            if name in value
        )

    def _patterns(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return not isinstance(value, dict) or all(
            self.child(place, inner, "patternProperties", pattern)
            for pattern in keywords["patternProperties"]
            for name, inner in value.items()
            if self._strings.finds(pattern, name)
        )

    def _additional(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return not isinstance(value, dict) or all(
            self.child(place, inner, "additionalProperties")
            for name, inner in value.items()
            if not self.is_named(keywords, name)
        )

    def is_named(self, keywords: dict[str, Any], name: str) -> bool:
        """Whether `properties` or `patternProperties` say something of a property."""
        return name in keywords.get("properties", {}) or any(
            self._strings.finds(pattern, name) for pattern in keywords.get("patternProperties", {})
        )

    def _contains(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        if not isinstance(value, list):
            return True
        found = sum(self.child(place, item, "contains") for item in value)
        most = keywords.get("maxContains")
        return found >= keywords.get("minContains", 1) and (most is None or found <= most)

    def _dependents(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return not isinstance(value, dict) or all(
            self.child(place, value, "dependentSchemas", name)
            for name in keywords["dependentSchemas"]
            if name in value
        )

    def _unevaluated_properties(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        if not isinstance(value, dict):
            return True
        known = self._evaluated(place, value)
        return all(
            self.child(place, inner, "unevaluatedProperties")
            for name, inner in value.items()
            if name not in known
        )

    def _unevaluated_items(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        if not isinstance(value, list):
            return True
        known = self._evaluated(place, value)
        return all(
            self.child(place, item, "unevaluatedItems") for at, item in enumerate(value) if at not in known
        )

    def _evaluated(self, place: Place, value: Any) -> set[Any]:
        """The names or indices that the keywords at `place`, all but unevaluated..., have seen."""
        keywords, found = self._document.keywords(place), set[Any]()
        if isinstance(value, dict):
            names = list(value)
            if "additionalProperties" in keywords:
                return set(names)
            found.update(name for name in names if self.is_named(keywords, name))
        else:
            if "items" in keywords:
                return set(range(len(value)))
            found.update(range(len(keywords.get("prefixItems", ()))))
            if "contains" in keywords:
                found.update(at for at, item in enumerate(value) if self.child(place, item, "contains"))
        for inner in self._in_place(place, keywords, value):
            if self.accepts(inner, value):
                found |= self._evaluated(inner, value)
                unevaluated = "unevaluatedProperties" if isinstance(value, dict) else "unevaluatedItems"
                if unevaluated in self._document.keywords(inner):
                    return set(value) if isinstance(value, dict) else set(range(len(value)))
        return found

    def _in_place(self, place: Place, keywords: dict[str, Any], value: Any) -> list[Place]:
        document, found = self._document, list[Place]()
        if "$ref" in keywords:
            found.append(document.follow(place))
        for name in ("allOf", "anyOf", "oneOf"):
            found += [document.child(place, x, name, at) for at, x in enumerate(keywords.get(name, ()))]
        if isinstance(value, dict):
            for name, schema in keywords.get("dependentSchemas", {}).items():
                if name in value:
                    found.append(document.child(place, schema, "dependentSchemas", name))
        if "if" in keywords:
            branch = "then" if self.child(place, value, "if") else "else"
            if branch == "then":
                found.append(document.child(place, keywords["if"], "if"))
            if branch in keywords:
                found.append(document.child(place, keywords[branch], branch))
        return found

    def _pattern(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return not isinstance(value, str) or self._strings.finds(keywords["pattern"], value)

    def _format(self, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return not isinstance(value, str) or self._strings.has_format(keywords["format"], value)


def type_of(value: Any) -> str:
    """The JSON type of a value; every number is a number."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return "boolean"
    if isinstance(value, (int, float)):
        return "number"
    if isinstance(value, str):
        return "string"
    return "array" if isinstance(value, list) else "object"


def same(left: Any, right: Any) -> bool:
    """Equality of JSON values: 1 is 1.0, and neither is true."""
    if type_of(left) != type_of(right):
        return False
    if isinstance(left, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(value, right[name]) for name, value in left.items())
    return bool(left == right)


def distinct_key(value: Any) -> Any:
    """A hashable value that is equal for two JSON values exactly if `same` says that they are."""
    if isinstance(value, list):
        return ("array", *map(distinct_key, value))
    if isinstance(value, dict):
        return ("object", frozenset((name, distinct_key(inner)) for name, inner in value.items()))
    return (type_of(value), value)


def _has_type(value: Any, names: Any) -> bool:
    found = type_of(value)
    for name in names if isinstance(names, list) else [names]:
        if name == found or (name == "integer" and found == "number" and value == value // 1):
            return True
    return False


def _exact(value: float) -> Fraction:
    """The number as it is written in decimals, not as binary floating point holds it."""
    return Fraction(str(value))


def _is_multiple(value: Any, step: Any) -> bool:
    if isinstance(value, float) and not math.isfinite(value):  # 1e999 as Python reads it
        return False
    return (_exact(value) / _exact(step)).denominator == 1


_Compare = Callable[[Any, Any], bool]
_Test = Callable[[Evaluator, Place, dict[str, Any], Any], bool]


def _number(holds: _Compare, name: str) -> _Test:
    return lambda self, place, keywords, value: type_of(value) != "number" or holds(value, keywords[name])


def _length(kind: type[str] | type[list[Any]] | type[dict[str, Any]], holds: _Compare, name: str) -> _Test:
    def test(self: Evaluator, place: Place, keywords: dict[str, Any], value: Any) -> bool:
        return not isinstance(value, kind) or holds(len(value), keywords[name])

    return test


_TESTS: Mapping[str, _Test] = MappingProxyType(
    {
        "$ref": Evaluator._reference,
        "type": lambda self, place, k, v: _has_type(v, k["type"]),
        "enum": lambda self, place, k, v: any(same(v, x) for x in k["enum"]),
        "const": lambda self, place, k, v: same(v, k["const"]),
        "not": lambda self, place, k, v: not self.child(place, v, "not"),
        "allOf": lambda self, place, k, v: all(
            self.child(place, v, "allOf", i) for i in range(len(k["allOf"]))
        ),
        "anyOf": lambda self, place, k, v: any(
            self.child(place, v, "anyOf", i) for i in range(len(k["anyOf"]))
        ),
        "oneOf": lambda self, place, k, v: (
            sum(self.child(place, v, "oneOf", i) for i in range(len(k["oneOf"]))) == 1
        ),
        "if": Evaluator._conditional,
        "minimum": _number(lambda v, x: v >= x, "minimum"),
        "maximum": _number(lambda v, x: v <= x, "maximum"),
        "exclusiveMinimum": _number(lambda v, x: v > x, "exclusiveMinimum"),
        "exclusiveMaximum": _number(lambda v, x: v < x, "exclusiveMaximum"),
        "multipleOf": _number(_is_multiple, "multipleOf"),
        "minLength": _length(str, lambda n, x: n >= x, "minLength"),
        "maxLength": _length(str, lambda n, x: n <= x, "maxLength"),
        "pattern": Evaluator._pattern,
        "format": Evaluator._format,
        "minItems": _length(list, lambda n, x: n >= x, "minItems"),
        "maxItems": _length(list, lambda n, x: n <= x, "maxItems"),
        "prefixItems": lambda self, place, k, v: (
            not isinstance(v, list)
            or all(self.child(place, x, "prefixItems", i) for i, x in enumerate(v[: len(k["prefixItems"])]))
        ),
        "items": lambda self, place, k, v: (
            not isinstance(v, list)
            or all(self.child(place, x, "items") for x in v[len(k.get("prefixItems", ())) :])
        ),
        "uniqueItems": lambda self, place, k, v: (
            not isinstance(v, list) or len(v) == len({distinct_key(x) for x in v})
        ),
        "contains": Evaluator._contains,
        "minProperties": _length(dict, lambda n, x: n >= x, "minProperties"),
        "maxProperties": _length(dict, lambda n, x: n <= x, "maxProperties"),
        "required": lambda self, place, k, v: not isinstance(v, dict) or all(x in v for x in k["required"]),
        "properties": Evaluator._properties,
        "patternProperties": Evaluator._patterns,
        "additionalProperties": Evaluator._additional,
        "propertyNames": lambda self, place, k, v: (
            not isinstance(v, dict) or all(self.child(place, x, "propertyNames") for x in v)
        ),
        "dependentRequired": lambda self, place, k, v: (
            not isinstance(v, dict)
            or all(y in v for x, needed in k["dependentRequired"].items() if x in v for y in needed)
        ),
        "dependentSchemas": Evaluator._dependents,
        "unevaluatedProperties": Evaluator._unevaluated_properties,
        "unevaluatedItems": Evaluator._unevaluated_items,
    }
)
