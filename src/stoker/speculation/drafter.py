"""What a drafter is. It may be wrong about everything: the model's own token decides at each position (E2)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol


class Proposal(NamedTuple):
    """Tokens that may come next. `kind` is whatever the drafter likes: acceptance is counted for each apart."""

    tokens: Sequence[int]
    kind: int


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

    def open(self, namespace: bytes) -> Drafter:
        """For a sequence that may share what it learns only within `namespace`."""
        ...
