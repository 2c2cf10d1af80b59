"""An answer in one piece: its events gathered, then one JSON object."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from stoker.api.events import DoneEvent, Event, PromptEvent, TokenLogprob, TokensEvent
from stoker.server.asked import Asked
from stoker.server.chunks import check_end
from stoker.server.deltas import finish_reason
from stoker.server.parts import gather
from stoker.server.prompt_logprobs import echoed_logprobs, joined, prompt_entries
from stoker.server.shapes import CHAT, Shape, TokenBytes
from stoker.server.usage import UsageCount
from stoker.tools import AnswerParser


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
        self._prompts: dict[int, tuple[TokenLogprob, ...]] = {}  # log-probabilities, by the prompt's number
        self._usage = UsageCount(asked.n)

    def add(self, events: Sequence[Event]) -> None:
        """Take events. Raises `EngineError` or `Refusal` for a choice that failed."""
        for event in events:
            if isinstance(event, DoneEvent):
                check_end(event)
                self._choices[event.choice].done = event
                self._usage.add(event)
            elif isinstance(event, TokensEvent):
                choice = self._choices[event.choice]
                choice.texts.append(event.text)
                choice.token_ids += event.token_ids
                if event.logprobs is not None:
                    choice.logprobs += event.logprobs
            elif isinstance(event, PromptEvent):
                self._prompts[self._asked.prompt_number(event.request_id)] = event.logprobs

    def as_dict(self, head: dict[str, Any], token_bytes: TokenBytes) -> dict[str, Any]:
        """OpenAI's object; `head` has id, created, model and so on."""
        asked = self._asked
        parsers = asked.parsers()
        answer = {
            **head,
            "object": self._shape.object,
            "choices": [
                self._choice(index, token_bytes, parsers[index] if parsers else None)
                for index in range(asked.choices)
            ],
            "usage": self._usage.as_dict(),
        }
        if self._shape is CHAT:
            if asked.return_token_ids and asked.prompt_ids is not None:
                answer["prompt_token_ids"] = asked.prompt_ids[0]
            if asked.prompt_logprobs:
                answer["prompt_logprobs"] = prompt_entries(self._prompts[0], token_bytes)
        warnings = list(dict.fromkeys(text for c in self._choices if c.done for text in c.done.warnings))
        if warnings:
            answer["warnings"] = warnings
        return answer

    def _choice(self, index: int, token_bytes: TokenBytes, parser: AnswerParser | None) -> dict[str, Any]:
        asked, choice = self._asked, self._choices[index]
        done = choice.done
        assert done is not None  # an endpoint ends every choice, or raises
        prompt = index // asked.n
        reason: str = done.finish_reason
        text = "".join(choice.texts)
        value: dict[str, Any] = {"index": index}
        if self._shape is CHAT:
            value["message"] = _message(text, parser)
            if parser is not None:
                reason = finish_reason(reason, parser)
        else:
            value["text"] = text if asked.echoes is None else asked.echoes[prompt] + text
        value["logprobs"] = self._logprobs(choice, prompt, token_bytes)
        value |= {"finish_reason": reason, "stop_reason": done.stop_reason, "seed": done.seed}
        if asked.return_token_ids:
            value["token_ids"] = choice.token_ids
        if self._shape is not CHAT:
            if asked.return_token_ids and asked.prompt_ids is not None:
                value["prompt_token_ids"] = asked.prompt_ids[prompt]
            if asked.prompt_logprobs:
                value["prompt_logprobs"] = prompt_entries(self._prompts[prompt], token_bytes)
        return value

    def _logprobs(self, choice: _Choice, prompt: int, token_bytes: TokenBytes) -> dict[str, Any] | None:
        asked = self._asked
        if asked.requests[0].sampling.logprobs is None:
            return None
        echo = "" if asked.echoes is None else asked.echoes[prompt]
        value = self._shape.logprobs(choice.logprobs, token_bytes, len(echo))
        if not asked.echo_logprobs:
            return value
        assert asked.prompt_ids is not None
        entries = self._prompts[prompt]
        return joined(echoed_logprobs(asked.prompt_ids[prompt], entries, token_bytes, echo), value)


def _message(text: str, parser: AnswerParser | None) -> dict[str, Any]:
    message: dict[str, Any] = {"role": "assistant", "content": text, "refusal": None}
    if parser is None:
        return message
    gathered = gather([*parser.push(text), *parser.finish()])
    message["content"] = gathered.text
    if gathered.reasoning:
        message["reasoning_content"] = gathered.reasoning
    if gathered.calls:
        message["content"] = gathered.text or None
        message["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in gathered.calls
        ]
    return message
