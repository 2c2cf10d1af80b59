"""The order in which a grammar wants an object's properties."""

from __future__ import annotations

from typing import Any

from llguidance import LLTokenizer

from stoker.grammar.schema.document import Document
from stoker.grammar.schema.evaluate import Evaluator
from stoker.grammar.schema.references import Place
from stoker.grammar.schema.strings import StringTests


class PropertyOrder:
    """Orders instances of one rewritten schema: properties as listed, then required ones, then others."""

    def __init__(self, schema: Any, bytes_trie: LLTokenizer) -> None:
        self._document = Document(schema)
        self._strings = StringTests(bytes_trie)
        self._evaluator = Evaluator(self._document, self._strings)

    def ordered(self, value: Any) -> Any:
        """The same value with its properties in order."""
        return self._order([self._document.root], value)

    def _order(self, places: list[Place], value: Any) -> Any:
        if isinstance(value, list):
            applied = self._applied(places, value)
            return [self._order(self._items(applied, at), item) for at, item in enumerate(value)]
        if not isinstance(value, dict):
            return value
        applied = self._applied(places, value)
        names: dict[str, None] = {}
        for word in ("properties", "required"):
            for place in applied:
                names |= dict.fromkeys(self._document.keywords(place).get(word, ()))
        listed = [name for name in names if name in value]
        rest = [name for name in value if name not in names]
        return {name: self._order(self._members(applied, name), value[name]) for name in listed + rest}

    def _applied(self, places: list[Place], value: Any) -> list[Place]:
        """The places and what they apply to the same value, in the order in which llguidance merges them."""
        found: list[Place] = []
        for place in places:
            keywords = self._document.keywords(place)
            if not isinstance(place.schema, dict):
                continue
            for word in keywords:
                if word == "properties" or (word == next(iter(keywords)) and "properties" not in keywords):
                    found.append(place)
                if word == "$ref":
                    found += self._applied([self._document.follow(place)], value)
                elif word == "allOf":
                    branches = [self._document.child(place, x, word, i) for i, x in enumerate(keywords[word])]
                    found += self._applied(branches, value)
                elif word == "anyOf":
                    branches = [self._document.child(place, x, word, i) for i, x in enumerate(keywords[word])]
                    fitting = [branch for branch in branches if self._evaluator.accepts(branch, value)]
                    found += self._applied(fitting[:1], value)
        return found

    def _members(self, places: list[Place], name: str) -> list[Place]:
        found: list[Place] = []
        for place in places:
            keywords = self._document.keywords(place)
            if name in keywords.get("properties", {}):
                found.append(self._document.child(place, keywords["properties"][name], "properties", name))
            elif not self._evaluator.is_named(keywords, name) and "additionalProperties" in keywords:
                schema = keywords["additionalProperties"]
                found.append(self._document.child(place, schema, "additionalProperties"))
            for pattern, schema in keywords.get("patternProperties", {}).items():
                if self._strings.finds(pattern, name):
                    found.append(self._document.child(place, schema, "patternProperties", pattern))
        return found

    def _items(self, places: list[Place], at: int) -> list[Place]:
        found: list[Place] = []
        for place in places:
            keywords = self._document.keywords(place)
            first = keywords.get("prefixItems", [])
            if at < len(first):
                found.append(self._document.child(place, first[at], "prefixItems", at))
            elif "items" in keywords:
                found.append(self._document.child(place, keywords["items"], "items"))
        return found
