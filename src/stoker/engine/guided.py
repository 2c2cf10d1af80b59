"""Drafts of sequences with a guide: only what may come is worth verifying, and what must come is certain."""

from __future__ import annotations

from contextlib import suppress

import numpy as np

from stoker.api.errors import StokerError
from stoker.grammar.guide import MASK_BITS, Guide, MaskRow
from stoker.speculation import AllowedDraft, Draft


def allowed_draft(guide: Guide, draft: Draft, most: int, *, words: int) -> AllowedDraft:
    """The guesses that the guide lets come, with what it forces in between; at most so many.

    `words`: of a mask. The guide is left as it is.
    """
    found = _AllowedDraft(guide, most, words, is_chain=draft.is_chain)
    places = {-1: -1}  # guess -> its place among the allowed ones
    for guess, token_id in enumerate(draft.tokens):
        parent = places.get(draft.parent(guess))
        place = None if parent is None else found.add(parent, token_id)
        if place is not None:
            places[guess] = place
    allowed = Draft(tuple(found.tokens), None if draft.is_chain else tuple(found.parents))
    return AllowedDraft(allowed, frozenset(found.forced))


def is_set(mask: MaskRow, token_id: int) -> bool:
    """Whether a mask allows a token."""
    return bool(int(mask[token_id // MASK_BITS]) >> (token_id % MASK_BITS) & 1)


class _AllowedDraft:
    """A draft in the making, with a guide in the state after each guess that may have more after it."""

    def __init__(self, guide: Guide, most: int, words: int, *, is_chain: bool) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self.forced: set[int] = set()
        self._most = most
        self._words = words
        self._is_chain = is_chain
        self._masks: dict[int, MaskRow] = {}
        self._guides: dict[int, Guide] = {}
        with suppress(StokerError):  # too complex to follow that far: what was found stands
            self._take(-1, guide.fork())

    def add(self, parent: int, token_id: int) -> int | None:
        """The place of a guess after another; none if it may not come."""
        for place in range(parent + 1, len(self.tokens)):
            if self.parents[place] == parent and self.tokens[place] == token_id:
                return place
        guide = self._guides.get(parent)
        if guide is None or len(self.tokens) >= self._most:
            return None
        with suppress(StokerError):
            if not guide.forced and not guide.finished and self._may_come(parent, guide, token_id):
                return self._append(parent, guide, token_id)
        return None

    def _append(self, parent: int, guide: Guide, token_id: int) -> int:
        # In a chain nothing else comes after the parent.
        after = self._guides.pop(parent) if self._is_chain else guide.fork()
        after.push(token_id)  # first: where it fails, nobody can follow the draft
        self.tokens.append(token_id)
        self.parents.append(parent)
        place = len(self.tokens) - 1
        self._take(place, after)
        return place

    def _take(self, place: int, guide: Guide) -> None:
        """The guide's state after a guess; what it forces there is guessed as well."""
        self._guides[place] = guide
        with suppress(StokerError):
            if guide.forced and len(self.tokens) < self._most:
                self.forced.add(self._append(place, guide, guide.forced[0]))

    def _may_come(self, parent: int, guide: Guide, token_id: int) -> bool:
        if guide.free:
            return True
        mask = self._masks.get(parent)
        if mask is None:
            mask = self._masks[parent] = np.zeros(self._words, np.uint32)
            guide.fill_mask(mask)
        return is_set(mask, token_id) and not guide.refuses(token_id)
