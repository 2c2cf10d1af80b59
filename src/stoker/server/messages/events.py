"""A streamed answer as bytes of server-sent events, in the order that Anthropic documents.

message_start, ping; for each block content_block_start, its deltas, content_block_stop; then message_delta
with the reason and the usage, and message_stop. What does not change is formatted once.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import msgspec

from stoker.api.events import DoneEvent
from stoker.server.messages.blocks import BlockEnd, BlockKind, BlockOrder, BlockStart, BlockText, Step
from stoker.server.messages.whole import Ask, call_block, ending_of, message_head, usage_of
from stoker.tools.parts import Part

_DELTA = b'event: content_block_delta\ndata: {"type":"content_block_delta","index":%d,"delta":{"type":'
_DELTAS: Mapping[BlockKind, bytes] = MappingProxyType(
    {
        "text": _DELTA + b'"text_delta","text":',
        "thinking": _DELTA + b'"thinking_delta","thinking":',
        "tool_use": _DELTA + b'"input_json_delta","partial_json":',
    }
)
PING = b'event: ping\ndata: {"type":"ping"}\n\n'
_STOP = b'event: message_stop\ndata: {"type":"message_stop"}\n\n'


class EventWriter:
    """Formats one answer's stream: `opening`, then `parts` as they come, then `closing` once."""

    def __init__(self, ask: Ask) -> None:
        self._ask = ask
        self._order = BlockOrder(omits_thinking=ask.omits_thinking)
        self._encode: Callable[[Any], bytes] = msgspec.json.Encoder().encode

    def opening(self, prompt_tokens: int) -> bytes:
        """The empty message. What of its prompt came from the cache is told at the end."""
        message = message_head(self._ask) | {"usage": usage_of(prompt_tokens, 0)}
        return self._event("message_start", message=message) + PING

    def parts(self, parts: Sequence[Part]) -> bytes:
        """More of the answer; nothing if it is not wanted."""
        if not self._ask.max_tokens:
            return b""
        return b"".join(map(self._step, self._order.steps(parts)))

    def closing(self, done: DoneEvent) -> bytes:
        """The end of the last block and of the message."""
        last = b"".join(map(self._step, self._order.finish())) if self._ask.max_tokens else b""
        ending = ending_of(self._ask, done, called=self._order.called)
        delta: dict[str, Any] = {
            "stop_reason": ending.stop_reason,
            "stop_sequence": ending.stop_sequence,
            "stop_details": None,
            "seed": ending.seed,
        }
        if ending.warnings:
            delta["warnings"] = ending.warnings
        return last + self._event("message_delta", delta=delta, usage=ending.usage) + _STOP

    def _step(self, step: Step) -> bytes:
        if isinstance(step, BlockText):
            return b"%b%b}}\n\n" % (_DELTAS[step.kind] % step.index, self._encode(step.text))
        if isinstance(step, BlockStart):
            return self._event("content_block_start", index=step.index, content_block=_empty(step))
        signed = b""
        if isinstance(step, BlockEnd) and step.signature:
            delta = {"type": "signature_delta", "signature": step.signature}
            signed = self._event("content_block_delta", index=step.index, delta=delta)
        return signed + self._event("content_block_stop", index=step.index)

    def _event(self, name: str, **fields: Any) -> bytes:
        return b"event: %b\ndata: %b\n\n" % (name.encode(), self._encode({"type": name, **fields}))


def error_event(body: bytes) -> bytes:
    """What ends a stream that failed under way, in place of the rest."""
    return b"event: error\ndata: " + body + b"\n\n"


def _empty(start: BlockStart) -> dict[str, Any]:
    if start.kind == "text":
        return {"type": "text", "text": "", "citations": None}
    if start.kind == "thinking":
        return {"type": "thinking", "thinking": "", "signature": ""}
    return call_block(start)
