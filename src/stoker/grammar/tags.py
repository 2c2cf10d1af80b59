"""Tags (tool calls, mostly) as a Lark grammar."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from stoker.api.constraint import Tag, Tags
from stoker.api.errors import RequestError
from stoker.grammar.vocabulary import Vocabulary


def tags_to_lark(tags: Tags, vocabulary: Vocabulary, json_form: Mapping[str, Any]) -> str:
    """A grammar of text and tags, as `Tags` describes them. Raises RequestError."""
    return _Writer(tags, vocabulary, json_form).grammar()


class _Writer:
    def __init__(self, tags: Tags, vocabulary: Vocabulary, json_form: Mapping[str, Any]) -> None:
        self._tags = tags
        self._vocabulary = vocabulary
        self._form = json_form

    def grammar(self) -> str:
        tags = self._tags
        if tags.least < 0 or (tags.most is not None and tags.most < max(1, tags.least)):
            raise RequestError(f"tags must come {tags.least} to {tags.most} times, which is no range")
        lines = ["start: " + self._start()]
        lines += [f"tag_{index}: {self._tag(tag)}" for index, tag in enumerate(tags.tags)]
        lines.append("tag: " + " | ".join(f"tag_{index}" for index in range(len(tags.tags))))
        return "\n".join(lines) + "\n"

    def _start(self) -> str:
        tags = self._tags
        run = self._run(tags.least, tags.most)
        if tags.text:
            raise RequestError("tags with text are not supported yet")
        return run

    def _run(self, least: int, most: int | None) -> str:
        tags = self._tags
        before, between, after = (self._text(text) for text in (tags.before, tags.between, tags.after))
        rest_least = max(0, least - 1)
        rest = f"({between} tag){{{rest_least},{'' if most is None else most - 1}}}"
        run = f"{before} tag {rest} {after}"
        return f"({run})?" if least == 0 else run

    def _tag(self, tag: Tag) -> str:
        schema = json.loads(tag.schema)
        if schema is True:
            schema = {}
        schema["x-guidance"] = dict(self._form)
        return f"{self._text(tag.begin)} %json {json.dumps(schema)} {self._text(tag.end)}"

    def _text(self, text: str) -> str:
        """The text as symbols of a rule: control tokens as tokens, all else as it is written."""
        tokenizer = self._vocabulary.tokenizer
        symbols: list[str] = []
        at = 0
        for start, end in tokenizer.control_spans(text):
            token_id = tokenizer.token_id(text[start:end])
            if token_id is None:
                continue
            if start > at:
                symbols.append(json.dumps(text[at:start]))
            symbols.append(f"<[{token_id}]>")
            at = end
        if at < len(text):
            symbols.append(json.dumps(text[at:]))
        return " ".join(symbols)
