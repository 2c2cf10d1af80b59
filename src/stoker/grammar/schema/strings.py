"""Patterns and formats of strings: read as llguidance reads them, and tested with its automata.

No regular expression of a user is ever given to Python's `re`, which can take for ever over one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from llguidance import LLMatcher, LLTokenizer

from stoker.api.errors import RequestError
from stoker.grammar.limits import parser_limits

# JSON as json.dumps writes it, which is what models were taught calls and answers in. Space that may be of
# any length lets a small model run away in it, and forces nothing.
JSON_FORM: Mapping[str, Any] = MappingProxyType(
    {
        "item_separator": ", ",
        "key_separator": ": ",
        "whitespace_flexible": False,
        # Without u: with it llguidance takes "\\u0061" for a name that is not "a" (seen in 1.9.1). What is
        # lost is control characters that have no short escape.
        "json_allowed_escapes": 'nrbtf\\"',
    }
)
# The same for schemas that have such characters; names must be tested then.
JSON_FORM_WITH_CONTROLS: Mapping[str, Any] = MappingProxyType(
    {**JSON_FORM, "json_allowed_escapes": 'nrbtf\\"u'}
)

# What llguidance enforces itself.
NATIVE_FORMATS = frozenset(
    {"date-time", "time", "date", "duration", "email", "hostname", "ipv4", "ipv6", "uuid", "uri"}
)

_BYTE = "(?:25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])"
_PATH = r"(?:[a-zA-Z0-9\-._~!$&'()*+,;=:@/]|%[0-9a-fA-F]{2})*"
_QUERY = r"(?:[a-zA-Z0-9\-._~!$&'()*+,;=:@/?]|%[0-9a-fA-F]{2})*"

# The others that JSON Schema defines, as patterns. `regex` and the internationalized names are wider than
# their standards in places: what a standard forbids in them takes tables of Unicode.
PATTERN_FORMATS: Mapping[str, str] = MappingProxyType(
    {
        "json-pointer": r"^(?:/(?:[^~/]|~[01])*)*$",
        "relative-json-pointer": r"^(?:0|[1-9][0-9]*)(?:#|(?:/(?:[^~/]|~[01])*)*)$",
        "uri-reference": rf"^(?:[a-zA-Z][a-zA-Z0-9+\-.]*:)?{_PATH}(?:\?{_QUERY})?(?:#{_QUERY})?$",
        "uri-template": r"^(?:[^\x00-\x20\"'<>%\\^`{|}]|%[0-9a-fA-F]{2}|\{[+#./;?&=,!@|]?"
        r"[a-zA-Z0-9_.%]+(?::[1-9][0-9]{0,3}|\*)?(?:,[a-zA-Z0-9_.%]+(?::[1-9][0-9]{0,3}|\*)?)*\})*$",
        "iri": r"^[a-zA-Z][a-zA-Z0-9+\-.]*:[^\x00-\x20<>\"{}|\\^`]*$",
        "iri-reference": r"^[^\x00-\x20<>\"{}|\\^`]*$",
        "idn-email": r"^[^\x00-\x20@\"(),:;<>\[\\\]]+@[^\x00-\x20@\"(),:;<>\[\\\]]+$",
        "idn-hostname": r"^[^\x00-\x2c/:-@\[-`{-\x7f.]+(?:\.[^\x00-\x2c/:-@\[-`{-\x7f.]+)*$",
        "host-name": r"^[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?"  # as draft 3 calls it
        r"(\.[a-zA-Z0-9]([a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*$",
        "ip-address": rf"^(?:{_BYTE}\.){{3}}{_BYTE}$",
    }
)

_QUANTIFIER = re.compile(r"\{[0-9]+(?:,[0-9]*)?\}")
_BRACED_ESCAPE = re.compile(r"\\[xpP]\{[^}]*\}")
# A negated class that may leave out the quotation mark or the backslash. llguidance lets such a class of all
# control characters match both after all, as escapes; without U+0000 it does not (seen in 1.9.1).
_RISKY_CLASS = re.compile(r"(?:[^\]\\]|\\.)*?(?:\"|\\[\\xuWDSpP]|[^\]\\]-[^\]])")
_UNICODE_ESCAPE = re.compile(r"\\u\{?([0-9a-fA-F]{4,6})\}?")


@dataclass(frozen=True, slots=True)
class SplitPattern:
    """A pattern as conditions without lookaround: all of `wanted` are found, none of `unwanted`."""

    wanted: tuple[str, ...]
    unwanted: tuple[str, ...]


def split_pattern(pattern: str) -> SplitPattern | None:
    """The lookaheads right after a `^` taken apart, exactly; None for lookaround anywhere else."""
    plain = to_rust(pattern)
    if not any(mark in plain for mark in ("(?=", "(?!", "(?<=", "(?<!")):
        return SplitPattern((plain,), ())
    if not plain.startswith("^") or _has_top_level_choice(plain):
        return None
    rest = plain[1:]
    wanted: list[str] = []
    unwanted: list[str] = []
    while rest.startswith(("(?=", "(?!")):
        end = _closing(rest)
        if end is None:
            return None
        (wanted if rest[2] == "=" else unwanted).append(f"^(?:{rest[3:end]})")
        rest = rest[end + 1 :]
        if rest[:1] in ("*", "+", "?", "{"):
            return None
    wanted.append("^" + rest)
    parts = [*wanted, *unwanted]
    if any(mark in part for part in parts for mark in ("(?=", "(?!", "(?<=", "(?<!")):
        return None
    return SplitPattern(tuple(wanted), tuple(unwanted))


def to_rust(pattern: str) -> str:
    """An ECMAScript pattern in the syntax that llguidance reads, which differs in escapes and in classes."""
    out: list[str] = []
    at, in_class = 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\" and at + 1 < len(pattern):
            unicode = _UNICODE_ESCAPE.match(pattern, at)
            if unicode is not None:
                out.append(f"\\x{{{unicode.group(1)}}}")
                at = unicode.end()
                continue
            escaped = pattern[at + 1]
            braced = _BRACED_ESCAPE.match(pattern, at)
            if braced is not None:
                out.append(braced.group())
                at = braced.end()
                continue
            out.append(escaped if escaped in "<>/" else char + escaped)
            at += 2
            continue
        if in_class:
            if char == "]":
                in_class = False
            elif char == "[" or (char in "&~-" and pattern[at + 1 : at + 2] == char):
                char = "\\" + char
        elif char == "[":
            in_class = True
            if pattern[at + 1 : at + 2] == "^":
                char, at = "[^", at + 1
                done = pattern.startswith("\\x00", at + 1)
                if not done and _RISKY_CLASS.match(pattern, at + 1) is not None:
                    char = "[^\\x00"
        elif char == "{" and _QUANTIFIER.match(pattern, at) is None:
            char = "\\{"
        out.append(char)
        at += 1
    return "".join(out)


def _scan(pattern: str) -> Iterable[tuple[int, str, int]]:
    """(place, character, depth after it) of what is neither escaped nor in a class."""
    depth, at, in_class = 0, 0, False
    while at < len(pattern):
        char = pattern[at]
        if char == "\\":
            at += 2
            continue
        if in_class:
            in_class = char != "]"
        elif char == "[":
            in_class = True
        else:
            depth += (char == "(") - (char == ")")
            yield at, char, depth
        at += 1


def _closing(pattern: str) -> int | None:
    """Where the group that opens at 0 closes."""
    return next((at for at, char, depth in _scan(pattern) if char == ")" and depth == 0), None)


def _has_top_level_choice(pattern: str) -> bool:
    return any(char == "|" and depth == 0 for _, char, depth in _scan(pattern))


def none_of(texts: Iterable[str]) -> str:
    """A pattern for every string but these: at each node of their tree, what leaves the tree."""
    tree: dict[str, Any] = {}
    for text in texts:
        node = tree
        for char in text:
            node = node.setdefault(char, {})
        node[""] = {}
    return f"^{_leaving(tree)}$"


def _leaving(node: dict[str, Any]) -> str:
    branches = sorted(char for char in node if char)
    other = "".join(f"\\x{{{ord(char):x}}}" for char in branches)
    ways = [f"[^{other}](?s:.)*" if other else "(?s:.)+"]
    ways += [f"\\x{{{ord(char):x}}}{_leaving(node[char])}" for char in branches]
    if "" not in node:
        ways.append("")
    return f"(?:{'|'.join(ways)})"


class StringTests:
    """Tests of strings against patterns and formats, and of schemas for being empty.

    Compiled automata are kept, so one of these belongs to one schema. `bytes_trie` is llguidance's
    tokenizer of single bytes.
    """

    def __init__(self, bytes_trie: LLTokenizer) -> None:
        self._trie = bytes_trie
        self._matchers: dict[str, LLMatcher] = {}

    def reads(self, pattern: str) -> bool:
        """Whether llguidance can read a plain pattern within the limits."""
        return not self._matcher(pattern_schema(pattern)).is_error()

    def finds(self, pattern: str, text: str) -> bool:
        """Whether an ECMAScript pattern is found in `text`. Raises RequestError if it cannot be told."""
        split = split_pattern(pattern)
        if split is None:
            raise RequestError(f"the pattern {pattern!r:.200} has a lookaround that is not supported")
        return all(self._accepts(pattern_schema(part), text) for part in split.wanted) and not any(
            self._accepts(pattern_schema(part), text) for part in split.unwanted
        )

    def has_format(self, name: str, text: str) -> bool:
        """Whether `text` is of the format; true for a format that JSON Schema does not define."""
        if name in NATIVE_FORMATS:
            return self._accepts({"type": "string", "format": name}, text)
        pattern = PATTERN_FORMATS.get(name)
        return pattern is None or self.finds(pattern, text)

    def is_empty(self, schema: Any) -> bool:
        """Whether llguidance can prove that no value satisfies a schema in its own dialect."""
        return "nsatisfiable" in (self.problem(schema) or "")

    def problem(self, schema: Any) -> str | None:
        """Why llguidance does not compile a schema in its own dialect, in one line; None if it does."""
        matcher = LLMatcher(
            self._trie, json_grammar(schema, JSON_FORM_WITH_CONTROLS), log_level=0, limits=parser_limits()
        )
        return first_line(matcher) if matcher.is_error() else None

    def _accepts(self, schema: dict[str, Any], text: str) -> bool:
        template = self._matcher(schema)
        if template.is_error():
            reason = schema.get("pattern", schema.get("format"))
            raise RequestError(f"the pattern {reason!r:.200} cannot be read: {template.get_error():.200}")
        matcher = template.deep_copy()
        written = json.dumps(text, ensure_ascii=False).encode("utf-8", "replace")
        return matcher.validate_tokens(list(written)) == len(written)

    def _matcher(self, schema: dict[str, Any]) -> LLMatcher:
        key = json.dumps(schema)
        found = self._matchers.get(key)
        if found is None:
            found = LLMatcher(
                self._trie, json_grammar(schema, JSON_FORM_WITH_CONTROLS), log_level=0, limits=parser_limits()
            )
            self._matchers[key] = found
        return found


def json_grammar(schema: dict[str, Any], form: Mapping[str, Any]) -> str:
    """The grammar of a schema in llguidance's dialect."""
    return LLMatcher.grammar_from_json_schema(schema, overrides=dict(form))  # type: ignore[arg-type]


def pattern_schema(pattern: str) -> dict[str, Any]:
    """The schema of strings in which a plain pattern is found."""
    return {"type": "string", "pattern": pattern}


def first_line(matcher: LLMatcher) -> str:
    """What a matcher says is wrong, without its dump."""
    return next(iter(matcher.get_error().strip().splitlines()), "no reason given")[:400]
