"""One call of an answering endpoint, understood: what the engine is asked, and the form of the answer."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from stoker.api.request import Request
from stoker.tools import AnswerParser


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
    echo_logprobs: bool = False  # log-probabilities of each prompt's tokens before the answer's
    prompt_logprobs: bool = False  # in a field of their own
    # A parser for each choice, made from what its call ids are made from; none: all text is what is said.
    parser: Callable[[str], AnswerParser] | None = None
    answer_id: str | None = None  # none: made from the request's id
    # Called with the whole answer before its last bytes are sent; none: it is not stored.
    keep: Callable[[dict[str, Any]], Awaitable[None]] | None = None
    service_tier: str | None = None  # to be told, where it was asked for
    # The field to blame for a constraint that cannot be enforced, by what the engine says of it.
    field_to_blame: Callable[[str], str] | None = None

    @property
    def n(self) -> int:
        """Choices of each prompt."""
        return self.requests[0].sampling.n

    def parsers(self) -> list[AnswerParser]:
        """A parser for each choice; none where all text is what is said."""
        if self.parser is None:
            return []
        seed = self.requests[0].request_id.partition("#")[0]  # what the client knows of it
        return [self.parser(f"{seed}/{choice}") for choice in range(self.choices)]

    def prompt_number(self, request_id: str) -> int:
        """Which of the prompts an event of a request's is of."""
        return next(i for i, request in enumerate(self.requests) if request.request_id == request_id)

    @property
    def choices(self) -> int:
        """Choices in all."""
        return self.n * len(self.requests)
