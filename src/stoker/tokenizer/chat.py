"""Conversations to token ids through a model's chat template.

Control tokens come from the template, never from a message: where a message contains the text of one, it
is rendered as a private-use character, put back afterwards, and tokenized as plain text. The text next to
it is tokenized exactly as if nothing had happened.
"""

from __future__ import annotations

import datetime
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from stoker.api.chat import Chat, Message
from stoker.api.errors import RequestError, TemplateError
from stoker.tokenizer.partition import Span, merge_spans
from stoker.tokenizer.sandbox import TemplateLimits, compile_template
from stoker.tokenizer.tokenizer import Tokenizer

# Roles of this form are left alone: some templates build control tokens from them.
_ROLE = re.compile(r"[A-Za-z_]{1,32}")
_PRIVATE_USE = re.compile("[\ue000-\uf8ff\U000f0000-\U000ffffd\U00100000-\U0010fffd]")
_PRIVATE_USE_RANGES = (range(0xE000, 0xF900), range(0xF0000, 0xFFFFE), range(0x100000, 0x10FFFE))
# A template that asks for the type of a content part, or whether a content is a string, takes lists.
_TAKES_PARTS = re.compile(
    r"\[\s*['\"]type['\"]\s*\]|\.type\b|content'?\]?\s+is\s+(?:not\s+)?(?:string|iterable|sequence|mapping)"
)
MAX_DEPTH = 64  # of messages and tools, as nested JSON
MAX_VALUES = 1_000_000


@dataclass(frozen=True)
class RenderedChat:
    """The text the model reads. ``literal``: places where a control token's text is the user's text."""

    text: str
    literal: tuple[Span, ...]


class ChatTemplate:
    """A chat template bound to a tokenizer. Safe to share between threads."""

    def __init__(
        self, tokenizer: Tokenizer, source: str | None = None, *, limits: TemplateLimits | None = None
    ) -> None:
        """``source`` replaces the model's own template. Raises TemplateError when there is neither."""
        source = tokenizer.chat_template if source is None else source
        if not source:
            raise TemplateError(
                "this model has no chat template (it is a base model)",
                hint="use plain completion, or pass a template",
            )
        self._tokenizer = tokenizer
        self._template = compile_template(source, limits)
        self._takes_parts = _TAKES_PARTS.search(source) is not None
        texts = sorted(filter(None, tokenizer.control_texts()))
        self._control_texts = texts
        self._first_chars = frozenset(text[0] for text in texts)
        self._last_chars = frozenset(text[-1] for text in texts)
        self._max_control_chars = max(map(len, texts), default=0)
        named = {
            "bos_token": tokenizer.bos_id,
            "eos_token": tokenizer.eos_id,
            "pad_token": tokenizer.pad_id,
            "unk_token": tokenizer.unk_id,
        }
        self._tokens = {k: "" if i is None else tokenizer.token_text(i) for k, i in named.items()}

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: Sequence[Mapping[str, Any]] | None = None,
        now: datetime.datetime | None = None,
        variables: Mapping[str, Any] | None = None,
    ) -> RenderedChat:
        """The text of a conversation.

        ``now`` is what ``strftime_now`` shows; without it templates find no such function. ``variables``
        are further names for the template (``enable_thinking`` and the like). Raises TemplateError.
        """
        if isinstance(messages, str | bytes | Mapping) or not all(isinstance(m, Mapping) for m in messages):
            raise TemplateError("messages must be a list of objects with role and content")
        plain = [self._message(_plain_value(message)) for message in messages]
        given = {
            "messages": plain,
            "tools": None if tools is None else _plain_value(list(tools)),
            **_plain_value(dict(variables or {})),
        }
        mask = _Mask(self, given)
        values = mask.apply(given) if mask.is_needed else given
        text = self._template.render(
            {**self._tokens, **values, "add_generation_prompt": add_generation_prompt}, now=now
        )
        return mask.restore(text)

    def encode(self, messages: Sequence[Mapping[str, Any]], **options: Any) -> list[int]:
        """Token ids of ``render(messages, **options)``; the model's begin token once, where it uses one."""
        rendered = self.render(messages, **options)
        tokenizer = self._tokenizer
        ids = tokenizer.encode(rendered.text, add_special=False, parse_special=True, literal=rendered.literal)
        if tokenizer.add_bos and tokenizer.bos_id is not None and ids[:1] != [tokenizer.bos_id]:
            ids.insert(0, tokenizer.bos_id)
        return ids

    def _message(self, message: dict[str, Any]) -> dict[str, Any]:
        content = message.get("content")
        if not isinstance(message.get("role"), str):
            raise TemplateError(f"a message has role {message.get('role')!r:.60}; a string is needed")
        if not isinstance(content, list) or self._takes_parts:
            return message
        texts = []
        for part in content:
            kind = part.get("type") if isinstance(part, dict) else type(part).__name__
            if kind != "text" or not isinstance(part.get("text"), str):
                raise TemplateError(f"a content part has type {kind!r:.60}; this template takes only 'text'")
            texts.append(part["text"])
        return {**message, "content": "\n".join(texts)}

    def control_spans(self, text: str) -> list[Span]:
        """Where ``text`` has a control token's text, or begins or ends inside one: what stands next to it
        in the rendered chat must not complete it."""
        spans = self._tokenizer.control_spans(text)
        size = self._max_control_chars
        end, start = len(text.rstrip()), len(text) - len(text.lstrip())
        for stop in {end, len(text)}:
            for at in range(max(stop - size + 1, 0), stop):
                tail = text[at:stop]
                if tail[0] in self._first_chars and any(t.startswith(tail) for t in self._control_texts):
                    spans.append((at, stop))
                    break
        for begin in {start, 0}:
            for at in range(min(begin + size - 1, len(text)), begin, -1):
                head = text[begin:at]
                if head[-1] in self._last_chars and any(t.endswith(head) for t in self._control_texts):
                    spans.append((begin, at))
                    break
        return merge_spans(spans)


def chat_values(chat: Chat) -> dict[str, Any]:
    """The arguments of `ChatTemplate.encode` for a conversation, in the words that templates know.

    Raises `RequestError` for a tool's parameters or a call's arguments that are not JSON.
    """
    values: dict[str, Any] = {
        "messages": [message_value(message) for message in chat.messages],
        "add_generation_prompt": chat.add_generation_prompt,
    }
    if chat.tools:
        values["tools"] = [
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": _json(f"parameters of tool {tool.name}", tool.parameters),
                },
            }
            for tool in chat.tools
        ]
    if chat.variables:
        values["variables"] = chat.variables
    return values


def message_value(message: Message) -> dict[str, Any]:
    """A message as templates know it; only the fields that it has."""
    value: dict[str, Any] = {"role": message.role, "content": message.content}
    if message.tool_calls:
        value["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": _json(f"arguments of the call of {call.name}", call.arguments),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id:
        value["tool_call_id"] = message.tool_call_id
    if message.name:
        value["name"] = message.name
    if message.reasoning:
        value["reasoning_content"] = message.reasoning
    return value


def _json(what: str, text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RequestError(f"the {what} are not JSON: {error}; they are {text!r:.80}") from None


def encode_chat(
    tokenizer: Tokenizer,
    messages: Sequence[Mapping[str, Any]],
    *,
    template: str | None = None,
    limits: TemplateLimits | None = None,
    **options: Any,
) -> list[int]:
    """``ChatTemplate(tokenizer, template).encode(messages, **options)``, for a single conversation."""
    return ChatTemplate(tokenizer, template, limits=limits).encode(messages, **options)


class _Mask:
    """Swaps control texts in the given values for private-use characters, and back in the result."""

    def __init__(self, template: ChatTemplate, given: Any) -> None:
        self._spans_of = template.control_spans
        self._text_by_char: dict[str, str] = {}
        self._char_by_text: dict[str, str] = {}
        texts = list(_strings(given))
        self.is_needed = any(self._spans_of(text) for text in texts)
        used: set[str] = set()
        if self.is_needed:
            for text in [template._template.source, *texts]:
                used.update(_PRIVATE_USE.findall(text))
        self._free = (chr(p) for points in _PRIVATE_USE_RANGES for p in points if chr(p) not in used)

    def apply(self, value: Any, *, is_role: bool = False) -> Any:
        if isinstance(value, str):
            return value if is_role and _ROLE.fullmatch(value) else self._masked(value)
        if isinstance(value, list):
            return [self.apply(item) for item in value]
        if isinstance(value, dict):
            return {self.apply(k): self.apply(v, is_role=k == "role") for k, v in value.items()}
        return value

    def _masked(self, text: str) -> str:
        parts, at = [], 0
        for start, end in self._spans_of(text):
            parts += [text[at:start], self._char(text[start:end])]
            at = end
        return "".join([*parts, text[at:]])

    def _char(self, text: str) -> str:
        found = self._char_by_text.get(text)
        if found is None:
            found = next(self._free, None)
            if found is None:
                raise TemplateError("the messages use all private-use characters; none is left to mark with")
            self._char_by_text[text] = found
            self._text_by_char[found] = text
        return found

    def restore(self, text: str) -> RenderedChat:
        if not self._text_by_char:
            return RenderedChat(text, ())
        parts, literal, at, size = [], [], 0, 0
        for match in _PRIVATE_USE.finditer(text):
            original = self._text_by_char.get(match.group())
            if original is not None:
                parts += [text[at : match.start()], original]
                size += match.start() - at
                literal.append((size, size + len(original)))
                size += len(original)
                at = match.end()
        return RenderedChat("".join([*parts, text[at:]]), tuple(merge_spans(literal)))


def _strings(value: Any) -> Iterator[str]:
    stack = [value]
    while stack:
        value = stack.pop()
        if isinstance(value, str):
            yield value
        elif isinstance(value, dict):
            stack += [*value.keys(), *value.values()]
        elif isinstance(value, list):
            stack += value


def _plain_value(value: Any) -> Any:
    """A copy made of str, int, float, bool, None, list and dict only, so that templates meet nothing else."""
    counted = [0]

    def copy(item: Any, depth: int) -> Any:
        counted[0] += 1
        if depth > MAX_DEPTH or counted[0] > MAX_VALUES:
            raise TemplateError(
                f"messages or tools nest deeper than {MAX_DEPTH} or hold more than {MAX_VALUES} values"
            )
        if item is None or isinstance(item, bool):
            return item
        if isinstance(item, str):
            return str(item)
        if isinstance(item, int | float):
            return item
        if isinstance(item, Mapping):
            return {_key(key): copy(entry, depth + 1) for key, entry in item.items()}
        if isinstance(item, Iterable) and not isinstance(item, bytes | bytearray):
            return [copy(entry, depth + 1) for entry in item]
        raise TemplateError(f"messages and tools are JSON; a {type(item).__name__} cannot be rendered")

    return copy(value, 0)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise TemplateError(f"an object's key is {key!r:.60}; a string is needed")
    return str(key)
