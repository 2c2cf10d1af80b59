"""Tokens of an answer's choices, added up as they end."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from stoker.api.events import DoneEvent


@dataclass(slots=True)
class UsageCount:
    """What `usage` says. A prompt counts once, however many choices share it."""

    n: int  # choices of each prompt
    completion_tokens: int = 0
    reasoning_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    _prompts: dict[int, tuple[int, int]] = field(default_factory=dict)  # number -> (tokens, cached)

    def add(self, done: DoneEvent) -> None:
        """A choice has ended. The choices of one prompt fork from the first, which computed it: what that
        one found in the cache is what the cache saved."""
        prompt = done.choice // self.n
        tokens, cached = self._prompts.get(prompt, (done.usage.prompt_tokens, done.usage.cached_tokens))
        self._prompts[prompt] = (tokens, min(cached, done.usage.cached_tokens))
        self.completion_tokens += done.usage.completion_tokens
        self.reasoning_tokens += done.usage.reasoning_tokens
        self.drafted_tokens += done.usage.drafted_tokens
        self.accepted_tokens += done.usage.accepted_tokens

    def as_dict(self) -> dict[str, Any]:
        """OpenAI's object."""
        prompt_tokens = sum(tokens for tokens, _ in self._prompts.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": self.completion_tokens,
            "total_tokens": prompt_tokens + self.completion_tokens,
            "prompt_tokens_details": {"cached_tokens": sum(cached for _, cached in self._prompts.values())},
            "completion_tokens_details": {
                "reasoning_tokens": self.reasoning_tokens,
                "accepted_prediction_tokens": self.accepted_tokens,
                "rejected_prediction_tokens": self.drafted_tokens - self.accepted_tokens,
            },
        }
