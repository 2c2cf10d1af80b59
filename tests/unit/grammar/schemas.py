"""Schemas and values by chance, of all keywords together."""

from __future__ import annotations

import random
from typing import Any

NAMES = ("a", "b", "c", "aa")
PATTERNS = ("^a", "b$", "^[ab]+$", "^(?!ab)", "^(?=.*a).*b", '[^"]', "^a*$")
TYPES = ("null", "boolean", "integer", "number", "string", "array", "object")
KEYWORDS = (
    *("properties", "properties", "required", "additionalProperties", "patternProperties", "items"),
    *("prefixItems", "minItems", "maxItems", "minLength", "maxLength", "pattern", "minimum", "maximum"),
    *("exclusiveMinimum", "exclusiveMaximum", "multipleOf", "enum", "const", "allOf", "anyOf", "oneOf"),
    *("oneOf", "not", "not", "if", "contains", "uniqueItems", "propertyNames", "dependentRequired"),
    *("dependentSchemas", "minProperties", "maxProperties", "unevaluatedProperties", "$ref", "format"),
)
# Integers are never written as floats: a grammar has one way to write them.
SCALARS = (None, True, False, 0, 1, 2, 3, -1, 1.5, "", "a", "b", "ab", "aa", "ba", 'a"b', "c\\", "1.1.1.1")


class Chance:
    """Draws from one seed."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)

    def value(self, depth: int = 3) -> Any:
        """A JSON value."""
        kind = self.rng.random()
        if depth == 0 or kind < 0.5:
            return self.rng.choice(SCALARS)
        if kind < 0.75:
            return [self.value(depth - 1) for _ in range(self.rng.randrange(4))]
        return {name: self.value(depth - 1) for name in self.rng.sample(NAMES, self.rng.randrange(4))}

    def document(self) -> dict[str, Any]:
        """A schema with two definitions."""
        schema = self.schema(self.rng.randrange(1, 4))
        rest = schema if isinstance(schema, dict) else {"allOf": [schema]}
        return {**rest, "$defs": {"x": self.schema(1), "y": self.schema(2)}}

    def schema(self, depth: int) -> Any:
        """A schema of a few keywords."""
        rng = self.rng
        if depth < 0:
            return rng.choice([{"type": rng.choice(TYPES)}, True, {"const": self.value(0)}])
        if rng.random() < 0.06:
            return rng.choice([True, False, {}])
        schema: dict[str, Any] = {}
        if rng.random() < 0.7:
            kinds = [*TYPES, "object", "array", "object"]
            schema["type"] = rng.choice(kinds) if rng.random() < 0.8 else rng.sample(TYPES, 2)
        for _ in range(rng.randrange(1, 4)):
            word = rng.choice(KEYWORDS)
            if word == "if":
                schema |= {part: self.schema(depth - 1) for part in ("if", "then", "else")}
            else:
                schema[word] = self._of(word, depth)
        return schema

    def _of(self, word: str, depth: int) -> Any:
        rng = self.rng
        if word in ("minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"):
            return rng.choice([-1, 0, 1, 2, 1.5])
        if word.startswith(("min", "max")):
            return rng.randrange(4)
        if word in ("properties", "dependentSchemas", "patternProperties"):
            names = PATTERNS[:3] if word == "patternProperties" else NAMES
            return {name: self.schema(depth - 1) for name in rng.sample(names, rng.randrange(1, 3))}
        if word in ("allOf", "anyOf", "oneOf", "prefixItems"):
            return [self.schema(depth - 1) for _ in range(rng.randrange(1, 4))]
        fixed: dict[str, Any] = {
            "required": rng.sample(NAMES, rng.randrange(1, 3)),
            "pattern": rng.choice(PATTERNS),
            "multipleOf": rng.choice([1, 2, 0.5, 3]),
            "enum": [self.value(2) for _ in range(rng.randrange(1, 4))],
            "const": self.value(2),
            "uniqueItems": True,
            "dependentRequired": {rng.choice(NAMES): rng.sample(NAMES, rng.randrange(1, 3))},
            "$ref": "#/$defs/" + rng.choice("xy"),
            "format": "ipv4",
            "propertyNames": rng.choice(
                [
                    {"pattern": rng.choice(PATTERNS)},
                    *({"enum": ["a", "b"]}, {"maxLength": 1}, {"not": {"const": "a"}}),
                ]
            ),
        }
        return fixed[word] if word in fixed else self.schema(depth - 1)
