"""Where the references of a JSON Schema lead: $id, $anchor and JSON pointers, inside one document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote, urldefrag, urljoin

from stoker.api.errors import RequestError

_NO_SCHEMAS = frozenset({"enum", "const", "default", "examples", "example"})
MOST_NESTED = 100  # levels of a schema as written; real ones have up to thirty


@dataclass(frozen=True, slots=True, eq=False)
class Place:
    """A schema inside the document: its value, the URI its references are relative to, and where it is."""

    schema: Any  # dict or bool
    base: str
    at: str  # JSON pointer, for messages


class References:
    """The index of one document. Raises RequestError for one that is nested too deeply."""

    def __init__(self, root: Any, *, siblings_ignored: bool = False) -> None:
        self._siblings_ignored = siblings_ignored  # beside a $ref, an $id among them
        self._dynamic: dict[
            str, int
        ] = {}  # how often a name is given to a place that depends on the way to it
        self._found: dict[str, Place] = {}
        self.root = Place(root, self._base("", root), "#")
        self._found[""] = self.root
        for place in self._all(self.root):
            schema = place.schema
            if place.base not in self._found:
                self._found[place.base] = place
            for word in ("$anchor", "$dynamicAnchor"):
                if isinstance(schema.get(word), str):
                    self._found.setdefault(f"{place.base}#{schema[word]}", place)
                    self._dynamic[schema[word]] = self._dynamic.get(schema[word], 0) + 1
            if schema.get("$recursiveAnchor") is True:
                self._dynamic[""] = self._dynamic.get("", 0) + 1
            for word in ("$id", "id"):  # draft 4 to 7 name anchors so
                name = schema.get(word)
                if isinstance(name, str) and name.startswith("#") and len(name) > 1:
                    self._found.setdefault(f"{place.base}{name}", place)

    def child(self, place: Place, schema: Any, *steps: str | int) -> Place:
        """The schema under `place` that `steps` lead to."""
        at = "/".join([place.at, *(str(step).replace("~", "~0").replace("/", "~1") for step in steps)])
        return Place(schema, self._base(place.base, schema), at)

    def follow_dynamic(self, place: Place, reference: str) -> Place:
        """What a $dynamicRef or $recursiveRef means where that does not depend on the way to it.

        Raises RequestError where it does.
        """
        name = reference.rpartition("#")[2]
        if self._dynamic.get(name, 0) > 1 or (not name and len({x.base for x in self._found.values()}) > 1):
            raise RequestError(
                f"{reference!r:.80} at {place.at} depends on how one comes there: not supported"
            )
        return self.follow(place, reference)

    def follow(self, place: Place, reference: str) -> Place:
        """What a $ref at `place` means. Raises RequestError if it leads nowhere in the document."""
        try:
            whole = reference if not reference.startswith("#") else place.base + reference
            uri, fragment = urldefrag(urljoin(place.base, whole))  # which loses a base that is a URN
        except ValueError as error:
            raise RequestError(f"$ref at {place.at} is {reference!r:.200}, which is no reference") from error
        target = self._found.get(uri)
        if fragment and not fragment.startswith("/"):
            target = self._found.get(f"{uri}#{fragment}")
        elif fragment and target is not None:
            target = self._walk(target, fragment)
        if target is None:
            raise RequestError(
                f"$ref at {place.at} is {reference!r:.200}, which is not in the schema; "
                "allowed: references within it"
            )
        if not isinstance(target.schema, (dict, bool)):
            raise RequestError(f"$ref at {place.at} is {reference!r:.200}, which is no schema")
        return target

    def _walk(self, place: Place, pointer: str) -> Place | None:
        for step in pointer.split("/")[1:]:
            key = unquote(step).replace("~1", "/").replace("~0", "~")
            schema = place.schema
            if isinstance(schema, dict) and key in schema:
                place = self.child(place, schema[key], key)
            elif isinstance(schema, list) and key.isdecimal() and len(key) < 9 and int(key) < len(schema):
                place = self.child(place, schema[int(key)], key)
            else:
                return None
        return place

    def _all(self, root: Place) -> Iterator[Place]:
        """Every object in the document, as if it were a schema; the outer before the inner."""
        todo: list[tuple[Place, int]] = [(root, 0)]
        while todo:
            place, depth = todo.pop()
            if depth > MOST_NESTED:
                raise RequestError(f"json_schema is nested deeper than {MOST_NESTED} levels")
            schema = place.schema
            if isinstance(schema, dict):
                yield place
                inner = [self.child(place, v, k) for k, v in schema.items() if k not in _NO_SCHEMAS]
            else:
                inner = [self.child(place, value, at) for at, value in enumerate(schema)]
            todo += [(p, depth + 1) for p in reversed(inner) if isinstance(p.schema, (dict, list))]

    def _base(self, outer: str, schema: Any) -> str:
        if not isinstance(schema, dict) or (self._siblings_ignored and "$ref" in schema):
            return outer
        name = schema.get("$id", schema.get("id"))
        if not isinstance(name, str) or name.startswith("#"):
            return outer
        try:
            return urldefrag(urljoin(outer, name)).url
        except ValueError:
            return outer
