"""JSON Schema, keyword by keyword: what the masks and the tests on values let through together."""

from __future__ import annotations

import json
from typing import Any

import pytest
from tests.unit.grammar.driving import can_write, guides, write_at_random

from stoker.api.errors import RequestError

OBJECT = {"type": "object"}
# schema, values that can be written, values that cannot
CASES: list[tuple[Any, list[Any], list[Any]]] = [
    ({"type": ["integer", "null"]}, [1, None, -7], [1.5, "1", True]),
    ({"enum": [1, "a", None, {"a": [1]}]}, [1, "a", None, {"a": [1]}], [2, "b", {"a": [2]}]),
    ({"enum": [1, "ab", "b"], "type": "string", "minLength": 2}, ["ab"], [1, "b"]),
    ({"const": "a\u0001"}, ["a\u0001"], ["a"]),
    # not
    ({"not": {"type": "object"}}, [1, [], "a", None], [{}, {"a": 1}]),
    ({"not": {"enum": ["a", "ab", 1]}}, ["b", "abc", "", 2, [1]], ["a", "ab", 1]),
    ({"not": {"const": [True, 1]}}, [[True], [True, 2], [1, True], []], [[True, 1]]),
    ({"not": {"const": {"a": False}}}, [{}, {"a": True}, {"a": False, "b": 1}, 1], [{"a": False}]),
    ({**OBJECT, "not": {"required": ["a"]}}, [{}, {"b": 1}], [{"a": 1}, {"b": 1, "a": 1}]),
    ({"type": "number", "not": {"minimum": 3}}, [2, 2.5, -1], [3, 4]),
    ({"type": "integer", "not": {"multipleOf": 3}}, [1, 2, 10], [3, 12, 0]),
    ({"type": "string", "not": {"pattern": "^a"}}, ["b", ""], ["a", "ab"]),
    ({"type": "number", "not": {"type": "integer"}}, [1.5], [1, 2]),
    ({"not": {"anyOf": [{"type": "string"}, {"minimum": 5}]}}, [4], ["a", 5, None]),
    ({"not": {"not": {"type": "string"}}}, ["a"], [1]),
    ({"type": "array", "not": {"contains": {"type": "null"}}}, [[], [1]], [[None], [1, None]]),
    # oneOf
    ({"oneOf": [{"type": "string"}, {"type": "integer"}]}, ["a", 1], [None, 1.5]),
    ({"oneOf": [{"maximum": 2}, {"maximum": 5}], "type": "number"}, [3, 5], [2, 6]),
    (
        {"type": "object", "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
        [{"a": 1}, {"b": 1}, {"a": 1, "c": 1}],
        [{}, {"a": 1, "b": 1}, {"c": 1}],
    ),
    (
        {
            "oneOf": [
                {
                    "type": "object",
                    "properties": {"k": {"const": "x"}, "v": {"type": "integer"}},
                    "required": ["k"],
                },
                {
                    "type": "object",
                    "properties": {"k": {"const": "y"}, "v": {"type": "string"}},
                    "required": ["k"],
                },
            ]
        },
        [{"k": "x", "v": 1}, {"k": "y", "v": "a"}],
        [{"k": "x", "v": "a"}, {"k": "y", "v": 1}, {"k": "z"}],
    ),
    (
        {"oneOf": [{"type": "string", "format": "ipv4"}, {"type": "string", "maxLength": 3}]},
        ["ab", "1.1.1.1"],
        ["abcd"],
    ),
    # if, dependencies
    (
        {
            "type": "object",
            "properties": {"a": {"type": "integer"}},
            "if": {"required": ["a"]},
            "then": {"required": ["b"]},
        },
        [{}, {"a": 1, "b": 1}, {"c": 1}],
        [{"a": 1}],
    ),
    (
        {"if": {"type": "string"}, "then": {"maxLength": 2}, "else": {"type": "integer"}},
        ["ab", 7],
        ["abc", None],
    ),
    ({**OBJECT, "dependentRequired": {"a": ["b"]}}, [{}, {"b": 1}, {"a": 1, "b": 2}], [{"a": 1}]),
    ({**OBJECT, "dependencies": {"a": ["b"]}}, [{"a": 1, "b": 2}], [{"a": 1}]),
    (
        {**OBJECT, "dependencies": {"a": {"properties": {"b": {"type": "string"}}, "required": ["b"]}}},
        [{"b": 1}, {"a": 1, "b": "x"}],
        [{"a": 1}, {"a": 1, "b": 1}],
    ),
    ({**OBJECT, "dependentSchemas": {"a": False}}, [{}, {"b": 1}], [{"a": 1}]),
    # arrays
    ({"type": "array", "items": {"type": "integer"}, "uniqueItems": True}, [[], [1, 2]], [[1, 1], [2, 1, 2]]),
    ({"type": "array", "uniqueItems": True}, [[1, True], [{"a": 1}, {"a": 2}]], [[1, 1.0], [[1], [1]]]),
    ({"type": "array", "contains": {"type": "null"}}, [[None], [1, None]], [[], [1]]),
    ({"type": "array", "contains": {"type": "null"}, "maxContains": 1}, [[None], [None, 1]], [[None, None]]),
    ({"type": "array", "contains": {"type": "null"}, "minContains": 0}, [[], [1]], []),
    (
        {"type": "array", "items": [{"type": "null"}], "additionalItems": False},
        [[], [None]],
        [[1], [None, None]],
    ),
    ({"type": "array", "prefixItems": [{"type": "null"}], "unevaluatedItems": False}, [[None]], [[None, 1]]),
    # objects
    ({**OBJECT, "propertyNames": {"pattern": "^a"}}, [{}, {"a": 1, "ab": 2}], [{"b": 1}]),
    ({**OBJECT, "propertyNames": {"enum": ["a", "b"]}}, [{"a": 1}, {"a": 1, "b": 2}], [{"c": 1}]),
    ({**OBJECT, "propertyNames": {"not": {"const": "a"}}}, [{"b": 1}], [{"a": 1}]),
    ({**OBJECT, "properties": {"a": {}, "b": {}}, "minProperties": 1}, [{"a": 1}, {"c": 1}], [{}]),
    ({**OBJECT, "properties": {"a": {}, "b": {}}, "maxProperties": 1}, [{}, {"b": 1}], [{"a": 1, "b": 1}]),
    (
        {
            **OBJECT,
            "properties": {"a": {}, "b": {}, "c": {}},
            "minProperties": 2,
            "additionalProperties": False,
        },
        [{"a": 1, "b": 1}, {"a": 1, "c": 1}],
        [{}, {"a": 1}, {"c": 1}],
    ),
    (
        {**OBJECT, "patternProperties": {"a": {"type": "integer"}, "b": {"maximum": 5}}},
        [{"ab": 5}, {"b": "x"}],
        [{"ab": 6}, {"a": "x"}],
    ),
    (
        {"allOf": [{"properties": {"a": {"type": "integer"}}}], **OBJECT, "unevaluatedProperties": False},
        [{}, {"a": 1}],
        [{"b": 1}, {"a": "x"}],
    ),
    (
        {
            **OBJECT,
            "anyOf": [{"properties": {"a": {}}, "required": ["a"]}, {}],
            "unevaluatedProperties": False,
        },
        [{}, {"a": 1}],
        [{"b": 1}],
    ),
    # strings and numbers
    ({"type": "string", "pattern": "^(?=.*a)(?=.*1)[a1]{3}$"}, ["aa1", "1a1"], ["aaa", "111"]),
    ({"type": "string", "pattern": "^(?!ab)[ab]{2}$"}, ["aa", "ba"], ["ab"]),
    ({"type": "string", "pattern": '^[^"]*$'}, ["ab", "a\\b", "a\nb"], ['a"b']),
    ({"type": "string", "pattern": "^\\u0061[\\/]$"}, ["a/"], ["b/"]),
    ({"type": "string", "format": "json-pointer"}, ["/a/~0", ""], ["a"]),
    (
        {
            "minimum": 3,
            "exclusiveMinimum": True,
            "type": "integer",
            "$schema": "http://json-schema.org/draft-04/schema#",
        },
        [4],
        [3],
    ),
    (
        {"type": "integer", "maximum": 9007199254740993, "minimum": 9007199254740991},
        [9007199254740993],
        [9007199254740994],
    ),
    # references
    (
        {
            "$ref": "#/$defs/n",
            "$defs": {
                "n": {**OBJECT, "properties": {"n": {"$ref": "#/$defs/n"}}, "additionalProperties": False}
            },
        },
        [{}, {"n": {"n": {}}}],
        [{"n": 1}, {"x": {}}],
    ),
    (
        {
            "$ref": "#a",
            "definitions": {"x": {"$id": "#a", "type": "null"}},
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
        [None],
        [1],
    ),
    (
        {
            "$id": "http://x/y",
            "$ref": "z#/$defs/q",
            "$defs": {"a": {"$id": "z", "$defs": {"q": {"type": "null"}}}},
        },
        [None],
        [1],
    ),
    (
        {
            "$ref": "#/definitions/a",
            "maxLength": 1,
            "definitions": {"a": {"type": "string"}},
            "$schema": "http://json-schema.org/draft-07/schema#",
        },
        ["ab"],
        [1],
    ),
    (
        {
            "$ref": "urn:a:b",
            "$defs": {"x": {"$id": "urn:a:b", "$ref": "#/$defs/y", "$defs": {"y": {"type": "null"}}}},
        },
        [None],
        [1],
    ),
    ({"$defs": {"n": {"$dynamicAnchor": "n", "type": "null"}}, "$dynamicRef": "#n"}, [None], [1]),
    ({"type": "array", "items": {"$recursiveRef": "#"}}, [[], [[], [[]]]], [[1]]),
    ({"multipleOf": 1e-12, "type": "number"}, [1, 0.5], []),
    # tests on values inside branches that the type tells apart
    ({"anyOf": [{"type": "array", "uniqueItems": True}, {"type": "null"}]}, [None, [1]], [[1, 1]]),
    (
        {
            "type": "array",
            "items": {"anyOf": [{"not": {"pattern": "^a"}, "type": "string"}, {"type": "null"}]},
        },
        [["b", None]],
        [["a"]],
    ),
]


@pytest.mark.parametrize(("schema", "good", "bad"), CASES, ids=[json.dumps(case[0])[:60] for case in CASES])
def test_exactly_the_valid_values_can_be_written(schema: Any, good: list[Any], bad: list[Any]) -> None:
    source = guides("json_schema", json.dumps(schema))
    for value in good:
        assert can_write(source.new(), json.dumps(value, ensure_ascii="\u0001" in str(value))), value
    for value in bad:
        assert not can_write(source.new(), json.dumps(value)), value


@pytest.mark.parametrize(
    ("schema", "named"),
    [
        ({"type": "strng"}, "type at #"),
        ({"properties": {"a": {"minLength": -1}}}, "minLength at #/properties/a"),
        ({"items": 7}, "items at #"),
        ({"required": "a"}, "required at #"),
        ({"allOf": []}, "allOf at #"),
        ({"multipleOf": 0}, "multipleOf at #"),
        ({"$ref": "#/nowhere"}, "nowhere"),
        ({"$ref": "http://example.com/other.json"}, "references within it"),
        ({"$ref": "#"}, "nothing but itself"),
        ({"pattern": "(a)\\1"}, "pattern at #"),
        (
            {
                "$ref": "#/$defs/a",
                "$defs": {
                    "a": {"items": {"$dynamicRef": "#x"}},
                    "b": {"$dynamicAnchor": "x"},
                    "c": {"$id": "http://x/", "$dynamicAnchor": "x"},
                },
            },
            "depends on how one comes there",
        ),
        ({"pattern": "a(?<=b)c"}, "pattern at #"),
        ({"type": "integer", "minimum": 5, "maximum": 4}, "contradicts itself"),
        ({"allOf": [{"type": "string"}, {"type": "null"}]}, "contradicts itself"),
        ({"enum": []}, "contradicts itself"),
        ({"type": "object", "required": ["a"], "additionalProperties": False}, "contradicts itself"),
        ({"const": [1, 1], "uniqueItems": True}, "contradicts itself"),
        (
            {"type": "array", "prefixItems": [{"const": 1}] * 2, "minItems": 2, "uniqueItems": True},
            "contradicts",
        ),
        ({"oneOf": [True, True]}, "contradicts itself"),
        ({"enum": [float("nan")]}, "NaN"),
        ({"minimum": float("inf")}, "Infinity"),
        ({"const": "\ud800"}, "cannot be read"),
    ],
    ids=str,
)
def test_what_cannot_be_enforced_is_refused_by_name(schema: Any, named: str) -> None:
    with pytest.raises(RequestError, match=named):
        guides("json_schema", json.dumps(schema))


def test_what_masks_leave_open_is_said_with_its_place() -> None:
    source = guides("json_schema", '{"properties": {"a": {"type": "array", "uniqueItems": true}}}')
    assert any("uniqueItems at #/properties/a" in said for said in source.warnings)
    source = guides("json_schema", '{"type": "string", "format": "color-hex"}')
    assert any("color-hex" in said for said in source.warnings)
    assert can_write(source.new(), '"red"')
    assert guides("json_schema", '{"type": "string", "format": "uuid"}').warnings == ()


def test_a_name_cannot_come_twice_where_names_are_counted() -> None:
    source = guides("json_schema", '{"type": "object", "minProperties": 2}')
    assert can_write(source.new(), '{"a": 1, "b": 1}')
    assert not can_write(source.new(), '{"a": 1, "a": 2}')


def test_a_name_cannot_hide_behind_an_escape() -> None:
    source = guides("json_schema", '{"type": "object", "properties": {"a": {"type": "integer"}}}')
    assert can_write(source.new(), '{"b": "x"}')
    assert not can_write(source.new(), '{"\\u0061": "x"}')


SEVENS = '{"type": "array", "uniqueItems": true, "items": {"not": {"type": "number", "multipleOf": 7}}}'


@pytest.mark.parametrize(
    "text", ["[" * 90 + "1" + "]" * 90, "[" + "1" * 4000 + ", 1.5]", "[1e300, -1.5e-300, 0.1]"]
)
def test_values_of_any_size_are_tested_without_harm(text: str) -> None:
    source = guides("json_schema", SEVENS)
    assert can_write(source.new(), text)


def test_values_that_are_too_deep_or_too_long_to_be_tested_do_not_come() -> None:
    source = guides("json_schema", SEVENS)
    for text in ("[" * 101 + "]" * 101, "[" + "1" * 5000 + "]"):
        assert not can_write(source.new(), text)


def test_space_is_as_json_dumps_writes_it() -> None:
    source = guides("json_schema", '{"type": "object", "properties": {"a": {"type": "array"}}}')
    assert can_write(source.new(), '{"a": [1, 2]}')
    for text in ('{"a":[1,2]}', '{"a":  [1, 2]}', '{ "a": [1, 2]}', '{"a": [1, 2]}\n'):
        assert not can_write(source.new(), text)


@pytest.mark.parametrize("seed", range(10))
def test_chance_does_not_end_where_a_value_can_only_be_wrong(seed: int) -> None:
    schema = {"type": "array", "items": {"enum": ["ax", "ay", "b"]}, "uniqueItems": True, "minItems": 3}
    written = write_at_random(guides("json_schema", json.dumps(schema)), seed)
    assert sorted(json.loads(written.text)) == ["ax", "ay", "b"]


@pytest.mark.parametrize(
    "schema",
    [
        {
            "$defs": {f"d{i}": {"anyOf": [{"$ref": f"#/$defs/d{i + 1}"}] * 2} for i in range(30)}
            | {"d30": {}},
            "$ref": "#/$defs/d0",
        },
        {"allOf": [{"anyOf": [{"required": [f"a{i}"]}, {"required": [f"b{i}"]}]} for i in range(40)]},
        {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(3000)}},
        {"type": "array", "minItems": 10**6, "items": {"type": "array", "minItems": 10**6}},
        {"oneOf": [{"required": [f"a{i}", f"a{i + 1}"]} for i in range(60)]},
        {"type": "string", "minLength": 10**9},
        {"enum": [f"value {i}" for i in range(5000)]},
        {"not": {"not": {"not": {"$ref": "#"}}}},
        json.loads('{"items": ' * 60 + "true" + "}" * 60),
    ],
    ids=lambda schema: json.dumps(schema)[:40],
)
def test_schemas_that_explode_are_compiled_or_refused_in_bounded_work(schema: Any) -> None:
    try:
        source = guides("json_schema", json.dumps(schema))
        write_at_random(source, 0, most_tokens=40)
    except RequestError as error:
        said = str(error)
    else:
        return
    assert len(said) < 2000
