"""How deep drafts were, and how far they held: for metrics. No decision reads it."""

from __future__ import annotations


class DraftTally:
    """Counts verified drafts by their tokens and by how many of these were accepted. The engine writes it."""

    def __init__(self) -> None:
        self._by_tokens: list[int] = []
        self._by_accepted: list[int] = []
        self.saved_ms = 0.0  # against plain steps, as their cost was known then; falls by wrong guesses

    def save(self, elapsed_ms: float) -> None:
        """A step with drafts took so much less than plain ones; negative: more."""
        self.saved_ms += elapsed_ms

    def add(self, drafted: int, accepted: int) -> None:
        """A draft of so many tokens was verified, and so many of them were what the model said."""
        _count(self._by_tokens, drafted)
        _count(self._by_accepted, accepted)

    @property
    def drafts(self) -> int:
        """All that were verified."""
        return sum(self._by_tokens)

    @property
    def by_tokens(self) -> tuple[int, ...]:
        """[i]: drafts of i tokens; as long as the largest one needs."""
        return tuple(self._by_tokens)

    @property
    def by_accepted(self) -> tuple[int, ...]:
        """[i]: drafts of which i tokens were accepted."""
        return tuple(self._by_accepted)


def _count(counts: list[int], value: int) -> None:
    counts.extend([0] * (value + 1 - len(counts)))
    counts[value] += 1
