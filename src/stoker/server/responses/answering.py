"""A response while it is made: its object as it stands, its items, its events."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from stoker.api.events import DoneEvent, Event, TokensEvent
from stoker.server.chunks import check_end
from stoker.server.errors import Problem
from stoker.server.responses.asked import Asked
from stoker.server.responses.events import EventLog
from stoker.server.responses.items import Item, response_hex
from stoker.server.responses.output import Output
from stoker.server.shapes import TokenBytes
from stoker.tools import AnswerParser

Response = dict[str, Any]


class Answering:
    """One answer: perhaps `queued`, then `begin`, `take` until that says it is over, `finish`; or `end` at
    any time; at last `last_event`."""

    def __init__(self, head: Mapping[str, Any], items: list[Item], events: EventLog | None) -> None:
        """`head`: the object before there is an answer; `items`: the response's own input."""
        self.items = items
        self.events = events
        self._response: Response = dict(head)
        self._output: Output | None = None  # none: nothing was answered yet
        self._parser: AnswerParser | None = None
        self._done: DoneEvent | None = None

    @property
    def id(self) -> str:
        """The response's."""
        return str(self._response["id"])

    @property
    def response(self) -> Response:
        """The response object as it stands."""
        return {**self._response, "output": [] if self._output is None else self._output.items}

    @property
    def has_begun(self) -> bool:
        """Something may have been answered."""
        return self._output is not None

    @property
    def ended(self) -> bool:
        """Nothing changes any more."""
        return self._response["status"] not in ("queued", "in_progress")

    def queued(self) -> None:
        """It was taken, and waits."""
        self._response["status"] = "queued"
        if self.events is not None:
            self.events.add("response.created", response=self.response)
            self.events.add("response.queued", response=self.response)

    def begin(self, asked: Asked, token_bytes: TokenBytes) -> None:
        """The answer begins: its first events."""
        self._response["status"] = "in_progress"
        if self.events is not None:
            if not self.events.number:
                self.events.add("response.created", response=self.response)
            self.events.add("response.in_progress", response=self.response)
        self._parser = asked.parser
        self._output = Output(
            response_hex(self.id),
            first=len(self.items),
            events=self.events,
            logprobs_of=token_bytes if asked.wants_logprobs else None,
        )

    def take(self, bunch: Sequence[Event]) -> bool:
        """Take events; True once the last one was among them.

        Raises `EngineError` or `Refusal` for an answer that failed.
        """
        output, parser = self._output, self._parser
        assert output is not None
        assert parser is not None
        for event in bunch:
            if isinstance(event, TokensEvent):
                output.add(parser.push(event.text) if event.text else (), event.logprobs)
            elif isinstance(event, DoneEvent):
                check_end(event)
                output.add(parser.finish(), None)
                self._done = event
        return self._done is not None

    def finish(self, now_s: int) -> None:
        """The answer is whole: the object's last form."""
        done, output = self._done, self._output
        assert done is not None
        assert output is not None
        cut = done.finish_reason == "length"
        output.finish("incomplete" if cut else "completed")
        usage = done.usage
        self._response |= {
            "status": "incomplete" if cut else "completed",
            "completed_at": None if cut else now_s,
            "incomplete_details": {"reason": "max_output_tokens"} if cut else None,
            "seed": done.seed,
            "warnings": list(done.warnings),
            "usage": {
                "input_tokens": usage.prompt_tokens,
                # Nobody is charged for what is put into the cache, so nothing is counted.
                "input_tokens_details": {"cached_tokens": usage.cached_tokens, "cache_write_tokens": 0},
                "output_tokens": usage.completion_tokens,
                "output_tokens_details": {"reasoning_tokens": usage.reasoning_tokens},
                "total_tokens": usage.prompt_tokens + usage.completion_tokens,
            },
        }

    def end(self, status: Literal["failed", "cancelled"], problem: Problem | None = None) -> None:
        """The answer ends before its end; what there is of it stays."""
        if self._output is not None:
            self._output.finish("incomplete")
        self._response["status"] = status
        if problem is not None:
            self._response["error"] = {"code": _error_code(problem), "message": problem.message}

    def last_event(self) -> None:
        """The one event that ends a stream, after everything that it tells of was stored."""
        if self.events is None:
            return
        status = self._response["status"]
        # OpenAI has no event of its own for a response that was cancelled: it is one that stays incomplete.
        kind = "incomplete" if status == "cancelled" else status
        self.events.add(f"response.{kind}", response=self.response)


def _error_code(problem: Problem) -> str:
    """One of OpenAI's codes for a response that failed."""
    if problem.status == 429:
        return "rate_limit_exceeded"
    return "invalid_prompt" if 400 <= problem.status < 408 else "server_error"
