"""Tags (tool calls, mostly) as a Lark grammar."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from stoker.api.constraint import Tags
from stoker.api.errors import RequestError
from stoker.grammar.vocabulary import Vocabulary

_JSON_WORDS = re.compile(r'"(?:[^"\\]|\\.)*"|[{}\[\]]|, |: |[^"{}\[\],:]+|.', re.DOTALL)
_REGEX_SPECIAL = frozenset("\\.+*?()|[]{}^$#&-~/")


def tags_to_lark(tags: Tags, schemas: Sequence[Any], vocabulary: Vocabulary) -> str:
    """A grammar of text and tags, as `Tags` describes them. `schemas` are those of the tags, made ready
    and with the form of JSON in them.

    Raises RequestError for tags that contradict themselves.
    """
    most = tags.most
    if tags.least < 0 or (most is not None and most < max(1, tags.least)):
        raise RequestError(f"tags are to come {tags.least} to {most} times; allowed: 0 or more, to 1 or more")
    writer = _Writer(tags, vocabulary)
    lines = ["start: " + (writer.with_text() if tags.text else writer.without_text())]
    for index, schema in enumerate(schemas):
        lines.append(f"json_{index}: %json {json.dumps(schema)}")
    return "\n".join([*lines, *writer.rules]) + "\n"


class _Writer:
    def __init__(self, tags: Tags, vocabulary: Vocabulary) -> None:
        self._tags = tags
        self._vocabulary = vocabulary
        self.rules: list[str] = []

    def without_text(self) -> str:
        """A run of tags, or nothing if none must come."""
        run = f"{self._text(self._tags.before)} {self._run()}"
        return f"({run})?" if self._tags.least == 0 else run

    def with_text(self) -> str:
        """Text without a trigger, then what a trigger begins, then text again."""
        tags = self._tags
        triggers = tags.triggers or tuple(dict.fromkeys(tags.before or tag.begin for tag in tags.tags))
        heads = {trigger: self._head(index, trigger) for index, trigger in enumerate(triggers)}
        unwanted = [trigger for trigger in triggers if self._token(trigger) is None]
        text = "/(?s:.*)/" + "".join(f" & ~/(?s:.*){_escaped(x)}(?s:.*)/" for x in unwanted)
        self.rules.append(f"TAIL: {text}")
        if tags.before:
            trigger = self._trigger_of(tags.before, triggers)
            run = f"{heads[trigger]} {self._text(tags.before[len(trigger) :])} {self._run()}"
            return f"({run})? TAIL" if tags.least == 0 else f"{run} TAIL"
        ways = []
        for index, tag in enumerate(tags.tags):
            trigger = self._trigger_of(tag.begin, triggers)
            ways.append(f"{heads[trigger]} {self._text(tag.begin[len(trigger) :])} {self._rest(index)}")
        self.rules.append("called: " + " | ".join(ways))
        most = "" if tags.most is None else tags.most
        return f"called{{{tags.least},{most}}} TAIL"

    def _run(self) -> str:
        """The tags between `before` and the end of `after`."""
        tags = self._tags
        ways = [f"{self._text(tag.begin)} {self._rest(index)}" for index, tag in enumerate(tags.tags)]
        self.rules.append("tag: " + " | ".join(ways))
        most = "" if tags.most is None else tags.most - 1
        more = f"({self._text(tags.between)} tag){{{max(0, tags.least - 1)},{most}}}"
        if tags.most == 1:  # a range that ends at 0 is none to llguidance
            more = ""
        return f"tag {more} {self._text(tags.after)}"

    def _rest(self, index: int) -> str:
        return f"json_{index} {self._text(self._tags.tags[index].end)}"

    def _head(self, index: int, trigger: str) -> str:
        """A rule for text up to the end of the trigger's first occurrence."""
        token_id = self._token(trigger)
        name = f"head_{index}"
        if token_id is not None:
            self.rules.append(f"{name}: /(?s:.*)/ <[{token_id}]>")
        else:
            self.rules.append(f"{name}[lazy]: /(?s:.*)/ {json.dumps(trigger)}")
        return name

    def _token(self, text: str) -> int | None:
        tokenizer = self._vocabulary.tokenizer
        token_id = tokenizer.token_id(text)
        return token_id if token_id is not None and tokenizer.is_special(token_id) else None

    @staticmethod
    def _trigger_of(begin: str, triggers: Sequence[str]) -> str:
        fitting = [trigger for trigger in triggers if trigger and begin.startswith(trigger)]
        if not fitting:
            raise RequestError(f"a tag begins with {begin!r:.80}, which none of the triggers begins")
        return fitting[0]

    def _text(self, text: str) -> str:
        """The text as symbols of a rule: control tokens as tokens, all else as it is written."""
        tokenizer = self._vocabulary.tokenizer
        symbols: list[str] = []
        at = 0
        for start, end in tokenizer.control_spans(text):
            token_id = self._token(text[start:end])
            if token_id is None:
                continue
            symbols += self._words(text[at:start])
            symbols.append(f"<[{token_id}]>")
            at = end
        symbols += self._words(text[at:])
        return " ".join(symbols)

    def _words(self, text: str) -> list[str]:
        """Plain text as string literals.

        llguidance's lexer prefers a longer literal. Where a value may stand instead of a tag, the text is cut
        as JSON is, so that after a brace both may still follow.
        """
        if all(tag.begin for tag in self._tags.tags):
            return [json.dumps(text)] if text else []
        return [json.dumps(word) for word in _JSON_WORDS.findall(text)]


def _escaped(text: str) -> str:
    escapes = {"\n": "\\n", "\r": "\\r", "\t": "\\t"}
    return "".join(escapes.get(c, "\\" + c if c in _REGEX_SPECIAL else c) for c in text)
