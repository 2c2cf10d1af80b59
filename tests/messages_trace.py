"""Streams of the Messages API, read strictly: every rule of the order of events is an assertion here."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from typing import Any

_DELTA_OF_BLOCK = {
    "text": {"text_delta"},
    "thinking": {"thinking_delta", "signature_delta"},
    "tool_use": {"input_json_delta"},
}
_FIELD_OF_DELTA = {
    "text_delta": "text",
    "thinking_delta": "thinking",
    "signature_delta": "signature",
    "input_json_delta": "partial_json",
}


@dataclass
class MessageTrace:
    """A stream, put together again."""

    message: dict[str, Any]  # with the content, the reason and the usage
    events: list[dict[str, Any]] = field(default_factory=list)
    error: dict[str, Any] | None = None


def message_events(text: str) -> list[dict[str, Any]]:
    """The events of a stream; each says its name twice."""
    assert text.endswith("\n\n")
    events = []
    for piece in text.removesuffix("\n\n").split("\n\n"):
        name, data = piece.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert (name, data[:6]) == (f"event: {event['type']}", "data: ")
        events.append(event)
    return events


def read_trace(text: str) -> MessageTrace:
    """Check the order of a stream's events, and put the message together."""
    events = message_events(text)
    assert events[0]["type"] == "message_start"
    message = copy.deepcopy(events[0]["message"])
    assert message["content"] == []
    assert message["stop_reason"] is None
    trace = MessageTrace(message, events)
    open_block: dict[str, Any] | None = None
    inputs: dict[int, str] = {}
    for place, event in enumerate(events[1:], 1):
        kind = event["type"]
        if kind == "ping":
            continue
        if kind == "error":
            assert place == len(events) - 1, "an event after the error"
            trace.error = event
            return trace
        if kind == "content_block_start":
            assert open_block is None, "a block begins inside another one"
            assert event["index"] == len(message["content"])
            open_block = dict(event["content_block"])
            message["content"].append(open_block)
        elif kind == "content_block_delta":
            assert open_block is not None
            assert event["index"] == len(message["content"]) - 1
            delta = event["delta"]
            assert delta["type"] in _DELTA_OF_BLOCK[open_block["type"]]
            more = delta[_FIELD_OF_DELTA[delta["type"]]]
            assert more, "an empty delta"
            if delta["type"] == "input_json_delta":
                inputs[event["index"]] = inputs.get(event["index"], "") + more
            else:
                open_block[_FIELD_OF_DELTA[delta["type"]]] += more
        elif kind == "content_block_stop":
            assert open_block is not None
            assert event["index"] == len(message["content"]) - 1
            open_block = None
        elif kind == "message_delta":
            assert open_block is None, "the message ends inside a block"
            assert message["stop_reason"] is None, "a second reason to stop"
            assert event["delta"]["stop_reason"]
            message |= event["delta"]
            message["usage"] |= event["usage"]
        else:
            assert kind == "message_stop"
            assert place == len(events) - 1, "an event after message_stop"
            assert message["stop_reason"]
    assert events[-1]["type"] == "message_stop"
    for index, given in inputs.items():
        message["content"][index]["partial_json"] = given
    return trace
