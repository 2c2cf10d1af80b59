"""Schemas whose objects are closed: what fits them fits what was given, and nothing is invented."""

from __future__ import annotations

import json
from typing import Any

import jsonschema
import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.tools import arguments_schema, closed_schema

LEAVES: list[dict[str, Any]] = [{}, {"type": "integer"}, {"enum": ["a"]}, {"type": "array", "items": {}}]


def _objects(inner: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    properties = st.dictionaries(st.sampled_from("abc"), inner, max_size=2)
    more = st.sampled_from(
        [{}, {"additionalProperties": True}, {"patternProperties": {"^x": {}}}, {"anyOf": [{}]}]
    )
    return st.builds(lambda p, m: {"type": "object", "properties": p, **m}, properties, more) | st.builds(
        lambda i: {"type": "array", "items": i}, inner
    )


schemas = st.recursive(st.sampled_from(LEAVES), _objects, max_leaves=6)
values = st.recursive(
    st.integers(0, 2) | st.just("a"),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.sampled_from("abcx"), inner, max_size=3),
    max_leaves=8,
)


@given(schemas, values)
def test_what_fits_the_closed_schema_fits_the_given_one(schema: Any, value: Any) -> None:
    if jsonschema.Draft202012Validator(closed_schema(schema)).is_valid(value):
        assert jsonschema.Draft202012Validator(schema).is_valid(value)


def test_objects_are_closed_where_nothing_else_decides() -> None:
    inner = {"type": "object", "properties": {"b": {}}}
    schema = {"properties": {"a": inner, "l": {"type": "array", "items": inner}}, "anyOf": [{}]}
    assert closed_schema(schema) == schema
    closed = closed_schema({"properties": schema["properties"]})
    assert closed["additionalProperties"] is False
    assert closed["properties"]["a"]["additionalProperties"] is False
    assert closed["properties"]["l"]["items"]["additionalProperties"] is False
    for open_one in (
        {"type": "object"},
        {"properties": {}, "required": ["a"]},
        {"properties": {}, "minProperties": 1},
    ):
        assert closed_schema(open_one) == open_one


def test_arguments_are_an_object() -> None:
    assert json.loads(arguments_schema("{}")) == {
        "type": "object",
        "properties": {},
        "additionalProperties": False,
    }
    for wrong in ("[]", "5", '{"type": ["object", "null"]}', '{"properties": 5}', '{"required": {}}', "{"):
        with pytest.raises(ValueError, match=r"."):
            arguments_schema(wrong)
