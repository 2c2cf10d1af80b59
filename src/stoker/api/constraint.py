"""What an answer must look like, beyond being likely: grammars, tool calls, and thinking that ends in time.

Frozen values that travel; what they mean in tokens is `stoker.grammar`'s.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from stoker.api.errors import RequestError

MAX_GRAMMAR_CHARS = 1 << 20  # of a schema, regex or grammar; compiling is limited besides
MAX_ALTERNATIVES = 4096  # choices, and tags

ConstraintKind = Literal["json_object", "json_schema", "regex", "choice", "lark", "tags"]


@dataclass(frozen=True, slots=True)
class Tag:
    """A piece of text that begins and ends so, and is JSON of a schema between."""

    begin: str
    schema: str  # JSON text of a JSON Schema
    end: str


@dataclass(frozen=True, slots=True)
class Tags:
    """Where tags may stand: between texts, each after the other, or instead of any text.

    A text of a control token (`<tool_call>`, `[TOOL_CALLS]`) in `before`, `begin`, `end`, `after` means
    that token where the model has it.
    """

    tags: tuple[Tag, ...]
    triggers: tuple[str, ...] = ()  # a text that begins so is a tag from there on; needed with `text`
    text: bool = False  # free text may come first, and between and after tags
    least: int = 0  # tags that must come
    most: int | None = None  # that may come; none: any number
    before: str = ""  # before the first of a run of tags; nothing if none comes
    between: str = ""
    after: str = ""


@dataclass(frozen=True, slots=True)
class Constraint:
    """The only texts an answer can be. Raises `RequestError` for a value that is none."""

    kind: ConstraintKind
    text: str = ""  # schema as JSON, regex, or Lark grammar
    choices: tuple[str, ...] = ()  # of "choice"
    tags: Tags | None = None  # of "tags"

    def __post_init__(self) -> None:
        if self.kind not in ("json_object", "json_schema", "regex", "choice", "lark", "tags"):
            raise RequestError(
                f"constraint kind is {self.kind!r:.40}; allowed: json_object, json_schema, regex, choice, "
                "lark, tags"
            )
        chars = len(self.text) + sum(map(len, self.choices))
        alternatives = len(self.choices)
        if self.tags is not None:
            chars += sum(len(tag.begin) + len(tag.schema) + len(tag.end) for tag in self.tags.tags)
            alternatives += len(self.tags.tags)
        if chars > MAX_GRAMMAR_CHARS:
            raise RequestError(
                f"the {self.kind} constraint has {chars} characters; allowed: at most {MAX_GRAMMAR_CHARS}"
            )
        if alternatives > MAX_ALTERNATIVES:
            raise RequestError(
                f"the {self.kind} constraint has {alternatives} alternatives; allowed: at most "
                f"{MAX_ALTERNATIVES}"
            )
        if self.kind == "choice" and (not self.choices or "" in self.choices):
            raise RequestError("choice is empty, or has an empty text; allowed: one non-empty text or more")
        if self.kind == "tags" and (self.tags is None or not self.tags.tags):
            raise RequestError("tags is empty; allowed: one tag or more")
        if self.kind in ("json_schema", "regex", "lark") and not self.text:
            raise RequestError(f"{self.kind} is empty; allowed: a text")


@dataclass(frozen=True, slots=True)
class Thinking:
    """How a model that thinks aloud does it. The answer's constraint, if any, holds after the thinking."""

    begin: str  # "<think>"
    end: str  # "</think>"
    begun: bool  # the prompt ends inside: the answer starts with thoughts
    # After so many tokens of thoughts the end is written for the model; 0: at once; none: no limit.
    budget_tokens: int | None = None
    closing: str = ""  # what is written before `end` then, so that the thoughts do not break off

    def __post_init__(self) -> None:
        if not self.begin or not self.end:
            raise RequestError("thinking needs the text that begins it and the text that ends it")
        budget = self.budget_tokens
        if budget is not None and (
            isinstance(budget, bool) or not isinstance(budget, int) or not 0 <= budget < 1 << 31
        ):
            raise RequestError(
                f"thinking_token_budget is {budget!r:.40}; allowed: a whole number from 0 to {(1 << 31) - 1}"
            )
