"""Constraints as grammars of llguidance, with the tests that they need besides."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from llguidance import LLMatcher
from llguidance.gbnf_to_lark import any_to_lark

from stoker.api.constraint import Constraint, Tags
from stoker.api.errors import RequestError
from stoker.grammar.schema.compile import compile_schema
from stoker.grammar.schema.strings import JSON_FORM, json_grammar
from stoker.grammar.tags import tags_to_lark
from stoker.grammar.text_checks import JsonChecks, OneTagChecks, TagChecks, TextChecks
from stoker.grammar.vocabulary import Vocabulary


@dataclass(frozen=True, slots=True)
class Source:
    """A grammar of llguidance, what is to be said about it, and what makes tests for a text."""

    grammar: LLMatcher | str  # compiled already, or to be compiled
    warnings: tuple[str, ...] = ()
    new_checks: Callable[[], TextChecks] | None = None


def source_of(constraint: Constraint, vocabulary: Vocabulary) -> Source:
    """The grammar of a constraint. Raises RequestError for one that cannot be a grammar."""
    kind = constraint.kind
    if kind == "json_object":
        return Source(json_grammar({"type": "object"}, JSON_FORM))
    if kind == "json_schema":
        ready = compile_schema(constraint.text, vocabulary.bytes_trie, vocabulary.trie)
        checks = partial(JsonChecks, ready.plan) if ready.tested else None
        return Source(ready.matcher, ready.warnings, checks)
    if kind == "regex":
        return Source(LLMatcher.grammar_from_regex(_with_ascii_digits(constraint.text)))
    if kind == "choice":
        words = " | ".join(map(json.dumps, dict.fromkeys(constraint.choices)))
        return Source(LLMatcher.grammar_from_lark(f"start: CHOICE\nCHOICE: {words}\n"))
    if kind == "lark":
        return Source(LLMatcher.grammar_from_lark(_as_lark(constraint.text)))
    if constraint.tags is None:
        raise RequestError("constraint kind is tags, without tags")
    return _tags(constraint.tags, vocabulary)


def _tags(tags: Tags, vocabulary: Vocabulary) -> Source:
    ready = []
    for tag in tags.tags:
        try:
            ready.append(compile_schema(tag.schema, vocabulary.bytes_trie))
        except RequestError as error:
            raise RequestError(f"the schema after {tag.begin!r:.120}: {error}") from error
    text = tags_to_lark(
        tags, [{**schema.schema, "x-guidance": dict(schema.form)} for schema in ready], vocabulary
    )
    warnings = tuple(dict.fromkeys(said for schema in ready for said in schema.warnings))
    places = [(tag.begin.encode(), schema.plan) for tag, schema in zip(tags.tags, ready, strict=True)]
    checks: Callable[[], TextChecks] | None = None
    if any(schema.tested for schema in ready):
        checks = partial(TagChecks if all(tag.begin for tag in tags.tags) else OneTagChecks, places)
    return Source(LLMatcher.grammar_from_lark(text), warnings, checks)


def _with_ascii_digits(pattern: str) -> str:
    """A regex whose \\d is [0-9], as in patterns of schemas: Rust's has the digits of all scripts, and a
    model that has begun a token of their bytes can only go on with them."""
    out: list[str] = []
    at, depth = 0, 0  # of classes
    while at < len(pattern):
        piece = pattern[at : at + 2] if pattern[at] == "\\" else pattern[at]
        after = at + len(piece)
        depth = max(0, depth + (piece == "[") - (piece == "]"))
        is_bound = depth > 0 and (out[-1:] == ["-"] or pattern[after : after + 1] == "-")  # Rust refuses it
        out.append("[0-9]" if piece == "\\d" and not is_bound else piece)
        at = after
    return "".join(out)


def _as_lark(text: str) -> str:
    if "::=" not in text:
        return text
    try:
        return any_to_lark(text)
    except Exception as error:  # the converter raises bare Exceptions
        raise RequestError(f"the GBNF grammar cannot be read: {error}") from error
