"""What every stream of a response obeys, whatever it says."""

from __future__ import annotations

import json
from typing import Any

FINAL = ("response.completed", "response.incomplete", "response.failed")
_DELTAS = {
    "message": "response.output_text.delta",
    "reasoning": "response.reasoning_text.delta",
    "function_call": "response.function_call_arguments.delta",
}


def read_stream(text: str) -> list[dict[str, Any]]:
    """The events of a stream's text, whose two lines agree on each event's kind."""
    assert text.endswith("\n\n")
    events = []
    for block in text.removesuffix("\n\n").split("\n\n"):
        name, data = block.split("\n")
        event: dict[str, Any] = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def check_trace(events: list[dict[str, Any]], *, first: int = 0) -> dict[str, Any]:
    """Check a whole stream, or its rest from the event `first` on; returns the final response."""
    assert [event["sequence_number"] for event in events] == list(range(first, first + len(events)))
    kinds = [event["type"] for event in events]
    assert kinds[-1] in FINAL
    assert not set(kinds[:-1]) & set(FINAL), "one final event, and nothing after it"
    final: dict[str, Any] = events[-1]["response"]
    if first:
        return final
    assert kinds[0] == "response.created"
    assert kinds[1:3] == ["response.queued", "response.in_progress"] or kinds[1] == "response.in_progress"
    assert len({event["response"]["id"] for event in events if "response" in event}) == 1
    added = [event for event in events if event["type"] == "response.output_item.added"]
    assert [event["output_index"] for event in added] == list(range(len(added)))
    assert len(final["output"]) == len(added)
    for index, item in enumerate(final["output"]):
        _check_item([e for e in events if e.get("output_index") == index], item)
    return final


def _check_item(events: list[dict[str, Any]], item: dict[str, Any]) -> None:
    """The events of one item, in their order; together they say what the item says."""
    kind = item["type"]
    assert events[0]["type"] == "response.output_item.added"
    assert events[-1]["type"] == "response.output_item.done"
    assert events[-1]["item"] == item
    assert events[0]["item"]["id"] == item["id"]
    assert events[0]["item"]["status"] == "in_progress"
    assert all(event.get("item_id", item["id"]) == item["id"] for event in events)
    deltas = [event for event in events if event["type"] == _DELTAS[kind]]
    text = "".join(event["delta"] for event in deltas)
    middle = [event["type"] for event in events[1:-1] if event["type"] != _DELTAS[kind]]
    done = events[-2] if kind == "function_call" else events[-3]
    if kind == "function_call":
        assert middle == ["response.function_call_arguments.done"]
        assert text == item["arguments"] == done["arguments"]
        return
    part = item["content"][0]
    name = _DELTAS[kind].removesuffix("delta")
    assert middle == ["response.content_part.added", f"{name}done", "response.content_part.done"]
    assert text == part["text"] == done["text"]
    assert events[-2]["part"] == part
    if kind == "message":
        logprobs = [entry for event in deltas for entry in event["logprobs"]]
        assert logprobs == part["logprobs"] == done["logprobs"]
