"""Constraints as sources of llguidance grammars."""

from __future__ import annotations

import json
from dataclasses import dataclass

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from stoker.api.constraint import Constraint
from stoker.api.errors import RequestError
from stoker.grammar.tags import tags_to_lark
from stoker.grammar.vocabulary import Vocabulary

# JSON as json.dumps writes it, which is what models were taught calls and answers in. Space that may be of
# any length lets a small model run away in it, and forces nothing.
JSON_FORM = {"item_separator": ", ", "key_separator": ": ", "whitespace_flexible": False}


@dataclass(frozen=True, slots=True)
class Source:
    """A grammar as llguidance reads it, and what is to be said about it."""

    text: str
    warnings: tuple[str, ...] = ()


def source_of(constraint: Constraint, vocabulary: Vocabulary) -> Source:
    """The grammar of a constraint. Raises RequestError for one that cannot be a grammar."""
    kind = constraint.kind
    if kind == "json_object":
        return Source(json_grammar('{"type": "object"}'))
    if kind == "json_schema":
        return Source(json_grammar(constraint.text))
    if kind == "regex":
        return Source(LLMatcher.grammar_from_regex(constraint.text))
    if kind == "choice":
        words = " | ".join(json.dumps(choice) for choice in constraint.choices)
        return Source(LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {words}\n"))
    if kind == "lark":
        return Source(LLMatcher.grammar_from_lark(_as_lark(constraint.text)))
    if constraint.tags is None:
        raise RequestError("constraint kind is tags, without tags")
    return Source(LLMatcher.grammar_from_lark(tags_to_lark(constraint.tags, vocabulary, JSON_FORM)))


def json_grammar(schema: str) -> str:
    """The grammar of a JSON Schema, given as text. Raises RequestError."""
    try:
        parsed = json.loads(schema)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"json_schema is not JSON: {error}") from error
    if not isinstance(parsed, (dict, bool)):
        raise RequestError(f"json_schema is {schema!r:.60}; allowed: an object, or true")
    if parsed is True:
        parsed = {}
    if parsed is False:
        raise RequestError("json_schema is false, which no text satisfies")
    return LLMatcher.grammar_from_json_schema(json.dumps(parsed), overrides=JSON_FORM)  # type: ignore[arg-type]


def _as_lark(text: str) -> str:
    if "::=" not in text:
        return text
    try:
        return any_to_lark(text)
    except Exception as error:  # the converter raises bare Exceptions
        raise RequestError(f"the GBNF grammar cannot be read: {error}") from error
