"""What a drafter is. It may be wrong about everything: at each position the model's own token decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Proposal(NamedTuple):
    """Tokens that may come next. `kind` is whatever the drafter likes: each has an acceptance of its own."""

    tokens: Sequence[int]
    kind: int


class Opening(NamedTuple):
    """What a drafter is told of a sequence before its tokens."""

    namespace: bytes = b""  # what is learnt may be shared only within it
    prompt_tokens: int = 0
    prediction: tuple[int, ...] = ()  # what the request says the answer will be like


class Drafter(Protocol):
    """Follows one sequence. A function of the tokens it was shown, so that a run can be repeated."""

    def extend(self, token_ids: Sequence[int]) -> None:
        """The next known tokens of the sequence, prompt first."""
        ...

    def propose(self, most: int) -> Proposal | None:
        """At most so many tokens that may follow the known ones; none if there is no idea."""
        ...

    def close(self) -> None:
        """The sequence has ended; what was learnt of it may serve others."""
        ...


class Drafters(Protocol):
    """Makes a drafter for each sequence."""

    name: str
    kinds: int  # of proposals, numbered from 0

    def open(self, opening: Opening) -> Drafter:
        """For a new sequence."""
        ...
