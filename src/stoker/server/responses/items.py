"""Items of a conversation: checked, brought to one form with ids, and turned into the messages of a chat.

The form is the one in which responses store them and `input_items` lists them, so what a client sends, what
a model said before, and what is read back from the database are turned into messages by the same code.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import msgspec
from pydantic import BaseModel

from stoker.api.chat import Message, ToolCall
from stoker.server.errors import refuse
from stoker.server.first_mistake import MOST_OBJECTS
from stoker.server.responses import schemas
from stoker.server.responses.fields import checked

Item = dict[str, Any]

_KINDS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        "message": schemas.InputMessage,
        "function_call": schemas.FunctionCall,
        "function_call_output": schemas.FunctionCallOutput,
        "reasoning": schemas.Reasoning,
        "item_reference": schemas.ItemReference,
    }
)
_PREFIXES: Mapping[str, str] = MappingProxyType(
    {"message": "msg", "function_call": "fc", "function_call_output": "fco", "reasoning": "rs"}
)
_NUMBER_DIGITS = 6  # of an item's number in its id
_HEX_DIGITS = 32  # of a response's id


def response_hex(response_id: str) -> str:
    """What the ids of a response's items have of the response's own id."""
    return response_id.removeprefix("resp_")


def item_id(kind: str, hex_id: str, number: int) -> str:
    """The id of an item: it tells its response, so that a reference to the item leads there."""
    return f"{_PREFIXES[kind]}_{hex_id}{number:0{_NUMBER_DIGITS}x}"


def response_of_item(reference: str) -> str | None:
    """The id of the response that an item's id tells; none for an id that is not ours."""
    tail = reference.partition("_")[2]
    return f"resp_{tail[:_HEX_DIGITS]}" if len(tail) == _HEX_DIGITS + _NUMBER_DIGITS else None


def items_of(given: str | Sequence[Any] | None, hex_id: str, *, first: int = 0) -> list[Item]:
    """The items of a body's `input` in their stored form; references stay as they are.

    `first`: the number of the first in ids that are made here. Raises `Refusal` for what is not known.
    """
    if given is None:
        return []
    if isinstance(given, str):
        given = [{"type": "message", "role": "user", "content": given}]
    # Each costs 10 us and more, in which no stream goes on; no context is longer.
    parts = sum(_parts(value) for value in given)
    if parts > MOST_OBJECTS:
        raise refuse("input", f"input has {parts} items and parts of items; allowed: at most {MOST_OBJECTS}")
    return [_item(value, f"input[{i}]", hex_id, first + i) for i, value in enumerate(given)]


def _parts(value: Any) -> int:
    """Of an item: itself, and what it has in lists."""
    if not isinstance(value, dict):
        return 1
    return 1 + sum(len(part) for part in value.values() if isinstance(part, list))


def _item(value: Any, where: str, hex_id: str, number: int) -> Item:
    if not isinstance(value, dict):
        raise refuse(where, f"{where} is {value!r:.80}; allowed: an object")
    kind = value.get("type", "message")
    if kind not in _KINDS:
        known = ", ".join(_KINDS)
        raise refuse(
            f"{where}.type", f"{where}.type is {kind!r:.80}; allowed: {known}", code="unsupported_item"
        )
    if kind == "reasoning" and value.get("encrypted_content"):
        raise refuse(
            f"{where}.encrypted_content",
            f"{where}.encrypted_content cannot be read here; allowed: content",
        )
    given = checked(value, _KINDS[kind], where)
    if isinstance(given, schemas.ItemReference):
        return {"type": kind, "id": given.id}
    item = {"id": getattr(given, "id", None) or item_id(kind, hex_id, number), "type": kind}
    match given:
        case schemas.InputMessage():
            item |= {"role": given.role, "content": _content(given, where)}
        case schemas.FunctionCall():
            _check_arguments(given.arguments, f"{where}.arguments")
            item |= {"call_id": given.call_id, "name": given.name, "arguments": given.arguments}
        case schemas.FunctionCallOutput():
            output = given.output
            item |= {"call_id": given.call_id}
            item["output"] = (
                output if isinstance(output, str) else _texts(output, f"{where}.output", "input_text")
            )
        case schemas.Reasoning():
            content = [{"type": part.type, "text": part.text} for part in given.content]
            item |= {"summary": [], "content": content}
    item["status"] = getattr(given, "status", None) or "completed"
    return item


def _check_arguments(text: str, where: str) -> None:
    try:
        is_object = isinstance(msgspec.json.decode(text), dict)
    except (msgspec.MsgspecError, RecursionError):
        is_object = False
    if not is_object:
        raise refuse(where, f"{where} is {text!r:.80}; allowed: the JSON of an object")


def _content(message: schemas.InputMessage, where: str) -> list[Item]:
    kind = "output_text" if message.role == "assistant" else "input_text"
    content = message.content
    if isinstance(content, str):
        content = [{"type": kind, "text": content}]
    return _texts(content, f"{where}.content", kind)


def _texts(parts: Sequence[Any], where: str, kind: str) -> list[Item]:
    if not parts:
        raise refuse(where, f"{where} is empty; allowed: a text, or one part or more")
    found: list[Item] = []
    for number, part in enumerate(parts):
        place = f"{where}[{number}]"
        given_kind = part.get("type") if isinstance(part, dict) else None
        if given_kind == "refusal" and kind == "output_text":
            found.append({"type": "refusal", "refusal": checked(part, schemas.RefusalContent, place).refusal})
            continue
        if given_kind in ("input_image", "input_file", "input_audio", "image_url", "file"):
            raise refuse(f"{place}.type", f"{place}.type is {given_kind!r}: only text goes in and comes out")
        text = checked(part, schemas.TextContent, place).text
        extra: Item = {"annotations": [], "logprobs": []} if kind == "output_text" else {}
        found.append({"type": kind, "text": text, **extra})
    return found


def text_of(content: str | Iterable[Mapping[str, Any]]) -> str:
    """Parts of one content are lines of it."""
    if isinstance(content, str):
        return content
    return "\n".join(str(part["refusal"] if part["type"] == "refusal" else part["text"]) for part in content)


@dataclass(slots=True)
class _Turn:
    """An assistant's turn while its items come: thoughts, then text, then calls."""

    reasoning: list[str] = field(default_factory=list)
    text: str | None = None
    calls: list[ToolCall] = field(default_factory=list)

    def message(self) -> Message:
        return Message(
            "assistant", self.text or "", tool_calls=tuple(self.calls), reasoning="\n".join(self.reasoning)
        )


class _Messages:
    """Messages as items come."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self._turn: _Turn | None = None
        self._names: dict[str, str] = {}  # call id -> name of the tool

    def add(self, item: Item, where: str) -> None:
        match item["type"]:
            case "reasoning":
                self._assistant(new=lambda turn: turn.text is not None or bool(turn.calls)).reasoning.append(
                    text_of(item["content"])
                )
            case "function_call" if item["status"] == "incomplete":
                pass  # it was cut off, so nobody can have answered it
            case "function_call":
                self._assistant(new=lambda turn: False).calls.append(
                    ToolCall(item["call_id"], item["name"], item["arguments"])
                )
                self._names[item["call_id"]] = item["name"]
            case "message" if item["role"] == "assistant":
                turn = self._assistant(new=lambda turn: turn.text is not None or bool(turn.calls))
                turn.text = text_of(item["content"])
            case "message":
                self.end_turn()
                role = "system" if item["role"] == "developer" else item["role"]
                self.messages.append(Message(role, text_of(item["content"])))
            case "function_call_output":
                self._result(item, where)

    def _result(self, item: Item, where: str) -> None:
        self.end_turn()
        call_id = item["call_id"]
        if call_id not in self._names:
            known = ", ".join(self._names) or "none"
            raise refuse(
                f"{where}.call_id",
                f"{where}.call_id is {call_id!r:.80}, but no call before it has this id; calls: {known:.400}",
                code="unknown_call",
            )
        self.messages.append(
            Message("tool", text_of(item["output"]), tool_call_id=call_id, name=self._names[call_id])
        )

    def _assistant(self, *, new: Any) -> _Turn:
        if self._turn is not None and new(self._turn):
            self.end_turn()
        if self._turn is None:
            self._turn = _Turn()
        return self._turn

    def end_turn(self) -> None:
        if self._turn is not None:
            self.messages.append(self._turn.message())
            self._turn = None


def messages_of(
    instructions: str | None, before: Iterable[Item], items: Sequence[Item]
) -> tuple[Message, ...]:
    """The messages of a chat: instructions as the system, the items of earlier responses, this one's own.

    Thoughts, text and calls that follow each other are one turn of the assistant. Raises `Refusal` for the
    result of a call that nobody made, and for a conversation without any item.
    """
    gathered = _Messages()
    if instructions:
        gathered.messages.append(Message("system", instructions))
    count = 0
    for item in before:
        gathered.add(item, "previous_response_id")
        count += 1
    for number, item in enumerate(items):
        gathered.add(item, f"input[{number}]")
        count += 1
    if not count:
        raise refuse("input", "input is missing or empty; allowed: a text, or one item or more")
    gathered.end_turn()
    return tuple(gathered.messages)
