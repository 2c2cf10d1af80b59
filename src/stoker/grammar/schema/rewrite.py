"""A JSON Schema in the dialect that llguidance compiles, which lacks some keywords.

What comes out accepts every value that the schema accepts. Where it accepts more, the keyword and its place
are in `residue`: those are tested on the values themselves as they are completed (`checks.py`).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from stoker.api.errors import RequestError
from stoker.grammar.schema.document import TYPES, Document
from stoker.grammar.schema.evaluate import Evaluator, type_of
from stoker.grammar.schema.negate import Negation
from stoker.grammar.schema.objects import object_part
from stoker.grammar.schema.over import FALSE, TRUE, Over, all_of, any_of
from stoker.grammar.schema.references import Place
from stoker.grammar.schema.strings import (
    NATIVE_FORMATS,
    PATTERN_FORMATS,
    StringTests,
    split_pattern,
    to_rust,
)

MOST_VISITS = 20_000  # schemas looked at in all passes; the largest of real use take a few thousand
MOST_DEPTH = 120  # schemas inside one another, references followed by negation included
MOST_PASSES = 6
MOST_WAYS = 128  # branches that rewriting may multiply a schema into at one place
MOST_EMPTY_TESTS = 400  # intersections of branches that are tested for being empty, up to a millisecond each
EXACT_INTEGERS = 1 << 53  # beyond it llguidance's bounds, which are doubles, are not exact

_PLAIN = frozenset(
    {"minLength", "maxLength", "minItems", "maxItems"}
    | {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum", "multipleOf"}
)
_OBJECT_WORDS = frozenset({"properties", "patternProperties", "additionalProperties", "required"})


@dataclass(frozen=True, slots=True)
class Residue:
    """Keywords at a place that the grammar does not enforce fully."""

    place: Place
    keywords: frozenset[str]


@dataclass(frozen=True, slots=True)
class Rewritten:
    """What is compiled, and what is left to be tested."""

    schema: Any
    residue: tuple[Residue, ...]
    ignored: tuple[str, ...]  # formats that JSON Schema does not define, and where


def rewrite(document: Document, strings: StringTests, *, relaxed: frozenset[str] = frozenset()) -> Rewritten:
    """Rewrite a document. `relaxed` are keywords to be left to tests altogether.

    Raises RequestError for what cannot be enforced either way, and for a schema that is too large.
    """
    return Rewriter(document, strings, relaxed).run()


class Rewriter:
    """The state of rewriting one document. Runs in passes, since schemas refer to each other in circles: each
    pass believes what the last one found out about references, until nothing changes."""

    def __init__(self, document: Document, strings: StringTests, relaxed: frozenset[str]) -> None:
        self.document = document
        self.strings = strings
        self.evaluator = Evaluator(document, strings)
        self.relaxed = relaxed
        self.negation = Negation(self)
        self._residue: dict[int, tuple[Place, set[str]]] = {}
        self._names: dict[int, str] = {}  # of definitions, by id of the schema
        self._definitions: dict[str, Any] = {}
        self._last_definitions: dict[str, Any] = {}
        self._narrowed: set[int] = set()  # ids of schemas whose oneOf has branches that overlap
        self._exact: dict[str, bool] = {}  # by name of the definition, as of the last pass
        self._ignored: dict[str, None] = {}
        self._empty: dict[str, bool] = {}
        self._depth = self._visits = 0

    def run(self) -> Rewritten:
        """All passes."""
        before: Any = None
        for _ in range(MOST_PASSES):
            self._last_definitions, self._definitions = self._definitions, {}
            root = self.over(self.document.root)
            marks = {key: frozenset(words) for key, (_, words) in self._residue.items()}
            state = (root, json.dumps(self._definitions), dict(self._exact), marks)
            if state == before:
                break
            before = state
        residue = tuple(Residue(place, frozenset(words)) for place, words in self._residue.values())
        schema: Any = {} if root.schema is True else root.schema
        if schema is False:
            raise RequestError("json_schema contradicts itself: no value satisfies it")
        if self._definitions:
            schema = {**schema, "$defs": self._definitions}
        return Rewritten(schema, residue, tuple(self._ignored))

    # --- what the parts use ------------------------------------------------------------------------

    def over(self, place: Place) -> Over:
        """A schema that accepts all that the one at `place` does, and whether it accepts nothing else."""
        self._visits += 1
        self._depth += 1
        try:
            if self._visits > MOST_VISITS:
                raise RequestError(f"json_schema is too large: more than {MOST_VISITS} parts are to be read")
            if self._depth > MOST_DEPTH:
                raise RequestError(f"json_schema at {place.at} is nested deeper than {MOST_DEPTH} levels")
            keywords = self.document.keywords(place)
            if isinstance(place.schema, bool):
                return TRUE if place.schema else FALSE
            if "enum" in keywords or "const" in keywords:
                return self._finite(place, keywords)
            return self._parts(place, keywords)
        finally:
            self._depth -= 1

    def over_child(self, place: Place, schema: Any, *steps: str | int) -> Over:
        """The same for what `steps` lead to from `place`."""
        return self.over(self.document.child(place, schema, *steps))

    def leave(self, place: Place, *words: str) -> None:
        """Mark keywords at `place` as not enforced by the grammar."""
        self._residue.setdefault(id(place.schema), (place, set()))[1].update(words)

    def reference(self, place: Place) -> Over:
        """A reference to the rewritten schema that the $ref at `place` means."""
        target = self.document.follow(place)
        if isinstance(target.schema, bool):
            return TRUE if target.schema else FALSE
        name = self._names.setdefault(id(target.schema), f"d{len(self._names)}")
        if name not in self._definitions:
            self._definitions[name] = True  # while it is being made
            found = self.over(target)
            self._definitions[name] = found.schema
            self._exact[name] = found.exact
        return Over({"$ref": f"#/$defs/{name}"}, self._exact.get(name, True))

    def are_disjoint(self, left: Any, right: Any) -> bool:
        """Whether it can be proved that no value satisfies both of two rewritten schemas."""
        if not set(types_of(left)) & set(types_of(right)):
            return True
        key = json.dumps([left, right])
        known = self._empty.get(key)
        if known is None:
            definitions = {**self._last_definitions, **self._definitions}
            if len(self._empty) >= MOST_EMPTY_TESTS:
                return False
            known = self.strings.is_empty({"allOf": [left, right], "$defs": definitions})
            if known or "$ref" not in key or self._last_definitions:
                self._empty[key] = known
        return known

    # --- parts -------------------------------------------------------------------------------------

    def _finite(self, place: Place, keywords: dict[str, Any]) -> Over:
        """The few values there are, all other keywords decided on them here."""
        values = finite_values(self, place)
        if not values:
            return FALSE
        exact = [value for value in values if _is_exact(value)]
        if len(exact) == len(values):
            return Over({"enum": values}, exact=True)
        self.leave(place, "enum", "const")
        ways = [Over(_near(value), False) for value in values if not _is_exact(value)]
        return any_of([*([Over({"enum": exact}, True)] if exact else []), *ways])

    def _parts(self, place: Place, keywords: dict[str, Any]) -> Over:
        before: list[Over] = []
        base: dict[str, Any] = {}
        after: list[Over] = []
        last: list[Over] = []  # made by rewriting: they must not decide the order of properties
        opened = not any(word in keywords for word in _OBJECT_WORDS)
        exact = True
        for word in keywords:
            opened = opened or word in _OBJECT_WORDS
            part = self._in_place(place, keywords, word)
            if part is None:
                continue
            made = word == "oneOf" and id(place.schema) in self._narrowed
            (last if made else after if opened else before).append(part)
        exact &= self._plain(place, keywords, base)
        exact &= self._string(place, keywords, base, last)
        exact &= self._array(place, keywords, base)
        exact &= object_part(self, place, keywords, base, last)
        last += self._logic(place, keywords, last)
        typed = {"type": base.pop("type")} if "type" in base else {}
        whole = all_of([*before, Over(base, exact), *after, *last])
        if not typed or whole.schema is False:
            return whole
        if isinstance(whole.schema, dict) and "type" not in whole.schema:
            return Over({**typed, **whole.schema}, whole.exact)
        return all_of([Over(typed, True), whole])

    def _in_place(self, place: Place, keywords: dict[str, Any], word: str) -> Over | None:
        """What a keyword demands that applies other schemas to the same value."""
        if word == "$ref":
            return self.reference(place)
        if word not in ("allOf", "anyOf", "oneOf"):
            return None
        parts = [self.over_child(place, schema, word, at) for at, schema in enumerate(keywords[word])]
        if word == "allOf":
            return all_of(parts)
        whole = any_of(parts) if word == "anyOf" else self._one_of(place, keywords["oneOf"], parts)
        # Where the type of a value tells its branch, what is left of a branch is tested by the branch alone.
        if not whole.exact and not branches_by_type(self.document, place, word):
            self.leave(place, word)
        return whole

    def _one_of(self, place: Place, schemas: list[Any], parts: list[Over]) -> Over:
        """Each branch without what other branches that overlap it accept."""
        overlaps: list[list[int]] = [[] for _ in parts]
        for at, part in enumerate(parts):
            for other in range(at):
                if not self.are_disjoint(part.schema, parts[other].schema):
                    overlaps[at].append(other)
                    overlaps[other].append(at)
        if sum(map(len, overlaps)) > MOST_WAYS:
            return Over(any_of(parts).schema, exact=False)
        if any(overlaps):
            self._narrowed.add(id(place.schema))
        branches = []
        for at, part in enumerate(parts):
            without = [
                self.negation.over_not(self.document.child(place, schemas[other], "oneOf", other))
                for other in sorted(overlaps[at])
            ]
            branches.append(all_of([part, *without]))
        return any_of(branches)

    def _plain(self, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
        exact = True
        if "type" in keywords:
            base["type"] = keywords["type"]
        for word in _PLAIN_ORDER:
            if word in keywords:
                value = keywords[word]
                if _is_exact(value) and word not in self.relaxed:
                    base[word] = value
                    continue
                self.leave(place, word)
                exact = False
                if word != "multipleOf":
                    base[word] = _beyond(value, up="aximum" in word or word.startswith("max"))
        return exact

    def _string(self, place: Place, keywords: dict[str, Any], base: dict[str, Any], last: list[Over]) -> bool:
        if "string" not in types_of(keywords):
            return True
        exact = True
        if "pattern" in keywords:
            exact = self._pattern(place, keywords["pattern"], base, last)
        name = keywords.get("format")
        if name in NATIVE_FORMATS:
            base["format"] = name
        elif name is not None and name in PATTERN_FORMATS:
            last.append(Over({"pattern": to_rust(PATTERN_FORMATS[name])}, exact=True))
        elif name is not None:
            self._ignored[f"{name!r:.60} at {place.at}"] = None
        return exact

    def _pattern(self, place: Place, pattern: str, base: dict[str, Any], last: list[Over]) -> bool:
        split = split_pattern(pattern)
        if split is None:
            raise RequestError(
                f"pattern at {place.at} is {pattern!r:.200}, which cannot be enforced: lookaround is only "
                "supported right after the beginning (^)"
            )
        for part in (*split.wanted, *split.unwanted):
            if not self.strings.reads(part):
                raise RequestError(f"pattern at {place.at} is {pattern!r:.200}, which cannot be enforced")
        base["pattern"] = split.wanted[0]
        last += [Over({"pattern": part}, exact=True) for part in split.wanted[1:]]
        if split.unwanted:
            self.leave(place, "pattern")
        return not split.unwanted

    def _array(self, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
        if "array" not in types_of(keywords):
            return True
        exact = True
        if "prefixItems" in keywords:
            parts = [
                self.over_child(place, x, "prefixItems", at) for at, x in enumerate(keywords["prefixItems"])
            ]
            base["prefixItems"] = [part.schema for part in parts]
            exact &= all(part.exact for part in parts)
        rest = "items" if "items" in keywords else "unevaluatedItems"
        alone = not any(word in keywords for word in _APPLICATORS)
        if rest in keywords and (rest == "items" or (alone and "contains" not in keywords)):
            part = self.over_child(place, keywords[rest], rest)
            base["items"] = part.schema
            exact &= part.exact
        elif rest in keywords:
            self.leave(place, "unevaluatedItems")
            exact = False
        if "contains" in keywords:
            exact &= self._contains(place, keywords, base)
        if "uniqueItems" in keywords:
            exact &= self._unique(place, keywords, base)
        return exact

    def _contains(self, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
        least, most = keywords.get("minContains", 1), keywords.get("maxContains")
        base["minItems"] = max(base.get("minItems", 0), least)
        if keywords["contains"] in (True, {}):
            if most is not None:
                base["maxItems"] = min(base.get("maxItems", most), most)
            return True
        if least == 0 and most is None:
            return True
        self.over_child(place, keywords["contains"], "contains")  # so that what is wrong in it is said
        self.leave(place, "contains")
        return False

    def _unique(self, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
        most = base.get("maxItems")
        if most is not None and most <= 1:
            return True
        items = base.get("items")
        if isinstance(items, dict) and "enum" in items and "prefixItems" not in base:
            different = len(items["enum"])
            base["maxItems"] = different if most is None else min(most, different)
        self.leave(place, "uniqueItems")
        return False

    def _logic(self, place: Place, keywords: dict[str, Any], before: list[Over]) -> list[Over]:
        """`not` and `if`, as alternatives; left to tests where they would be too many."""
        parts: list[Over] = []
        if "not" in keywords:
            part = self.negation.over_not(self.document.child(place, keywords["not"], "not"))
            if not part.exact:
                self.leave(place, "not")
            parts.append(part)
        if "if" in keywords and ("then" in keywords or "else" in keywords):
            condition = self.document.child(place, keywords["if"], "if")
            then, other = (
                self.over_child(place, keywords[word], word) if word in keywords else TRUE
                for word in ("then", "else")
            )
            part = any_of(
                [all_of([self.over(condition), then]), all_of([self.negation.over_not(condition), other])]
            )
            if not part.exact:
                self.leave(place, "if")
            parts.append(part)
        return parts


_PLAIN_ORDER = tuple(sorted(_PLAIN))
_APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")


def branches_by_type(document: Document, place: Place, word: str) -> bool:
    """Whether no two branches of an `anyOf` or `oneOf` accept values of the same type."""
    seen: set[str] = set()
    for at, schema in enumerate(document.keywords(place)[word]):
        types = set(declared_types(document, document.child(place, schema, word, at)))
        if seen & types:
            return False
        seen |= types
    return True


def declared_types(document: Document, place: Place) -> tuple[str, ...]:
    """The JSON types of the values that a place may accept, as it or what it refers to declares them."""
    keywords = document.keywords(place)
    if "$ref" in keywords:
        place = document.follow(place)
        return types_of(document.keywords(place) if isinstance(place.schema, dict) else place.schema)
    return types_of(keywords if isinstance(place.schema, dict) else place.schema)


def types_of(schema: Any) -> tuple[str, ...]:
    """The JSON types that a schema may accept, as far as its own `type` and `enum` say; integer is number."""
    if schema is False:
        return ()
    if not isinstance(schema, dict):
        return TYPES
    if "enum" in schema or "const" in schema:
        values = [schema["const"]] if "const" in schema else schema["enum"]
        return tuple(dict.fromkeys(type_of(value) for value in values))
    names = schema.get("type", list(TYPES))
    names = names if isinstance(names, list) else [names]
    return tuple(dict.fromkeys("number" if name == "integer" else name for name in names))


def finite_values(rewriter: Rewriter, place: Place) -> list[Any]:
    """The values of `enum` and `const` at `place` that satisfy all other keywords too."""
    keywords = rewriter.document.keywords(place)
    listed = [keywords["const"]] if "const" in keywords else keywords["enum"]
    if set(keywords) in ({"enum"}, {"const"}):
        return list(listed)
    return [value for value in listed if rewriter.evaluator.accepts(place, value)]


def _beyond(value: Any, *, up: bool) -> int:
    """A bound that is surely beyond one that is too large for a double."""
    whole = int(value)
    margin = abs(whole) >> 50
    return whole + margin if up else whole - margin


def _near(value: Any) -> dict[str, Any]:
    """A schema of some values among which one is that llguidance cannot write exactly."""
    if type_of(value) != "number":
        return {"type": type_of(value)}
    return {"type": "number", "minimum": _beyond(value, up=False), "maximum": _beyond(value, up=True)}


def _is_exact(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(_is_exact, value))
    if isinstance(value, dict):
        return all(map(_is_exact, value.values()))
    return isinstance(value, (str, bool)) or value is None or abs(value) <= EXACT_INTEGERS
