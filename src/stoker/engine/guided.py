"""Drafts of sequences with a guide: only what may come is worth verifying, and what must come is certain."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from contextlib import suppress

import numpy as np

from stoker.api.errors import StokerError
from stoker.grammar.guide import MASK_BITS, Guide, MaskRow
from stoker.speculation.draft import Draft


def allowed_draft(guide: Guide, draft: ListOf[int], most: int, *, words: int) -> tuple[int, ...]:
    """The beginning of a draft that the guide lets come, with what it forces in between; at most so many
    tokens. `words`: of a mask. The guide is left as it is."""
    allowed: list[int] = []
    ahead = guide.fork()
    mask = np.zeros(words, np.uint32)
    rest = list(draft)
    with suppress(StokerError):  # too complex to follow that far: what was found stands
        while len(allowed) < most and not ahead.finished:
            if ahead.forced:
                token_id = ahead.forced[0]
                rest = rest[1:] if rest[:1] == [token_id] else []
            elif rest:
                token_id = rest.pop(0)
                if not may_come(ahead, token_id, mask):
                    break
            else:
                break
            ahead.push(token_id)  # first: where it fails, nobody can follow the draft
            allowed.append(token_id)
    return tuple(allowed)


def may_come(guide: Guide, token_id: int, mask: MaskRow) -> bool:
    """Whether a token is allowed next; `mask` is written over."""
    if guide.free:
        return True
    guide.fill_mask(mask)
    return is_set(mask, token_id) and not guide.refuses(token_id)


def is_set(mask: MaskRow, token_id: int) -> bool:
    """Whether a mask allows a token."""
    return bool(int(mask[token_id // MASK_BITS]) >> (token_id % MASK_BITS) & 1)


def allowed_tree(guide: Guide, draft: Draft, most: int, *, words: int) -> Draft:
    """The guesses of a tree that the guide lets come, with what it forces in between; at most so many.

    `words`: of a mask. The guide is left as it is.
    """
    found = _AllowedTree(guide, most, words)
    places = {-1: -1}  # guess -> its place among the allowed ones
    for guess, token_id in enumerate(draft.tokens):
        parent = places.get(draft.parent(guess))
        place = None if parent is None else found.add(parent, token_id)
        if place is not None:
            places[guess] = place
    return Draft(tuple(found.tokens), tuple(found.parents))


class _AllowedTree:
    """A tree in the making, with a guide in the state after each guess."""

    def __init__(self, guide: Guide, most: int, words: int) -> None:
        self.tokens: list[int] = []
        self.parents: list[int] = []
        self._most = most
        self._words = words
        self._masks: dict[int, MaskRow] = {}
        self._guides: dict[int, Guide] = {}
        with suppress(StokerError):
            self._take(-1, guide.fork())

    def add(self, parent: int, token_id: int) -> int | None:
        """The place of a guess after another; none if it may not come."""
        guide = self._guides.get(parent)
        if guide is None:
            return None
        for place in range(parent + 1, len(self.tokens)):
            if self.parents[place] == parent and self.tokens[place] == token_id:
                return place
        with suppress(StokerError):  # too complex to follow that far: what was found stands
            goes_on = len(self.tokens) < self._most and not guide.forced and not guide.finished
            if goes_on and self._may_come(parent, guide, token_id):
                return self._append(parent, guide.fork(), token_id)
        return None

    def _append(self, parent: int, guide: Guide, token_id: int) -> int:
        guide.push(token_id)  # first: where it fails, nobody can follow the draft
        self.tokens.append(token_id)
        self.parents.append(parent)
        place = len(self.tokens) - 1
        self._take(place, guide)
        return place

    def _take(self, place: int, guide: Guide) -> None:
        """The guide's state after a guess; what it forces there is guessed as well."""
        self._guides[place] = guide
        with suppress(StokerError):
            if guide.forced and len(self.tokens) < self._most:
                self._append(place, guide.fork(), guide.forced[0])

    def _may_come(self, parent: int, guide: Guide, token_id: int) -> bool:
        if guide.free:
            return True
        mask = self._masks.get(parent)
        if mask is None:
            mask = self._masks[parent] = np.zeros(self._words, np.uint32)
            guide.fill_mask(mask)
        return is_set(mask, token_id) and not guide.refuses(token_id)
