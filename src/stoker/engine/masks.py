"""Which tokens may come next, worked out beside the forward pass where a core is free for it.

Both are native code and hold no lock. Without a free core a third thread would only take turns with the
model's own, which wait for each other at every op: with 16 sequences on two cores a constraint then cost 8 to
10 % of throughput, and costs nothing that can be measured when masks are filled before the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from queue import SimpleQueue
from threading import Thread

import numpy as np

from stoker.api.errors import StokerError
from stoker.engine.plan import Chunk
from stoker.engine.sequence import Sequence
from stoker.grammar.guide import Guide, MaskRow, mask_words

Allowed = dict[tuple[int, int], MaskRow | int | StokerError]


class Masks:
    """One mask for each sequence of a step that its guide has a say in. `begin`, run the model, `end`."""

    def __init__(self, vocabulary: int, *, beside: bool) -> None:
        """`beside`: a core is free while the model runs."""
        self._beside = beside
        self._words = mask_words(vocabulary)
        self._thread: Thread | None = None  # made for the first guide; most engines see none
        self._asked: SimpleQueue[list[tuple[Guide, MaskRow]]] = SimpleQueue()
        self._filled: SimpleQueue[list[Exception | None]] = SimpleQueue()
        self._forced: dict[tuple[int, int], int] = {}
        self._wanted: list[tuple[int, int]] = []  # number of the sequence, tokens ahead
        self._rows = np.zeros((0, self._words), np.uint32)

    def begin(self, chunks: ListOf[Chunk], sequences: ListOf[Sequence]) -> None:
        """Start to fill the masks of the rows that are sampled in this step."""
        guides: list[Guide] = []
        for sequence, chunk in zip(sequences, chunks, strict=True):
            if sequence.guide is not None and chunk[3]:
                for ahead, guide in enumerate(_along(sequence.guide, chunk.draft)):
                    if guide.forced:
                        self._forced[sequence.number, ahead] = guide.forced[0]
                    elif not guide.free and not guide.finished:
                        self._wanted.append((sequence.number, ahead))
                        guides.append(guide)
        if not self._wanted:
            return
        if len(self._rows) < len(self._wanted):
            self._rows = np.zeros((len(self._wanted), self._words), np.uint32)
        asked = list(zip(guides, self._rows, strict=False))
        if not self._beside:
            self._filled.put(_fill(asked))
            return
        if self._thread is None:
            queues = (self._asked, self._filled)
            self._thread = Thread(target=_fill_all, args=queues, name="masks", daemon=True)
            self._thread.start()
        self._asked.put(asked)

    def end(self) -> Allowed:
        """By sequence number and tokens ahead: the mask, [words], valid until the next `begin`; the token
        that is forced; or why there is neither, which ends that choice only. Raises what is nobody's fault
        but ours."""
        masks: Allowed = {}
        masks |= self._forced
        self._forced.clear()
        if not self._wanted:
            return masks
        wanted, self._wanted = self._wanted, []
        for key, row, error in zip(wanted, self._rows, self._filled.get(), strict=False):
            if error is not None and not isinstance(error, StokerError):
                raise error
            masks[key] = row if error is None else error
        return masks


def _along(guide: Guide, draft: tuple[int, ...]) -> list[Guide]:
    """The guide, and one for the state after each drafted token."""
    if not draft:
        return [guide]
    guides = [guide]
    for token_id in draft:
        ahead = guides[-1].fork()
        ahead.push(token_id)
        guides.append(ahead)
    return guides


def _fill_all(
    asked: SimpleQueue[list[tuple[Guide, MaskRow]]], filled: SimpleQueue[list[Exception | None]]
) -> None:
    while True:
        filled.put(_fill(asked.get()))


def _fill(asked: list[tuple[Guide, MaskRow]]) -> list[Exception | None]:
    errors: list[Exception | None] = []
    for guide, row in asked:
        try:
            guide.fill_mask(row)
        except Exception as error:  # raised or noted by `end`, in the engine's thread
            errors.append(error)
        else:
            errors.append(None)
    return errors
