"""A prediction that came with the request (OpenAI's `prediction`): followed while the answer is like it."""

from __future__ import annotations

from collections.abc import Sequence

from stoker.speculation.copying import COPIED, Copying
from stoker.speculation.drafter import Opening, Proposal

_ANCHOR = 3  # where the place is lost, or not sure, these many equal tokens say where the answer is again


class PredictionDrafter:
    """Keeps the place in the prediction that the answer has reached."""

    def __init__(self, opening: Opening) -> None:
        self._prediction = list(opening.prediction)
        self._prompt_left = opening.prompt_tokens  # shown first, and no part of the answer
        self._copying = Copying()
        self._copying.start(0, COPIED)  # it is said to be one
        self._last: list[int] = []  # of the answer
        self._anchors: dict[tuple[int, ...], int] = {}
        for end in range(_ANCHOR, len(self._prediction)):
            self._anchors.setdefault(tuple(self._prediction[end - _ANCHOR : end]), end)

    def extend(self, token_ids: Sequence[int]) -> None:
        """See `Drafter`."""
        skipped = min(self._prompt_left, len(token_ids))
        self._prompt_left -= skipped
        copying = self._copying
        for token in token_ids[skipped:]:
            self._last = [*self._last[1 - _ANCHOR :], token]
            copying.read(self._prediction, token)
            if copying.place is None or (copying.deviated and not copying.agreed):
                place = self._anchors.get(tuple(self._last))
                if place is not None:
                    copying.start(place, _ANCHOR)

    def propose(self, most: int) -> Proposal | None:
        """See `Drafter`."""
        copying = self._copying
        place = copying.place
        if place is None or place >= len(self._prediction) or self._prompt_left:
            return None
        tokens = self._prediction[place : place + most]
        if not copying.deviated:
            return Proposal(tokens, [0] * len(tokens))
        first = 3 if copying.agreed else 1
        return Proposal(tokens, [first] + [first + 1] * (len(tokens) - 1))

    def close(self) -> None:
        """Nothing is kept."""


class PredictionDrafters:
    """The prediction of each request that brought one."""

    name = "prediction"
    # In the copy; right behind a deviation, the first token and the others; when one token agreed since.
    chances = (0.8, 0.35, 0.8, 0.85, 0.85)
    passes = 0
    feature_tokens = 0

    def open(self, opening: Opening) -> PredictionDrafter | None:
        """See `Drafters`."""
        return PredictionDrafter(opening) if opening.prediction else None
