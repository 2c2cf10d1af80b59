"""The items of an answer as they grow, part by part: the same for answers in one piece and streamed ones."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from stoker.api.events import TokenLogprob
from stoker.server.responses.events import Deltas, EventLog
from stoker.server.responses.items import Item, item_id
from stoker.server.shapes import CHAT, TokenBytes
from stoker.tools.parts import CallArguments, CallStart, Part, ReasoningPart, TextPart

_Kind = Literal["message", "reasoning", "function_call"]
_Ending = Literal["completed", "incomplete"]


class _Open:
    """The item that is being written."""

    __slots__ = ("deltas", "item", "kind", "logprobs", "texts")

    def __init__(self, kind: _Kind, item: Item) -> None:
        self.kind = kind
        self.item = item
        self.texts: list[str] = []
        self.logprobs: list[dict[str, Any]] = []
        self.deltas: Deltas | None = None


class Output:
    """Gathers the parts of one answer into items, and writes an event for each change if there is a log."""

    def __init__(
        self,
        hex_id: str,
        *,
        first: int,
        events: EventLog | None,
        logprobs_of: TokenBytes | None,
    ) -> None:
        """`first`: the number of the first item in ids. `logprobs_of`: what tokens stand for, where their
        log-probabilities are wanted."""
        self.items: list[Item] = []
        self._hex_id = hex_id
        self._first = first
        self._events = events
        self._token_bytes = logprobs_of
        self._open: _Open | None = None
        self._held: list[TokenLogprob] = []  # of tokens whose text is not there yet

    def add(self, parts: Sequence[Part], logprobs: Sequence[TokenLogprob] | None) -> None:
        """What the next tokens gave, and their log-probabilities; those of text are kept with it."""
        if logprobs is not None and self._token_bytes is not None:
            self._held += logprobs
        for part in parts:
            match part:
                case TextPart():
                    held, self._held = self._held, []
                    self._text("message", part.text, held)
                case ReasoningPart():
                    self._held.clear()
                    self._text("reasoning", part.text, [])
                case CallStart():
                    self._held.clear()
                    self._call(part)
                case CallArguments():
                    self._held.clear()
                    self._arguments(part.text)

    def finish(self, status: _Ending) -> None:
        """The answer is over. One without any item has said nothing, which is a message too."""
        if self._open is None and not self.items and status == "completed":
            self._begin("message")
        if self._held and self._open is not None and self._open.kind == "message":
            held, self._held = self._held, []
            self._text("message", "", held)
        self._close(status)

    def _text(self, kind: _Kind, text: str, held: list[TokenLogprob]) -> None:
        if self._open is None or self._open.kind != kind:
            if self.items:
                held = self._of_text(held, text)
            self._begin(kind)
        item = self._open
        assert item is not None
        item.texts.append(text)
        logprobs: list[dict[str, Any]] = []
        if held and self._token_bytes is not None:
            logprobs = CHAT.logprobs(held, self._token_bytes, 0)["content"]
            item.logprobs += logprobs
        if item.deltas is not None:
            item.deltas.add(text, logprobs if kind == "message" else None)

    def _of_text(self, held: list[TokenLogprob], text: str) -> list[TokenLogprob]:
        """The last of `held` that `text` needs: the marks and the white space before it are no part of it."""
        missing, first = len(text.encode()), len(held)
        while first and missing > 0 and self._token_bytes is not None:
            first -= 1
            missing -= len(self._token_bytes(held[first].token_id))
        return held[first:]

    def _call(self, part: CallStart) -> None:
        self._begin("function_call", call_id=part.call_id, name=part.name, arguments="")

    def _arguments(self, text: str) -> None:
        item = self._open
        assert item is not None  # a call's start comes before its arguments
        item.texts.append(text)
        if item.deltas is not None:
            item.deltas.add(text)

    def _begin(self, kind: _Kind, **fields: Any) -> None:
        self._close("completed")
        index = len(self.items)
        item: Item = {"id": item_id(kind, self._hex_id, self._first + index), "type": kind, **fields}
        if kind == "message":
            item |= {"role": "assistant", "content": []}
        elif kind == "reasoning":
            item |= {"summary": [], "content": []}
        item["status"] = "in_progress"
        self._open = _Open(kind, item)
        self.items.append(item)
        events = self._events
        if events is None:
            return
        place = {"item_id": item["id"], "output_index": index}
        events.add("response.output_item.added", output_index=index, item=item)
        if kind == "function_call":
            self._open.deltas = events.deltas("response.function_call_arguments.delta", **place)
            return
        place["content_index"] = 0
        events.add("response.content_part.added", **place, part=_part(kind, "", []))
        name = "response.output_text.delta" if kind == "message" else "response.reasoning_text.delta"
        self._open.deltas = events.deltas(name, **place)

    def _close(self, status: _Ending) -> None:
        done, self._open = self._open, None
        if done is None:
            return
        item, text, index = done.item, "".join(done.texts), len(self.items) - 1
        item["status"] = status
        part = _part(done.kind, text, done.logprobs)
        if done.kind == "function_call":
            item["arguments"] = text
        else:
            item["content"] = [part]
        events = self._events
        if events is None:
            return
        place = {"item_id": item["id"], "output_index": index}
        if done.kind == "function_call":
            events.add("response.function_call_arguments.done", **place, name=item["name"], arguments=text)
        else:
            place["content_index"] = 0
            if done.kind == "message":
                events.add("response.output_text.done", **place, text=text, logprobs=done.logprobs)
            else:
                events.add("response.reasoning_text.done", **place, text=text)
            events.add("response.content_part.done", **place, part=part)
        events.add("response.output_item.done", output_index=index, item=item)


def _part(kind: _Kind, text: str, logprobs: list[dict[str, Any]]) -> dict[str, Any]:
    if kind == "reasoning":
        return {"type": "reasoning_text", "text": text}
    return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}
