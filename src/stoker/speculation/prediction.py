"""A prediction that came with the request (OpenAI's `prediction`): followed while the answer is like it."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.speculation.drafter import Opening, Proposal

_ANCHOR = 3  # after a deviation these many equal tokens say where the answer is again


class PredictionDrafter:
    """Keeps the place in the prediction that the answer has reached."""

    def __init__(self, opening: Opening) -> None:
        self._prediction = list(opening.prediction)
        self._prompt_left = opening.prompt_tokens  # shown first, and no part of the answer
        self._place: int | None = 0  # of the next token; none: lost
        self._last: list[int] = []  # of the answer
        self._anchors: dict[tuple[int, ...], int] = {}
        for end in range(_ANCHOR, len(self._prediction)):
            self._anchors.setdefault(tuple(self._prediction[end - _ANCHOR : end]), end)

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`."""
        skipped = min(self._prompt_left, len(token_ids))
        self._prompt_left -= skipped
        for token in token_ids[skipped:]:
            place = self._place
            self._last = [*self._last[1 - _ANCHOR :], token]
            if place is not None and place < len(self._prediction) and self._prediction[place] == token:
                self._place = place + 1
            else:
                self._place = self._anchors.get(tuple(self._last))

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`."""
        place = self._place
        if place is None or place >= len(self._prediction) or self._prompt_left:
            return None
        tokens = self._prediction[place : place + most]
        return Proposal(tokens, [0] * len(tokens))

    def close(self) -> None:
        """Nothing is kept."""


class PredictionDrafters:
    """The prediction of each request that brought one."""

    name = "prediction"
    chances = (0.8,)
    passes = 0
    feature_tokens = 0

    def open(self, opening: Opening) -> PredictionDrafter | None:
        """See `Drafters`."""
        return PredictionDrafter(opening) if opening.prediction else None
