"""The Messages API's answer in one piece, and what both forms of an answer say at their end."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from stoker.api.events import DoneEvent
from stoker.server.messages.blocks import BlockEnd, BlockOrder, BlockStart, Step
from stoker.server.messages.partial import partial_object
from stoker.tools.parts import Part


@dataclass(frozen=True, slots=True)
class Ask:
    """What the form of an answer depends on."""

    message_id: str
    model: str
    max_tokens: int  # 0: nothing is answered
    stop_sequences: tuple[str, ...] = ()
    omits_thinking: bool = False
    warnings: tuple[str, ...] = ()  # known before the answer


@dataclass(frozen=True, slots=True)
class Ending:
    """Why an answer ended, and what it took."""

    stop_reason: str
    stop_sequence: str | None
    usage: dict[str, Any]
    seed: int
    warnings: tuple[str, ...]


def ending_of(ask: Ask, done: DoneEvent, *, called: bool) -> Ending:
    """What Anthropic calls the end of this answer. `called`: some tool was."""
    usage = usage_of(done.usage.prompt_tokens, done.usage.cached_tokens)
    usage["output_tokens"] = done.usage.completion_tokens if ask.max_tokens else 0
    usage["output_tokens_details"] = {"thinking_tokens": done.usage.reasoning_tokens if ask.max_tokens else 0}
    reason, sequence = "end_turn", None
    if not ask.max_tokens:
        reason = "max_tokens"
    elif done.finish_reason == "length":
        reached = done.usage.completion_tokens >= ask.max_tokens
        reason = "max_tokens" if reached else "model_context_window_exceeded"
    elif isinstance(done.stop_reason, str) and done.stop_reason in ask.stop_sequences:
        reason, sequence = "stop_sequence", done.stop_reason
    elif called:
        reason = "tool_use"
    return Ending(reason, sequence, usage, done.seed, ask.warnings + done.warnings)


def usage_of(prompt_tokens: int, cached_tokens: int) -> dict[str, Any]:
    """The usage before the first token of the answer."""
    return {
        "input_tokens": prompt_tokens - cached_tokens,
        "cache_creation_input_tokens": 0,  # nothing is paid for: all that was computed is input
        "cache_read_input_tokens": cached_tokens,
        "output_tokens": 0,
        "output_tokens_details": {"thinking_tokens": 0},
        "service_tier": "standard",
    }


@dataclass(slots=True)
class _Block:
    start: BlockStart
    texts: list[str] = field(default_factory=list)
    signature: str = ""

    def as_dict(self) -> dict[str, Any]:
        text = "".join(self.texts)
        if self.start.kind == "text":
            return {"type": "text", "text": text, "citations": None}
        if self.start.kind == "thinking":
            return {"type": "thinking", "thinking": text, "signature": self.signature}
        return call_block(self.start) | {"input": partial_object(text)}


def call_block(start: BlockStart) -> dict[str, Any]:
    """A call before its input is known."""
    return {
        "type": "tool_use",
        "id": start.call_id,
        "name": start.name,
        "input": {},
        "caller": {"type": "direct"},
    }


class WholeMessage:
    """Gathers the parts of one answer."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._order = BlockOrder(omits_thinking=ask.omits_thinking)
        self._blocks: list[_Block] = []

    def add(self, parts: Sequence[Part]) -> None:
        """Take parts, in their order."""
        self._take(self._order.steps(parts))

    def as_dict(self, done: DoneEvent) -> dict[str, Any]:
        """Anthropic's object; after all parts, once."""
        self._take(self._order.finish())
        ask = self._ask
        ending = ending_of(ask, done, called=self._order.called)
        content = [block.as_dict() for block in self._blocks] if ask.max_tokens else []
        answer = message_head(ask) | {
            "content": content,
            "stop_reason": ending.stop_reason,
            "stop_sequence": ending.stop_sequence,
            "usage": ending.usage,
            "seed": ending.seed,
        }
        if ending.warnings:
            answer["warnings"] = ending.warnings
        return answer

    def _take(self, steps: Sequence[Step]) -> None:
        for step in steps:
            if isinstance(step, BlockStart):
                self._blocks.append(_Block(step))
            elif isinstance(step, BlockEnd):
                self._blocks[step.index].signature = step.signature
            else:
                self._blocks[step.index].texts.append(step.text)


def message_head(ask: Ask) -> dict[str, Any]:
    """What is known of an answer before its first token."""
    return {
        "id": ask.message_id,
        "type": "message",
        "role": "assistant",
        "model": ask.model,
        "content": [],
        "stop_reason": None,
        "stop_sequence": None,
        "stop_details": None,
        "container": None,
    }
