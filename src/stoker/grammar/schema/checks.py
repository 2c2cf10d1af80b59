"""What the grammar leaves open, tested on the values of a text as they are completed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from stoker.grammar.schema.document import Document
from stoker.grammar.schema.evaluate import Evaluator, distinct_key
from stoker.grammar.schema.reader import Reader
from stoker.grammar.schema.references import Place
from stoker.grammar.schema.rewrite import Residue, branches_by_type, declared_types
from stoker.grammar.schema.strings import StringTests

MOST_PLACES = 64  # schemas that are known to apply to one value; what is beyond waits for the whole text


@dataclass(frozen=True, slots=True)
class CheckPlan:
    """A document and what is left open in it. Immutable; safe to share between threads."""

    document: Document
    strings: StringTests
    residue: dict[int, Residue]  # by id of the schema, which the document keeps alive

    @classmethod
    def of(cls, document: Document, strings: StringTests, residue: tuple[Residue, ...]) -> CheckPlan:
        """The plan of a rewritten document."""
        return cls(document, strings, {id(left.place.schema): left for left in residue})


class ValueChecks:
    """The tests of one text: which schemas apply to the values that are open in it. Told by a `Reader`."""

    def __init__(self, plan: CheckPlan) -> None:
        self._plan = plan
        self._evaluator = Evaluator(plan.document, plan.strings)
        self._applied: list[list[Place]] = []  # per open container
        self._scalar: list[Place] = []  # to the string, number or word under way

    def copy(self) -> ValueChecks:
        """The same, free to go elsewhere."""
        other = ValueChecks(self._plan)
        other._applied = list(self._applied)
        other._scalar = self._scalar
        return other

    # --- what the reader tells ---------------------------------------------------------------------

    def opened(self, reader: Reader, kind: str) -> bool:
        """Find the schemas that apply to the new value."""
        container = kind in ("object", "array")
        outer = len(self._applied)
        if not outer:
            places = [self._plan.document.root]
        else:
            frame = reader.frames[outer - 1]
            places = []
            for place in self._applied[-1]:
                places += self._inner(place, frame.value, frame.name)
        found = self._together(places, kind)
        if container:
            self._applied.append(found)
        else:
            self._scalar = found
        return True

    def named(self, reader: Reader, name: str) -> bool:
        """A name that comes twice is refused, and one that its object must not have."""
        members = reader.frames[-1].value
        if name in members:
            return False
        for place in self._applied[-1]:
            words = self._left(place)
            keywords = self._plan.document.keywords(place)
            if "propertyNames" in words and not self._evaluator.child(place, name, "propertyNames"):
                return False
            if "minProperties" in words and not _can_reach(keywords, members, name):
                return False
        return True

    def continued(self, reader: Reader) -> bool:
        """An object that is full gets no comma."""
        members = reader.frames[-1].value
        for place in self._applied[-1]:
            if isinstance(members, dict) and "maxProperties" in self._left(place):
                most = self._plan.document.keywords(place).get("maxProperties")
                if most is not None and len(members) >= most:
                    return False
        return True

    def completed(self, reader: Reader, value: Any) -> bool:
        """Test a value, and whether it may stand where it does; the whole text by the whole schema."""
        places = self._applied.pop() if isinstance(value, (dict, list)) else self._scalar
        if not all(self._holds(place, value) for place in places):
            return False
        if not reader.frames:
            return self._evaluator.accepts(self._plan.document.root, value)
        if not isinstance(reader.frames[-1].value, list):
            return True
        items = reader.frames[-1].value
        if any("uniqueItems" in self._left(place) for place in self._applied[-1]):
            key = distinct_key(value)
            return all(distinct_key(item) != key for item in items)
        return True

    # --- which schemas apply -----------------------------------------------------------------------

    def _left(self, place: Place) -> frozenset[str]:
        left = self._plan.residue.get(id(place.schema))
        return frozenset() if left is None else left.keywords

    def _holds(self, place: Place, value: Any) -> bool:
        words = self._left(place)
        return not words or self._evaluator.accepts(place, value, words)

    def _inner(self, place: Place, members: Any, name: str | None) -> list[Place]:
        """The schemas at `place` that apply to the property `name`, or to the next item."""
        document = self._plan.document
        keywords = document.keywords(place)
        if isinstance(members, list):
            at, first = len(members), keywords.get("prefixItems", [])
            if at < len(first):
                return [document.child(place, first[at], "prefixItems", at)]
            return [document.child(place, keywords["items"], "items")] if "items" in keywords else []
        assert name is not None
        found = []
        if name in keywords.get("properties", {}):
            found.append(document.child(place, keywords["properties"][name], "properties", name))
        for pattern, schema in keywords.get("patternProperties", {}).items():
            if self._plan.strings.finds(pattern, name):
                found.append(document.child(place, schema, "patternProperties", pattern))
        if not found and "additionalProperties" in keywords:
            found.append(document.child(place, keywords["additionalProperties"], "additionalProperties"))
        return found

    def _together(self, places: list[Place], kind: str) -> list[Place]:
        """The places and all that apply to the same value whenever they do, given its type."""
        document, found = self._plan.document, list[Place]()
        todo, seen = list(reversed(places)), set[int]()
        while todo and len(found) < MOST_PLACES:
            place = todo.pop()
            if not isinstance(place.schema, dict) or id(place.schema) in seen:
                continue
            seen.add(id(place.schema))
            found.append(place)
            keywords = document.keywords(place)
            inner: list[Place] = []
            if "$ref" in keywords:
                inner.append(document.follow(place))
            inner += [document.child(place, x, "allOf", i) for i, x in enumerate(keywords.get("allOf", ()))]
            for word in ("anyOf", "oneOf"):
                if word in keywords and branches_by_type(document, place, word):
                    branches = [document.child(place, x, word, i) for i, x in enumerate(keywords[word])]
                    inner += [branch for branch in branches if kind in declared_types(document, branch)]
            todo += reversed(inner)
        return found


def _can_reach(keywords: dict[str, Any], members: dict[str, Any], name: str) -> bool:
    """Whether an object can still get enough properties: if only listed ones may come, they come in order."""
    if keywords.get("additionalProperties", True) is not False or keywords.get("patternProperties"):
        return True
    order = list(keywords.get("properties", {}))
    if name not in order:
        return True
    after = len(order) - 1 - order.index(name)
    return bool(len(members) + 1 + after >= keywords.get("minProperties", 0))
