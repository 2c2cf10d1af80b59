"""How long an answer took. Clocks live here, above the engine: nothing that decides ever reads one."""

from __future__ import annotations

import time
from dataclasses import dataclass, field


@dataclass
class AnswerTiming:
    """Stamps of one answer in seconds of the process's clock. Owned by whoever consumes the stream."""

    prompt_tokens: int = 0  # known when the answer is done
    started_s: float = field(default_factory=time.perf_counter)
    first_token_s: float | None = None
    last_token_s: float | None = None
    answer_tokens: int = 0

    def count(self, new_tokens: int) -> None:
        """Tokens arrived just now; a stream step without any (half a character) is not an arrival."""
        if new_tokens <= 0:
            return
        now = time.perf_counter()
        if self.first_token_s is None:
            self.first_token_s = now
        self.last_token_s = now
        self.answer_tokens += new_tokens

    @property
    def time_to_first_token_s(self) -> float | None:
        """From the request to its first token; none if there was no token."""
        return None if self.first_token_s is None else self.first_token_s - self.started_s

    @property
    def prompt_tokens_per_s(self) -> float | None:
        """Prompt tokens over the time to the first token, so the first sampling counts as prompt work."""
        seconds = self.time_to_first_token_s
        return None if not seconds else self.prompt_tokens / seconds

    @property
    def answer_tokens_per_s(self) -> float | None:
        """Tokens after the first over the time they took; none for answers of fewer than two tokens."""
        if self.first_token_s is None or self.last_token_s is None or self.answer_tokens < 2:
            return None
        seconds = self.last_token_s - self.first_token_s
        return (self.answer_tokens - 1) / seconds if seconds > 0 else None

    def sentence(self) -> str:
        """For stderr: "prompt 31 tokens, 2210 tokens/s; answer ...; first token after 14 ms"."""
        parts = [_part("answer", self.answer_tokens, self.answer_tokens_per_s)]
        if self.prompt_tokens:  # not known of an answer that was interrupted
            parts.insert(0, _part("prompt", self.prompt_tokens, self.prompt_tokens_per_s))
        if self.time_to_first_token_s is not None:
            parts.append(f"first token after {self.time_to_first_token_s * 1000:.0f} ms")
        return "; ".join(parts)

    def as_dict(self) -> dict[str, float | int | None]:
        """For --json; seconds and tokens per second, none where there is nothing to divide."""
        return {
            "prompt_tokens": self.prompt_tokens,
            "completion_tokens": self.answer_tokens,
            "time_to_first_token_s": _rounded(self.time_to_first_token_s, 4),
            "prompt_tokens_per_s": _rounded(self.prompt_tokens_per_s, 1),
            "completion_tokens_per_s": _rounded(self.answer_tokens_per_s, 1),
        }


def _part(name: str, tokens: int, rate: float | None) -> str:
    counted = f"{name} {tokens} token{'' if tokens == 1 else 's'}"
    return counted if rate is None else f"{counted}, {rate:.0f} tokens/s"


def _rounded(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
