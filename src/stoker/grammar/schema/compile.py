"""A JSON Schema made ready: what llguidance compiles, what is tested besides, and what is to be said."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from stoker.api.errors import RequestError
from stoker.grammar.limits import parser_limits
from stoker.grammar.schema.checks import CheckPlan
from stoker.grammar.schema.document import Document
from stoker.grammar.schema.rewrite import Rewritten, rewrite
from stoker.grammar.schema.strings import (
    JSON_FORM,
    JSON_FORM_WITH_CONTROLS,
    StringTests,
    first_line,
    json_grammar,
)

# Refusals of llguidance that come of merging schemas, and the keywords that are then left to tests.
_RELAXING = (
    ("min/maxProperties only supported", frozenset({"minProperties"})),
    ("patternProperty regexes", frozenset({"patternProperties"})),
    ("'multipleOf'", frozenset({"multipleOf"})),
)
_CONTROL = re.compile(r"\\u00[01][0-9a-f]|\x7f")  # in JSON: a character that only \u can write
MOST_PLACES_SAID = 8  # of one keyword in a warning


@dataclass(frozen=True, slots=True)
class CompiledSchema:
    """A schema in llguidance's dialect, the form of JSON, and whether values must be tested besides.

    `matcher` is at the beginning of a text of the schema; to be copied.
    """

    schema: dict[str, Any]
    form: Mapping[str, Any]
    matcher: LLMatcher
    plan: CheckPlan
    tested: bool
    warnings: tuple[str, ...]


def compile_schema(text: str, bytes_trie: LLTokenizer, trie: LLTokenizer | None = None) -> CompiledSchema:
    """Make the JSON text of a schema ready, for the tokens of `trie`, or for bytes.

    Raises RequestError for text that is no schema, that no value satisfies, that is too large, or that has a
    keyword which cannot be enforced.
    """
    try:
        parsed = json.loads(text, parse_constant=_no_constant, parse_float=_finite)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"json_schema is not JSON that can be read: {error}") from error
    document, strings = Document(parsed), StringTests(bytes_trie)
    relaxed: frozenset[str] = frozenset()
    while True:
        try:
            rewritten = rewrite(document, strings, relaxed=relaxed)
        except RecursionError as error:
            raise RequestError("json_schema is nested too deeply") from error
        form = JSON_FORM
        if _CONTROL.search(json.dumps(rewritten.schema)) is not None:
            form = JSON_FORM_WITH_CONTROLS
        try:
            grammar = json_grammar(rewritten.schema, form)
        except ValueError as error:  # characters or numbers that its JSON does not have
            raise RequestError(f"json_schema cannot be read by llguidance: {error}") from error
        matcher = LLMatcher(trie or bytes_trie, grammar, log_level=0, limits=parser_limits())
        if not matcher.is_error():
            break
        problem = first_line(matcher)
        more = next((words for said, words in _RELAXING if said in problem and not words <= relaxed), None)
        if more is None:
            raise RequestError(_explained(problem))
        relaxed |= more
    tested = bool(rewritten.residue) or form is JSON_FORM_WITH_CONTROLS
    plan = CheckPlan.of(document, strings, rewritten.residue)
    return CompiledSchema(rewritten.schema, form, matcher, plan, tested, _warnings(rewritten))


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text:.40} is too large a number")
    return value


def _explained(problem: str) -> str:
    if "nsatisfiable" in problem or "Regex is empty" in problem:
        return f"json_schema contradicts itself: no value satisfies it ({problem})"
    return f"json_schema cannot be enforced: {problem}"


def _warnings(rewritten: Rewritten) -> tuple[str, ...]:
    places: dict[str, list[str]] = {}
    for left in rewritten.residue:
        written = left.place.schema
        for word in sorted(left.keywords):
            if word in written or (word.startswith("dependent") and "dependencies" in written):
                places.setdefault(word, []).append(left.place.at)
    said = [
        f"{word} at {_listed(at)} is enforced by testing values when they are complete, not by masks"
        for word, at in places.items()
    ]
    said += [f"format {what} is not defined by JSON Schema and not enforced" for what in rewritten.ignored]
    return tuple(said)


def _listed(places: list[str]) -> str:
    shown = ", ".join(places[:MOST_PLACES_SAID])
    more = len(places) - MOST_PLACES_SAID
    return shown if more <= 0 else f"{shown} and {more} places more"
