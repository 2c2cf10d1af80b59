"""What a JSON Schema does not accept, as a schema."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from stoker.grammar.schema.document import TYPES
from stoker.grammar.schema.evaluate import type_of
from stoker.grammar.schema.over import FALSE, TRUE, Over, all_of, any_of
from stoker.grammar.schema.references import Place
from stoker.grammar.schema.strings import none_of, to_rust

if TYPE_CHECKING:
    from stoker.grammar.schema.rewrite import Rewriter

MOST_BRANCHES = 64
MOST_DEPTH = 24  # of negations inside each other
MOST_TEXT = 2000  # characters of strings that are left out by a pattern

_UNKNOWN = Over(True, False)  # at least what is wanted, and much else


class Negation:
    """Negates the places of one document. What it cannot tell exactly it makes too wide, and says so."""

    def __init__(self, rewriter: Rewriter) -> None:
        self._rewriter = rewriter
        self._known: dict[int, Over] = {}
        self._depth = 0

    @property
    def counts_are_relaxed(self) -> bool:
        """Whether numbers of properties are left to tests everywhere."""
        return "minProperties" in self._rewriter.relaxed

    def over_not(self, place: Place) -> Over:
        """A schema that accepts at least all that the one at `place` does not."""
        if isinstance(place.schema, bool):
            return FALSE if place.schema else TRUE
        known = self._known.get(id(place.schema))
        if known is not None:
            return known
        if self._depth >= MOST_DEPTH:
            return _UNKNOWN
        self._depth += 1
        self._known[id(place.schema)] = _UNKNOWN  # for a schema that refers to itself
        try:
            found = self._negate(place)
        finally:
            self._depth -= 1
            del self._known[id(place.schema)]
        return found

    def _negate(self, place: Place) -> Over:
        keywords = self._rewriter.document.keywords(place)
        if "enum" in keywords or "const" in keywords:
            from stoker.grammar.schema.rewrite import finite_values

            return not_values(finite_values(self._rewriter, place), self.counts_are_relaxed)
        ways: list[Over] = []
        for word in keywords:
            rule = _RULES.get(word)
            if rule is not None:
                ways += rule(self, place, keywords)
            if len(ways) > MOST_BRANCHES:
                return _UNKNOWN
        return any_of(ways)

    # --- keywords ----------------------------------------------------------------------------------

    def child(self, place: Place, *steps: str | int) -> Over:
        """The negation of what `steps` lead to from the keywords at `place`."""
        schema: Any = self._rewriter.document.keywords(place)
        for step in steps:
            schema = schema[step]
        return self.over_not(self._rewriter.document.child(place, schema, *steps))

    def over(self, place: Place, *steps: str | int) -> Over:
        """What `steps` lead to from the keywords at `place`, rewritten."""
        schema: Any = self._rewriter.document.keywords(place)
        for step in steps:
            schema = schema[step]
        return self._rewriter.over_child(place, schema, *steps)

    def _reference(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [self.over_not(self._rewriter.document.follow(place))]

    def _type(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        names = keywords["type"] if isinstance(keywords["type"], list) else [keywords["type"]]
        others = [name for name in TYPES if name not in names]
        if "integer" in names and "number" in others:
            others.remove("number")
            # Numbers that are no integers cannot be told by a grammar of ranges.
            return [Over({"type": [*others, "number"]}, False)]
        return [Over({"type": others}, True)] if others else []

    def _pattern(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [Over({"type": "string"}, False)]

    def _properties(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        ways = []
        for name in keywords["properties"]:
            part = self.child(place, "properties", name)
            if part.schema is not False:
                schema = {"type": "object", "properties": {name: part.schema}, "required": [name]}
                ways.append(Over(schema, part.exact))
        return ways

    def _some_property(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        """For keywords that speak of names that are not listed: some property is wrong."""
        return [Over({"type": "object"}, False)]

    def _required(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [Over({"type": "object", "properties": {name: False}}, True) for name in keywords["required"]]

    def _dependent_required(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [
            Over({"type": "object", "properties": {other: False}, "required": [name]}, True)
            for name, others in keywords["dependentRequired"].items()
            for other in others
            if other != name
        ]

    def _dependent_schemas(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [
            all_of(
                [
                    Over({"type": "object", "required": [name]}, True),
                    self.child(place, "dependentSchemas", name),
                ]
            )
            for name in keywords["dependentSchemas"]
        ]

    def _prefix(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        ways = []
        for at in range(len(keywords["prefixItems"])):
            part = self.child(place, "prefixItems", at)
            if part.schema is not False:
                items = [True] * at + [part.schema]
                ways.append(Over({"type": "array", "prefixItems": items, "minItems": at + 1}, part.exact))
        return ways

    def _items(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        least = len(keywords.get("prefixItems", ())) + 1
        part = self.child(place, "items")
        if part == FALSE:
            return []
        return [Over({"type": "array", "minItems": least}, part == TRUE)]

    def _contains(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        if keywords.get("minContains", 1) != 1 or "maxContains" in keywords:
            return [Over({"type": "array"}, False)]
        part = self.child(place, "contains")
        return [Over({"type": "array", "items": part.schema}, part.exact)]

    def _unique(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [Over({"type": "array", "minItems": 2}, False)]

    def _all_of(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [self.child(place, "allOf", at) for at in range(len(keywords["allOf"]))]

    def _any_of(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [all_of([self.child(place, "anyOf", at) for at in range(len(keywords["anyOf"]))])]

    def _one_of(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        """None of them, or two."""
        count = len(keywords["oneOf"])
        parts = [self.over(place, "oneOf", at) for at in range(count)]
        ways = [all_of([self.child(place, "oneOf", at) for at in range(count)])]
        for at in range(count):
            for other in range(at):
                if not self._rewriter.are_disjoint(parts[at].schema, parts[other].schema):
                    ways.append(all_of([parts[other], parts[at]]))
        return ways

    def _not(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        return [self.over(place, "not")]

    def _if(self, place: Place, keywords: dict[str, Any]) -> list[Over]:
        ways = []
        if "then" in keywords:
            ways.append(all_of([self.over(place, "if"), self.child(place, "then")]))
        if "else" in keywords:
            ways.append(all_of([self.child(place, "if"), self.child(place, "else")]))
        return ways


_Rule = Callable[[Negation, Place, dict[str, Any]], list[Over]]


def _bound(type_name: str, word: str, opposite: str, step: int) -> _Rule:
    def rule(self: Negation, place: Place, keywords: dict[str, Any]) -> list[Over]:
        if type_name == "object" and self.counts_are_relaxed:
            return [Over({"type": "object"}, False)]
        value = keywords[word] + step
        if step and value < 0:
            return []
        return [Over({"type": type_name, opposite: value}, True)]

    return rule


def _wide(type_name: str) -> _Rule:
    return lambda self, place, keywords: [Over({"type": type_name}, False)]


_RULES: Mapping[str, _Rule] = MappingProxyType(
    {
        "$ref": Negation._reference,
        "type": Negation._type,
        "not": Negation._not,
        "allOf": Negation._all_of,
        "anyOf": Negation._any_of,
        "oneOf": Negation._one_of,
        "if": Negation._if,
        "minimum": _bound("number", "minimum", "exclusiveMaximum", 0),
        "maximum": _bound("number", "maximum", "exclusiveMinimum", 0),
        "exclusiveMinimum": _bound("number", "exclusiveMinimum", "maximum", 0),
        "exclusiveMaximum": _bound("number", "exclusiveMaximum", "minimum", 0),
        "multipleOf": _wide("number"),
        "minLength": _bound("string", "minLength", "maxLength", -1),
        "maxLength": _bound("string", "maxLength", "minLength", 1),
        "pattern": Negation._pattern,
        "format": _wide("string"),
        "minItems": _bound("array", "minItems", "maxItems", -1),
        "maxItems": _bound("array", "maxItems", "minItems", 1),
        "prefixItems": Negation._prefix,
        "items": Negation._items,
        "contains": Negation._contains,
        "uniqueItems": Negation._unique,
        "unevaluatedItems": _wide("array"),
        "minProperties": _bound("object", "minProperties", "maxProperties", -1),
        "maxProperties": _bound("object", "maxProperties", "minProperties", 1),
        "required": Negation._required,
        "properties": Negation._properties,
        "patternProperties": Negation._some_property,
        "additionalProperties": Negation._some_property,
        "propertyNames": Negation._some_property,
        "unevaluatedProperties": _wide("object"),
        "dependentRequired": Negation._dependent_required,
        "dependentSchemas": Negation._dependent_schemas,
    }
)


# --- all but some values -------------------------------------------------------------------------------


def not_values(values: Iterable[Any], relaxed: bool = False) -> Over:
    """Every JSON value but these. `relaxed`: numbers of properties are left to tests."""
    by_type: dict[str, list[Any]] = {}
    for value in values:
        by_type.setdefault(type_of(value), []).append(value)
    ways = [Over({"type": [name for name in TYPES if name not in by_type]}, True)]
    if len(by_type) == len(TYPES):
        ways = []
    for name, excluded in by_type.items():
        if name == "boolean":
            rest = [value for value in (False, True) if value not in excluded]
            ways.append(Over({"enum": rest}, True) if rest else FALSE)
        elif name == "string":
            ways.append(_not_strings(excluded))
        elif name == "number":
            ways.append(_not_numbers(excluded))
        elif name == "array":
            ways.append(all_of([_not_array(value, relaxed) for value in excluded]))
        elif name == "object":
            ways.append(all_of([_not_object(value, relaxed) for value in excluded]))
    return any_of(ways)


def _not_strings(excluded: list[str]) -> Over:
    if sum(map(len, excluded)) > MOST_TEXT:
        return Over({"type": "string"}, False)
    return Over({"type": "string", "pattern": to_rust(none_of(excluded))}, True)


def _not_numbers(excluded: list[Any]) -> Over:
    ordered = sorted(set(excluded))
    bounds: list[dict[str, Any]] = [{"type": "number"} for _ in range(len(ordered) + 1)]
    for at, value in enumerate(ordered):
        bounds[at]["exclusiveMaximum"] = value
        bounds[at + 1]["exclusiveMinimum"] = value
    return any_of([Over(bound, True) for bound in bounds])


def _not_array(value: list[Any], relaxed: bool) -> Over:
    size = len(value)
    ways = [Over({"type": "array", "minItems": size + 1}, True)]
    if size:
        ways.append(Over({"type": "array", "maxItems": size - 1}, True))
    for at, item in enumerate(value):
        part = not_values([item], relaxed)
        items = [True] * at + [part.schema]
        ways.append(
            Over({"type": "array", "minItems": size, "maxItems": size, "prefixItems": items}, part.exact)
        )
    return any_of(ways)


def _not_object(value: dict[str, Any], relaxed: bool) -> Over:
    names = list(value)
    ways = [Over({"type": "object", "properties": {name: False}}, True) for name in names]
    for name in names:
        part = not_values([value[name]], relaxed)
        schema = {"type": "object", "properties": {name: part.schema}, "required": [name]}
        ways.append(Over(schema, part.exact))
    # One property more than these: all of them are required, so that llguidance can count.
    more: dict[str, Any] = {"type": "object", "required": names, "properties": dict.fromkeys(names, True)}
    if relaxed:
        ways.append(Over(more, False))
    else:
        ways.append(Over({**more, "minProperties": len(names) + 1}, True))
    return any_of(ways)
