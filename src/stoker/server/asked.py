"""One call of an answering endpoint, understood: what the engine is asked, and the form of the answer."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.api.request import Request


@dataclass(frozen=True, slots=True)
class Asked:
    """The requests of one call, one for each prompt, and the form of the answer.

    Choice c of prompt p is choice p · n + c of the answer.
    """

    requests: tuple[Request, ...]
    stream: bool
    include_usage: bool = False  # a stream's last chunk
    continuous_usage: bool = False  # each of its chunks
    return_token_ids: bool = False
    prompt_ids: tuple[tuple[int, ...], ...] | None = None  # of each prompt, where they are wanted
    echoes: tuple[str, ...] | None = None  # the text of each prompt, where it goes before the answer

    @property
    def n(self) -> int:
        """Choices of each prompt."""
        return self.requests[0].sampling.n

    @property
    def choices(self) -> int:
        """Choices in all."""
        return self.n * len(self.requests)
