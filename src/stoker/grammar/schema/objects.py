"""The keywords of objects, rewritten."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from stoker.api.errors import RequestError
from stoker.grammar.schema.over import FALSE, TRUE, Over, all_of, any_of
from stoker.grammar.schema.references import Place
from stoker.grammar.schema.strings import split_pattern

if TYPE_CHECKING:
    from stoker.grammar.schema.rewrite import Rewriter

MOST_DEPENDENCIES = 6  # each doubles the ways an object can be written
_NAME_WORDS = frozenset({"type", "pattern", "minLength", "maxLength"})
_APPLICATORS = ("$ref", "allOf", "anyOf", "oneOf", "if", "dependentSchemas")


def object_part(
    rewriter: Rewriter, place: Place, keywords: dict[str, Any], base: dict[str, Any], last: list[Over]
) -> bool:
    """Put what `keywords` say of objects into `base`, and what takes alternatives into `last`.

    Returns whether `base` is exact.
    """
    types = keywords.get("type")
    if types is not None and "object" not in (types if isinstance(types, list) else [types]):
        return True
    exact = _properties(rewriter, place, keywords, base)
    exact &= _patterns(rewriter, place, keywords, base)
    exact &= _additional(rewriter, place, keywords, base)
    if keywords.get("required"):
        base["required"] = list(dict.fromkeys(keywords["required"]))
    exact &= _names(rewriter, place, keywords, base)
    exact &= _dependencies(rewriter, place, keywords, base, last)
    exact &= _counts(rewriter, place, keywords, base)
    return exact


def _properties(rewriter: Rewriter, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
    if not keywords.get("properties"):
        return True
    parts = {
        name: rewriter.over_child(place, schema, "properties", name)
        for name, schema in keywords["properties"].items()
    }
    base["properties"] = {name: part.schema for name, part in parts.items()}
    return all(part.exact for part in parts.values())


def _patterns(rewriter: Rewriter, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
    if not keywords.get("patternProperties"):
        return True
    if "patternProperties" in rewriter.relaxed:
        rewriter.leave(place, "patternProperties", "additionalProperties")
        return False
    exact = True
    plain: dict[str, Over] = {}
    for pattern, schema in keywords["patternProperties"].items():
        part = rewriter.over_child(place, schema, "patternProperties", pattern)
        split = split_pattern(pattern)
        if split is None or not all(map(rewriter.strings.reads, (*split.wanted, *split.unwanted))):
            raise RequestError(
                f"patternProperties at {place.at} has {pattern!r:.200}, which cannot be enforced"
            )
        exact &= part.exact
        if len(split.wanted) == 1 and not split.unwanted:
            plain[split.wanted[0]] = part
        else:
            plain[""] = Over(True, False)
    if "" in plain or not _are_disjoint(rewriter, list(plain)):
        return _join_patterns(rewriter, place, plain, base) and exact
    base["patternProperties"] = {pattern: part.schema for pattern, part in plain.items()}
    return exact


def _are_disjoint(rewriter: Rewriter, patterns: list[str]) -> bool:
    return all(
        rewriter.are_disjoint({"type": "string", "pattern": x}, {"type": "string", "pattern": y})
        for at, x in enumerate(patterns)
        for y in patterns[:at]
    )


def _join_patterns(rewriter: Rewriter, place: Place, plain: dict[str, Over], base: dict[str, Any]) -> bool:
    """Patterns that overlap become one, of which any of their schemas may hold."""
    joined = "|".join(f"(?:{pattern})" for pattern in plain)
    if "" in plain or not rewriter.strings.reads(joined):
        joined = "^"
    base["patternProperties"] = {joined: any_of(list(plain.values())).schema}
    if joined != "^" and all(part == next(iter(plain.values())) for part in plain.values()):
        return True
    rewriter.leave(place, "patternProperties", "additionalProperties")
    return False


def _additional(rewriter: Rewriter, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
    if "patternProperties" in rewriter.relaxed and keywords.get("patternProperties"):
        return False
    if "additionalProperties" in keywords:
        part = rewriter.over_child(place, keywords["additionalProperties"], "additionalProperties")
        base["additionalProperties"] = part.schema
        return part.exact
    if "unevaluatedProperties" not in keywords:
        return True
    part = rewriter.over_child(place, keywords["unevaluatedProperties"], "unevaluatedProperties")
    if part == TRUE:
        return True
    known = _evaluated(rewriter, place, 0)
    if known is None:
        rewriter.leave(place, "unevaluatedProperties")
        return False
    properties = base.setdefault("properties", {})
    for name in known:
        properties.setdefault(name, True)
    base["additionalProperties"] = part.schema
    return part.exact


def _evaluated(rewriter: Rewriter, place: Place, depth: int) -> list[str] | None:
    """The names that the schemas applied to the same object in any case name; None if it depends."""
    keywords = rewriter.document.keywords(place)
    unclear = ("anyOf", "oneOf", "if", "dependentSchemas", "patternProperties")
    if any(word in keywords for word in unclear) or depth > 8:
        return None
    if depth and ("additionalProperties" in keywords or "unevaluatedProperties" in keywords):
        return None
    names = list(keywords.get("properties", ()))
    inner = [rewriter.document.child(place, x, "allOf", at) for at, x in enumerate(keywords.get("allOf", ()))]
    if "$ref" in keywords:
        inner.append(rewriter.document.follow(place))
    for other in inner:
        found = _evaluated(rewriter, other, depth + 1)
        if found is None:
            return None
        names += found
    return names


def _names(rewriter: Rewriter, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
    """`propertyNames`, as properties or one pattern where it is that simple."""
    if "propertyNames" not in keywords:
        return True
    inner = rewriter.document.child(place, keywords["propertyNames"], "propertyNames")
    part = rewriter.over(inner)
    if part.schema is True or part.schema == {}:
        return part.exact
    rest = base.get("additionalProperties", True)
    schema = part.schema if isinstance(part.schema, dict) else {"enum": []}
    simple = part.exact and not base.get("patternProperties")
    if simple and set(schema) == {"enum"}:
        allowed = [name for name in schema["enum"] if isinstance(name, str)]
        named = base.get("properties", {})
        named = {name: inner for name, inner in named.items() if name in allowed}
        base["properties"] = {**named, **{name: rest for name in allowed if name not in named}}
        base["additionalProperties"] = False
        return True
    pattern = _as_pattern(schema) if simple else None
    if pattern is None or not rewriter.strings.reads(pattern):
        rewriter.leave(place, "propertyNames")
        return False
    base["properties"] = {
        name: inner if rewriter.strings.finds(pattern, name) else False
        for name, inner in base.get("properties", {}).items()
    }
    base["patternProperties"] = {pattern: rest}
    base["additionalProperties"] = False
    return True


def _as_pattern(schema: dict[str, Any]) -> str | None:
    if not set(schema) <= _NAME_WORDS:
        return None
    bounded = "minLength" in schema or "maxLength" in schema
    if bounded and "pattern" in schema:
        return None
    if bounded:
        return f"^(?s:.{{{schema.get('minLength', 0)},{schema.get('maxLength', '')}}})$"
    return schema.get("pattern")


def _dependencies(
    rewriter: Rewriter, place: Place, keywords: dict[str, Any], base: dict[str, Any], last: list[Over]
) -> bool:
    needs: dict[str, list[Over]] = {}
    for name, others in keywords.get("dependentRequired", {}).items():
        if others:
            needs.setdefault(name, []).append(Over({"required": others}, True))
    for name, schema in keywords.get("dependentSchemas", {}).items():
        part = rewriter.over_child(place, schema, "dependentSchemas", name)
        if not part.exact:
            rewriter.leave(place, "dependentSchemas")
        needs.setdefault(name, []).append(part)
    exact = True
    for at, (name, parts) in enumerate(needs.items()):
        absent = Over({"properties": {name: False}}, True)
        # It is named as a property to come before what it demands.
        there = all_of([Over({"properties": {name: True}, "required": [name]}, True), *parts])
        if name in base.get("required", ()):
            last.append(there)
        elif any(part == FALSE for part in parts):
            last.append(absent)
        elif at < MOST_DEPENDENCIES:
            last.append(any_of([absent, there]))
        else:
            rewriter.leave(place, "dependentRequired", "dependentSchemas")
            exact = False
    return exact


def _counts(rewriter: Rewriter, place: Place, keywords: dict[str, Any], base: dict[str, Any]) -> bool:
    """minProperties and maxProperties, which llguidance takes where no named property is optional."""
    least, most = keywords.get("minProperties", 0), keywords.get("maxProperties")
    required = set(base.get("required", ()))
    least = least if least > len(required) else 0
    if not least and most is None:
        return True
    open_names = base.get("additionalProperties", True) is not False or bool(base.get("patternProperties"))
    optional = [
        name for name, x in base.get("properties", {}).items() if name not in required and x is not False
    ]
    one = least - len(required) <= 1 and (most is None or most - len(required) == 1) and not open_names
    merged = any(word in keywords for word in (*_APPLICATORS, "dependentRequired", "not"))
    if "minProperties" in rewriter.relaxed or (optional and not one) or merged:
        rewriter.leave(place, "minProperties", "maxProperties")
        return False
    if least:
        base["minProperties"] = least
    if most is not None:
        base["maxProperties"] = most
    if least > 1 and open_names:  # a name that comes twice would count twice
        rewriter.leave(place, "minProperties")
        return False
    return True
