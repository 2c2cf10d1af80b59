"""A conversation with tools and thinking, whatever dialect it came in, as the engine is asked for it.

Every dialect makes a `Conversation` of its body; `prepare` checks it and says what to generate and how the
answer's text is to be read.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import Any, Literal

from stoker.api.chat import Chat, Message, Tool
from stoker.api.constraint import Constraint, Thinking
from stoker.api.errors import RequestError
from stoker.api.protocols import ServedModel
from stoker.api.request import SamplingParams
from stoker.server.constraints import closed
from stoker.server.errors import refuse
from stoker.server.field_names import CHAT_FIELDS, FieldNames
from stoker.server.tool_checks import MAX_TOOLS, check_choice, check_turns, checked_tools
from stoker.tools import AnswerParser, ChatFormat, chat_format

__all__ = [
    "AUTO",
    "CHAT_FIELDS",
    "MAX_TOOLS",
    "Conversation",
    "FieldNames",
    "Prepared",
    "ToolChoice",
    "prepare",
]

# Tokens of thoughts for each effort; "high" and above is as much as the model likes.
_BUDGETS: Mapping[str, int | None] = MappingProxyType(
    {"none": 0, "minimal": 256, "low": 1024, "medium": 8192, "high": None, "xhigh": None, "max": None}
)
# What templates are given in any case; a variable must not replace it.
_TAKEN = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


@dataclass(frozen=True, slots=True)
class ToolChoice:
    """Whether tools are called. `names`: of "named" the one tool, else those allowed; () for all."""

    mode: Literal["auto", "none", "required", "named"] = "auto"
    names: tuple[str, ...] = ()


AUTO = ToolChoice()


@dataclass(frozen=True, slots=True)
class Conversation:
    """What a dialect was asked for."""

    messages: tuple[Message, ...]
    tools: tuple[Tool, ...] = ()
    tool_choice: ToolChoice = AUTO
    parallel_tool_calls: bool = True
    constraint: Constraint | None = None  # on the text that is said, after thoughts and instead of calls
    reasoning_effort: str | None = None
    thinking_budget_tokens: int | None = None
    variables: Mapping[str, Any] = field(default_factory=dict, hash=False)  # for the template
    add_generation_prompt: bool = True
    fields: FieldNames = CHAT_FIELDS  # for messages of what is wrong


@dataclass(frozen=True, slots=True)
class Prepared:
    """What to generate, and how to read it."""

    chat: Chat
    sampling: SamplingParams
    format: ChatFormat
    callable_tools: tuple[Tool, ...] = ()
    tools: tuple[Tool, ...] = ()  # all that were given
    fields: FieldNames = CHAT_FIELDS

    def field_to_blame(self, message: str) -> str:
        """The field that an engine's refusal of the constraint is about; `message` quotes a tag's begin."""
        constraint = self.sampling.constraint
        if constraint is None or constraint.tags is None or not self.callable_tools:
            return self.fields.constraint
        tail = self.format.calls.marks.tail
        for tag in constraint.tags.tags:
            if tag.begin and repr(tag.begin)[1:-1] in message:
                for number, tool in enumerate(self.tools):
                    if tag.begin.endswith(tool.name + tail):
                        return self.fields.tool_parameters.format(number)
        return self.fields.tools

    @property
    def is_plain(self) -> bool:
        """True if the whole text is what is said: a parser would give one text part for each piece."""
        return not self.callable_tools and self.sampling.thinking is None

    def parser(self, call_seed: str = "") -> AnswerParser:
        """A parser for one choice. Call ids are made from `call_seed`: the request's id and the choice."""
        return self.format.parser(
            thinking=self.sampling.thinking, tools=self.callable_tools, call_seed=call_seed
        )


def prepare(model: ServedModel, conversation: Conversation, sampling: SamplingParams) -> Prepared:
    """Check `conversation` and say what to ask the engine. Raises `Refusal` (400) that names the field."""
    fields = conversation.fields
    if not model.has_chat_template:
        raise refuse(
            fields.messages,
            f"{model.card.name} has no chat template (it is a base model); allowed: POST /v1/completions",
        )
    form = chat_format(model.chat_template)
    tools = checked_tools(conversation.tools, fields)
    check_choice(conversation.tool_choice.mode, conversation.tool_choice.names, tools, fields)
    check_turns(conversation.messages, form.template, fields)
    thinking, variables = _thinking(conversation, form, model.card.name)
    callable_tools = _callable(conversation.tool_choice, tools)
    constraint = _constraint(conversation, form, callable_tools)
    if constraint is not None or thinking is not None:
        sampling = replace(
            sampling,
            constraint=constraint,
            thinking=thinking,
            # The parser has to see marks that are control tokens.
            skip_special_tokens=sampling.skip_special_tokens
            and thinking is None
            and not (callable_tools and form.calls.has_control_tokens),
        )
    # The model sees the parameters as they were given; without a choice it sees no tools.
    shown = () if conversation.tool_choice.mode == "none" else conversation.tools
    messages, template_tools = form.rendered(conversation.messages, shown)
    chat = Chat(messages, template_tools, variables, conversation.add_generation_prompt)
    return Prepared(chat, sampling, form, callable_tools, conversation.tools, fields)


def _thinking(
    conversation: Conversation, form: ChatFormat, model_name: str
) -> tuple[Thinking | None, Mapping[str, Any]]:
    fields = conversation.fields
    variables = _variables(conversation, form)
    effort, budget = conversation.reasoning_effort, conversation.thinking_budget_tokens
    if form.thinking is None:
        if budget is not None:
            raise refuse(fields.budget, f"{fields.budget} is given, but {model_name} does not think aloud")
        if effort not in (None, "none"):
            raise refuse(
                fields.effort,
                f"{fields.effort} is {effort!r:.40}, but {model_name} does not think aloud; allowed: none",
            )
        return None, variables
    if effort is not None:
        if form.thinking.takes_effort:
            variables = {"reasoning_effort": effort, **variables}
        if form.thinking.switch is not None:
            variables = {form.thinking.switch: effort != "none", **variables}
        if budget is None:
            budget = _BUDGETS.get(effort)
    thinking = form.thoughts(variables, budget)
    if thinking is not None and not conversation.add_generation_prompt:
        thinking = replace(thinking, begun=False)  # the prompt ends in what was said, after any thoughts
    return thinking, variables


def _variables(conversation: Conversation, form: ChatFormat) -> Mapping[str, Any]:
    """Those that mean something to the template; false for a switch of thinking that it has not."""
    where, kept = conversation.fields.variables, {}
    for name, value in conversation.variables.items():
        if name in _TAKEN:
            raise refuse(where, f"{where}.{name:.80} is given, but it is made from other fields")
        if re.search(rf"(?<!\w){re.escape(name)}(?!\w)", form.template):
            kept[name] = value
        elif not (name in ("enable_thinking", "thinking") and value is False and form.thinking is None):
            raise refuse(where, f"{where}.{name:.80} is given, but the model's chat template does not use it")
    return kept


def _callable(choice: ToolChoice, tools: tuple[Tool, ...]) -> tuple[Tool, ...]:
    if choice.mode == "none":
        return ()
    if choice.names:
        return tuple(tool for tool in tools if tool.name in choice.names)
    return tools


def _constraint(conversation: Conversation, form: ChatFormat, tools: tuple[Tool, ...]) -> Constraint | None:
    if not tools:
        return None if conversation.constraint is None else closed(conversation.constraint)
    fields, mode = conversation.fields, conversation.tool_choice.mode
    least = 1 if mode in ("required", "named") else 0
    most = 1 if mode == "named" or not conversation.parallel_tool_calls else None
    or_schema = None
    if conversation.constraint is not None and not least:
        or_schema = _schema_of(closed(conversation.constraint), fields)
    tags = form.tags(tools, text=not least, least=least, most=most, or_schema=or_schema)
    try:
        return Constraint("tags", tags=tags)
    except RequestError as error:  # too large
        raise refuse(fields.tools, f"{fields.tools}: {error}") from None


def _schema_of(constraint: Constraint, fields: FieldNames) -> str:
    if constraint.kind == "json_object":
        return '{"type": "object"}'
    if constraint.kind == "json_schema":
        return constraint.text
    raise refuse(
        fields.constraint,
        f"{fields.constraint} is given together with tools; allowed: JSON, or tool_choice none",
    )
