"""Drafts of sequences with a guide: only what may come is worth verifying, and what must come is certain."""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from contextlib import suppress

import numpy as np

from stoker.api.errors import StokerError
from stoker.grammar.guide import MASK_BITS, Guide, MaskRow


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
    is_set = int(mask[token_id // MASK_BITS]) >> (token_id % MASK_BITS) & 1
    return bool(is_set) and not guide.refuses(token_id)
