"""From Anthropic's messages, blocks and tools to a `Conversation`. Calls and results must match here, so that
no template meets a result without a call."""

from __future__ import annotations

import itertools
import json
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.api.chat import Message, Tool, ToolCall
from stoker.api.constraint import Constraint
from stoker.server.conversation import Conversation, FieldNames, ToolChoice
from stoker.server.errors import refuse
from stoker.server.messages.schemas import (
    Block,
    ConversationFields,
    CustomTool,
    TextBlock,
    ThinkingBlock,
    ToolResultBlock,
    ToolUseBlock,
)

# Claude Code writes who pays for the request into the system prompt, differently each time. That is no part
# of what the model is told, and before everything else it would keep every prefix out of the cache.
_BILLING = "x-anthropic-billing-header:"
_MOST_LISTED = 10  # names in a message
_FIELDS = FieldNames(
    tool_name="tools[{}].name",
    tool_parameters="tools[{}].input_schema",
    tool_call_id="messages",  # these three are checked here, where the place is known
    tool_calls="messages",
    name="messages",
    constraint="output_config.format",
    effort="output_config.effort",
    budget="thinking.budget_tokens",
)


@dataclass(frozen=True, slots=True)
class _Place:
    """A block, and its path in the request."""

    path: str
    block: Block


def conversation_of(fields: ConversationFields) -> Conversation:
    """What is asked about. Raises `Refusal` for calls and results that do not match, wrong tools, and a
    thinking that contradicts itself."""
    tools = tuple(_tools(fields.tools or []))
    messages = [*_system(fields), *_messages(fields)]
    effort, budget = _thinking(fields)
    # An assistant's turn at the end is gone on with.
    is_open = fields.messages[-1].role == "assistant"
    text = messages[-1].content
    if is_open and (not text or text[-1].isspace()):
        where = f"messages[{len(fields.messages) - 1}].content"
        raise refuse(where, f"{where} is to be gone on with, but its text is empty or ends with white space")
    return Conversation(
        tuple(messages),
        tools=tools,
        tool_choice=_tool_choice(fields, tools),
        parallel_tool_calls=not (fields.tool_choice and fields.tool_choice.disable_parallel_tool_use),
        constraint=_constraint(fields),
        reasoning_effort=effort,
        thinking_budget_tokens=budget,
        add_generation_prompt=not is_open,
        fields=_FIELDS,
    )


def _system(fields: ConversationFields) -> Iterator[Message]:
    texts = [block.text for block in fields.system or []]
    if texts and texts[0].startswith(_BILLING):
        rest = texts[0].partition("\n")[2]
        texts[0:1] = [rest] if rest else []
    if texts:
        yield Message("system", "\n".join(texts))


def _messages(fields: ConversationFields) -> Iterator[Message]:
    places = (
        (turn.role, _Place(f"messages[{i}].content[{j}]", block))
        for i, turn in enumerate(fields.messages)
        for j, block in enumerate(turn.content)
    )
    waiting: dict[str, str] = {}  # ids of the calls of the turn before -> names
    known: set[str] = set()
    for role, group in itertools.groupby(places, key=lambda item: item[0]):
        turn = [place for _, place in group]
        if role == "assistant":
            message, waiting = _assistant(turn, known)
            yield message
            continue
        yield from _results(turn, waiting)
        waiting = {}
        texts = [_text(place, role) for place in turn if not isinstance(place.block, ToolResultBlock)]
        if texts:
            yield Message(role, "\n".join(texts))
    if waiting:
        raise _unanswered("messages", waiting)


def _assistant(turn: Sequence[_Place], known: set[str]) -> tuple[Message, dict[str, str]]:
    """An assistant's turn, and its calls that wait for results. `known` gains their ids."""
    texts, thoughts, calls = [], [], []
    for place in turn:
        block = place.block
        if isinstance(block, ToolUseBlock):
            if block.id in known:
                raise refuse(place.path, f"{place.path}.id is {block.id!r}, as that of a call before it")
            known.add(block.id)
            arguments = json.dumps(block.input, ensure_ascii=False)
            calls.append(ToolCall(block.id, block.name, arguments))
        elif isinstance(block, ThinkingBlock):
            thoughts.append(block.thinking)
        else:
            texts.append(_text(place, "assistant"))
    message = Message(
        "assistant", "\n".join(texts), tool_calls=tuple(calls), reasoning="\n".join(filter(None, thoughts))
    )
    return message, {call.id: call.name for call in calls}


def _results(turn: Sequence[_Place], waiting: dict[str, str]) -> Iterator[Message]:
    """The results at the start of a turn. `waiting` loses the calls they answer; none may be left."""
    others = False
    for place in turn:
        block = place.block
        if not isinstance(block, ToolResultBlock):
            others = True
            continue
        path, call_id = f"{place.path}.tool_use_id", block.tool_use_id
        if call_id not in waiting:
            listed = _listed(waiting)
            raise refuse(
                path, f"{path} is {call_id!r}; calls of the turn before that wait for a result: {listed}"
            )
        if others:
            raise refuse(place.path, f"{place.path} is a tool_result after other blocks; allowed: first")
        text = "\n".join(part.text for part in block.content or [])
        name = waiting.pop(call_id)
        yield Message("tool", f"Error: {text}" if block.is_error else text, tool_call_id=call_id, name=name)
    if waiting:
        raise _unanswered(turn[0].path.partition(".")[0], waiting)


def _listed(names: Collection[str]) -> str:
    shown = ", ".join(itertools.islice(names, _MOST_LISTED)) or "none"
    return shown if len(names) <= _MOST_LISTED else f"{shown}, and {len(names) - _MOST_LISTED} more"


def _unanswered(path: str, waiting: Mapping[str, str]) -> Exception:
    return refuse(
        path,
        f"{path}: calls without a tool_result in the next turn: {_listed(waiting)}; allowed: one for each, "
        "at the start of the user's turn that follows",
    )


def _text(place: _Place, role: str) -> str:
    block = place.block
    if isinstance(block, TextBlock):
        return block.text
    kinds = "text, thinking, tool_use" if role == "assistant" else "text, tool_result"
    kinds = "text" if role == "system" else kinds
    raise refuse(
        f"{place.path}.type",
        f"{place.path}.type is {block.type!r} in a turn of role {role}; allowed: {kinds}",
    )


def _tools(tools: Sequence[CustomTool]) -> Iterator[Tool]:
    names: set[str] = set()
    for number, tool in enumerate(tools):
        path = f"tools[{number}]"
        if tool.name in names:
            raise refuse(f"{path}.name", f"{path}.name is {tool.name!r}, as that of a tool before it")
        names.add(tool.name)
        if tool.input_schema.get("type") != "object":
            kind = tool.input_schema.get("type")
            raise refuse(
                f"{path}.input_schema", f'{path}.input_schema.type is {kind!r:.80}; allowed: "object"'
            )
        examples = "".join(
            f"\nExample of its input: {json.dumps(example, ensure_ascii=False)}"
            for example in tool.input_examples or []
        )
        yield Tool(
            tool.name,
            (tool.description or "") + examples,
            json.dumps(tool.input_schema, ensure_ascii=False),
            strict=bool(tool.strict),
        )


def _tool_choice(fields: ConversationFields, tools: Sequence[Tool]) -> ToolChoice:
    choice = fields.tool_choice
    if choice is None:
        return ToolChoice("auto")
    if (choice.name is not None) != (choice.type == "tool"):
        wants = "is missing" if choice.name is None else f"is given with type {choice.type!r}"
        raise refuse(
            "tool_choice.name", f'tool_choice.name {wants}; allowed: with type "tool", and only then'
        )
    if choice.type == "none" and choice.disable_parallel_tool_use is not None:
        path = "tool_choice.disable_parallel_tool_use"
        raise refuse(path, f'{path} is given with type "none"; allowed: with auto, any, tool')
    if choice.type in ("any", "tool") and not tools:
        raise refuse("tool_choice", f"tool_choice.type is {choice.type!r}, but tools has none")
    if choice.type == "tool":
        assert choice.name is not None
        if all(tool.name != choice.name for tool in tools):
            known = _listed([tool.name for tool in tools])
            raise refuse("tool_choice.name", f"tool_choice.name is {choice.name!r}; known: {known}")
        return ToolChoice("named", (choice.name,))
    if choice.type == "any":
        return ToolChoice("required")
    return ToolChoice(choice.type)


def _constraint(fields: ConversationFields) -> Constraint | None:
    config = fields.output_config
    if config is None or config.format is None:
        return None
    return Constraint("json_schema", json.dumps(config.format.json_schema, ensure_ascii=False))


def _thinking(fields: ConversationFields) -> tuple[str | None, int | None]:
    """(effort, most tokens of thoughts), as a conversation has them."""
    effort = fields.output_config.effort if fields.output_config else None
    thinking = fields.thinking
    if thinking is None:
        return effort, None
    budget = thinking.budget_tokens
    path = "thinking.budget_tokens"
    if thinking.type == "enabled":
        if not budget:
            raise refuse(path, f'{path} is {budget or "missing"}; allowed: 1 or more with type "enabled"')
        max_tokens: Any = getattr(fields, "max_tokens", None)
        if max_tokens is not None and budget >= max_tokens:
            raise refuse(path, f"{path} is {budget}; allowed: less than max_tokens, which is {max_tokens}")
        return effort, budget
    if budget:
        raise refuse(path, f'{path} is {budget} with type {thinking.type!r}; allowed: with type "enabled"')
    if thinking.type == "disabled":
        if thinking.display is not None:
            raise refuse("thinking.display", 'thinking.display is given with type "disabled"')
        return "none", None
    return effort, None
