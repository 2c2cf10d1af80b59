"""An answer in one piece: its events gathered, then one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stoker.api.events import DoneEvent, Event, TokenLogprob
from stoker.server.asked import Asked
from stoker.server.chunks import check_end
from stoker.server.shapes import CHAT, Shape, TokenBytes
from stoker.server.usage import UsageCount


class _Choice:
    __slots__ = ("done", "logprobs", "texts", "token_ids")

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.token_ids: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.done: DoneEvent | None = None


class WholeAnswer:
    """Gathers the events of one answer."""

    def __init__(self, shape: Shape, asked: Asked) -> None:
        self._shape = shape
        self._asked = asked
        self._choices = [_Choice() for _ in range(asked.choices)]
        self._usage = UsageCount(asked.n)

    def add(self, events: Sequence[Event]) -> None:
        """Take events. Raises `EngineError` or `Refusal` for a choice that failed."""
        for event in events:
            choice = self._choices[event.choice]
            if isinstance(event, DoneEvent):
                check_end(event)
                choice.done = event
                self._usage.add(event)
                continue
            choice.texts.append(event.text)
            choice.token_ids += event.token_ids
            if event.logprobs is not None:
                choice.logprobs += event.logprobs

    def as_dict(self, head: dict[str, Any], token_bytes: TokenBytes) -> dict[str, Any]:
        """OpenAI's object; `head` has id, created, model and so on."""
        asked = self._asked
        answer = {
            **head,
            "object": self._shape.object,
            "choices": [self._choice(index, token_bytes) for index in range(asked.choices)],
            "usage": self._usage.as_dict(),
        }
        if self._shape is CHAT and asked.return_token_ids and asked.prompt_ids is not None:
            answer["prompt_token_ids"] = asked.prompt_ids[0]
        return answer

    def _choice(self, index: int, token_bytes: TokenBytes) -> dict[str, Any]:
        asked, choice = self._asked, self._choices[index]
        done = choice.done
        assert done is not None  # an endpoint ends every choice, or raises
        prompt = index // asked.n
        echo = "" if asked.echoes is None else asked.echoes[prompt]
        text = echo + "".join(choice.texts)
        value: dict[str, Any] = {"index": index}
        if self._shape is CHAT:
            value["message"] = {"role": "assistant", "content": text, "refusal": None}
        else:
            value["text"] = text
        wants_logprobs = asked.requests[0].sampling.logprobs is not None
        value["logprobs"] = (
            self._shape.logprobs(choice.logprobs, token_bytes, len(echo)) if wants_logprobs else None
        )
        value |= {
            "finish_reason": done.finish_reason,
            "stop_reason": done.stop_reason,
            "seed": done.seed,
        }
        if asked.return_token_ids:
            value["token_ids"] = choice.token_ids
            if self._shape is not CHAT and asked.prompt_ids is not None:
                value["prompt_token_ids"] = asked.prompt_ids[prompt]
        return value
