"""What the engine knows of a grammar: which token may come next, and which must."""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

MaskRow = NDArray[np.uint32]  # [ceil(vocabulary / 32)]: bit i % 32 of word i // 32 is 1 if token i may come

MASK_BITS = 32


def mask_words(vocabulary: int) -> int:
    """Words of a mask row for so many tokens."""
    return (vocabulary + MASK_BITS - 1) // MASK_BITS


class Guide(Protocol):
    """The state of one choice's constraint. Owned by one sequence, used by one thread at a time.

    Everything here is a function of the tokens pushed so far, in their order, and of nothing else: pushing
    the same tokens to another guide of the same `Guides` gives the same state, whether they were sampled
    or forced.

    Any method may raise `RequestError`: the constraint became too complex to follow, or nothing can follow
    any more. Then the choice has failed, and no other.
    """

    @property
    def forced(self) -> tuple[int, ...]:
        """Tokens that come next whatever the model says, tokenized as the model would; (): ask the model."""
        ...

    @property
    def free(self) -> bool:
        """True while any token may come: no mask is needed, and `refuses` is false for every token."""
        ...

    @property
    def finished(self) -> bool:
        """True when the text is complete and nothing may follow: no end token is needed."""
        ...

    @property
    def thought_tokens(self) -> int:
        """Tokens of thoughts so far, the marks around them not counted."""
        ...

    def fill_mask(self, mask: MaskRow) -> None:
        """Set the bits of the tokens that may come next, and clear all others.

        The model's end tokens are among them where the text may end. Only to be called if not `forced`,
        `free` or `finished`. Lets other Python threads run meanwhile.
        """
        ...

    def refuses(self, token_id: int) -> bool:
        """Whether a token that the mask allows must not come: it would complete what must not be.

        The caller samples again without it. A row of which every token is refused cannot be continued.
        """
        ...

    def push(self, token_id: int) -> None:
        """The token that came, sampled or forced."""
        ...

    def fork(self) -> Guide:
        """A guide of its own in the same state, to be pushed what may not come. Quick."""
        ...


class Guides(Protocol):
    """A constraint, compiled; each choice of a request takes a guide of its own from it."""

    @property
    def warnings(self) -> tuple[str, ...]:
        """What was rewritten, or is enforced in another way than by masks."""
        ...

    def new(self) -> Guide:
        """A guide at the start of an answer. Quick."""
        ...


class FreeGuide:
    """No constraint: any token may come, for ever."""

    forced: tuple[int, ...] = ()
    free = True
    finished = False
    thought_tokens = 0

    def fill_mask(self, mask: MaskRow) -> None:
        """All bits are set."""
        mask[:] = np.uint32(0xFFFFFFFF)

    def refuses(self, token_id: int) -> bool:
        """No token is."""
        return False

    def allows(self, token_id: int) -> bool:
        """Every token is."""
        return True

    def leave_run(self) -> None:
        """Nothing is ever forced."""

    def push(self, token_id: int) -> None:
        """Changes nothing."""

    def fork(self) -> FreeGuide:
        """Itself: it has no state."""
        return self


def unset_bits(mask: MaskRow, token_ids: Any) -> None:
    """Clear the bits of `token_ids`, an iterable of ids within the row."""
    for token_id in token_ids:
        mask[token_id // MASK_BITS] &= np.uint32(0xFFFFFFFF ^ (1 << (token_id % MASK_BITS)))


def set_bits(mask: MaskRow, token_ids: Any) -> None:
    """Set the bits of `token_ids`, an iterable of ids within the row."""
    for token_id in token_ids:
        mask[token_id // MASK_BITS] |= np.uint32(1 << (token_id % MASK_BITS))


def tokens_in(mask: MaskRow, most: int) -> list[int] | None:
    """The tokens of a mask, or None if they are more than `most`."""
    words = np.flatnonzero(mask)
    if len(words) > most:
        return None
    found = [
        int(word) * MASK_BITS + bit
        for word in words
        for bit in range(MASK_BITS)
        if int(mask[word]) >> bit & 1
    ]
    return found if len(found) <= most else None
