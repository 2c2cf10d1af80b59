"""Schemas by chance, against the jsonschema library: nothing invalid comes, and everything valid can."""

from __future__ import annotations

import json
from typing import Any

import pytest
from llguidance import LLTokenizer
from tests.unit.grammar.driving import can_write, compiler, write_at_random
from tests.unit.grammar.schemas import Chance

from stoker.api.constraint import Constraint
from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.grammar.guide import Guides
from stoker.grammar.schema.compile import compile_schema
from stoker.grammar.schema.document import Document
from stoker.grammar.schema.evaluate import Evaluator
from stoker.grammar.schema.ordering import PropertyOrder
from stoker.grammar.schema.strings import StringTests
from stoker.grammar.text_checks import JsonChecks

jsonschema = pytest.importorskip("jsonschema")

BYTES = LLTokenizer("byte")
FORMATS = jsonschema.FormatChecker(formats=["ipv4"])


def is_valid(schema: Any, value: Any) -> bool | None:
    """What the library says; None where the schema refers to itself for ever."""
    try:
        return bool(jsonschema.Draft202012Validator(schema, format_checker=FORMATS).is_valid(value))
    except RecursionError:
        return None


@pytest.mark.parametrize("seed", range(60))
def test_values_are_judged_as_the_library_judges_them(seed: int) -> None:
    chance = Chance(seed)
    schema = chance.document()
    document = Document(schema)
    for _ in range(20):
        value = chance.value()
        wanted = is_valid(schema, value)
        if wanted is None:
            with pytest.raises(RequestError, match="itself"):
                Evaluator(document, StringTests(BYTES)).accepts(document.root, value)
            break
        assert Evaluator(document, StringTests(BYTES)).accepts(document.root, value) is wanted, value


@pytest.mark.parametrize("seed", range(60))
def test_grammar_and_tests_accept_the_valid_values_in_order_and_no_others(seed: int) -> None:
    chance = Chance(1000 + seed)
    schema = chance.document()
    values = [chance.value() for _ in range(20)]
    try:
        ready = compile_schema(json.dumps(schema), BYTES)
    except RequestError as error:
        if "contradicts" in str(error):
            assert not any(is_valid(schema, value) for value in values)
        return
    order = PropertyOrder(ready.schema, BYTES)
    for value in values:
        wanted = is_valid(schema, value)
        if wanted is None:
            break
        text = json.dumps(order.ordered(value), ensure_ascii=False).encode()
        matcher = ready.matcher.deep_copy()
        found = matcher.validate_tokens(list(text)) == len(text)
        found = found and matcher.consume_tokens(list(text)) and matcher.is_accepting()
        if found and ready.tested:
            checks = JsonChecks(ready.plan)
            found = checks.feed(text) and checks.end()
        assert found is wanted, text


def _guides(schema: Any) -> Guides | None:
    try:
        constraint = Constraint("json_schema", json.dumps(schema))
        return compiler().guides(SamplingParams(constraint=constraint))
    except RequestError:
        return None


@pytest.mark.parametrize("seed", range(60))
def test_what_comes_of_chance_is_valid(seed: int) -> None:
    schema = Chance(2000 + seed).document()
    source = _guides(schema)
    if source is None:
        return
    for walk in range(3):
        try:
            written = write_at_random(source, walk, most_tokens=60)
        except (AssertionError, RequestError) as error:
            assert "may follow" in str(error) or "followed" in str(error)  # noqa: PT017  # a dead end, said so
            continue
        if written.finished:
            value = json.loads(written.text)
            assert is_valid(schema, value) is not False, written.text
            assert can_write(source.new(), written.text)
