"""What a model's calls and thoughts look like in text, as its chat template tells."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.api.chat import Message, Tool
from stoker.api.constraint import Tag, Tags, Thinking
from stoker.tools.parser import AnswerParser, CallMarks
from stoker.tools.thinking import ThinkingMarks

# (messages, tools to show, template's source) -> what its template is given
Rendering = Callable[[Sequence[Message], Sequence[Tool], str], tuple[tuple[Message, ...], tuple[Tool, ...]]]


@dataclass(frozen=True, slots=True)
class CallFormat:
    """One way to write calls. The registry of them is in `stoker.tools.registry`."""

    name: str
    marks: CallMarks
    render: Rendering
    most_calls: int | None = None  # of one answer; none: any number
    # Its marks may be control tokens, which are part of the text only if that is asked for.
    has_control_tokens: bool = False


@dataclass(frozen=True, slots=True)
class ChatFormat:
    """What a template tells of its model: how it calls and how it thinks."""

    calls: CallFormat
    thinking: ThinkingMarks | None
    template: str

    def rendered(
        self, messages: Sequence[Message], tools: Sequence[Tool]
    ) -> tuple[tuple[Message, ...], tuple[Tool, ...]]:
        """The messages and tools to give to the template, so that it shows all of them."""
        return self.calls.render(messages, tools, self.template)

    def tags(
        self,
        tools: Sequence[Tool],
        *,
        text: bool,
        least: int = 0,
        most: int | None = None,
        or_schema: str | None = None,
    ) -> Tags:
        """The constraint on calls of `tools`. `text`: an answer may also be, or have, free text.

        `or_schema`: instead of calls the answer may be JSON of this schema; then one call is the most.
        """
        marks = self.calls.marks
        if self.calls.most_calls is not None:
            most = self.calls.most_calls if most is None else min(most, self.calls.most_calls)
        if or_schema is not None:
            single = tuple(
                Tag(marks.before + head + tool.name + marks.tail, tool.parameters, marks.end + marks.after)
                for tool in tools
                for head in marks.heads
            )
            return Tags((*single, Tag("", or_schema, "")), least=1, most=1)
        return Tags(
            tuple(
                Tag(head + tool.name + marks.tail, tool.parameters, marks.end)
                for tool in tools
                for head in marks.heads
            ),
            triggers=marks.triggers if text else (),
            text=text,
            least=least,
            most=most,
            before=marks.before,
            between=marks.between,
            after=marks.after,
        )

    def thoughts(self, variables: Mapping[str, Any], budget_tokens: int | None) -> Thinking | None:
        """How the model thinks when its template is given `variables`; none if it does not."""
        if self.thinking is None:
            return None
        return self.thinking.thinking(variables, budget_tokens)

    def parser(
        self, *, thinking: Thinking | None, tools: Sequence[Tool] = (), call_seed: str = ""
    ) -> AnswerParser:
        """A parser for one answer. `tools`: those that may be called; `call_seed`: what call ids are made
        from, another one for each answer."""
        names = tuple(tool.name for tool in tools)
        return AnswerParser(thinking, self.calls.marks if names else None, names=names, call_seed=call_seed)
