"""Which tokens may come next, worked out beside the forward pass where a core is free for it.

Both are native code and hold no lock. Without a free core a third thread would only take turns with the
model's own, which wait for each other at every op: with 16 sequences on two cores a constraint then cost 8 to
10 % of throughput, and costs nothing that can be measured when masks are filled before the model runs.
"""

from __future__ import annotations

from collections.abc import Sequence as ListOf
from queue import SimpleQueue
from threading import Thread
from weakref import finalize

import numpy as np

from stoker.api.errors import StokerError
from stoker.engine.plan import Chunk
from stoker.engine.sequence import Sequence
from stoker.grammar.guide import Guide, MaskRow, mask_words
from stoker.sampling.rows import UInt32
from stoker.speculation.draft import Draft

Found = MaskRow | int | Exception | None  # a mask, what is forced, why neither can be told; or all may come
Allowed = dict[tuple[int, int], MaskRow | int | StokerError]
_Walk = tuple[Guide, Draft, UInt32]  # a guide, what it is pushed, a row for each state [1 + guesses, words]


class Masks:
    """What may come in each row of a step that a guide has a say in. `begin`, run the model, `end`."""

    def __init__(self, vocabulary: int, *, beside: bool) -> None:
        """`beside`: a core is free while the model runs."""
        self._beside = beside
        self._words = mask_words(vocabulary)
        self._thread: Thread | None = None  # made for the first guide; most engines see none
        self._asked: SimpleQueue[list[_Walk] | None] = SimpleQueue()  # none: it is over
        self._found: SimpleQueue[list[list[Found]]] = SimpleQueue()
        self._numbers: list[int] = []  # of the sequences that were asked about
        self._rows = np.zeros((0, self._words), np.uint32)

    def begin(self, chunks: ListOf[Chunk], sequences: ListOf[Sequence]) -> None:
        """Start to tell what may come in the rows that are sampled in this step."""
        guided = [
            (sequence, sequence.guide, chunk.guesses)
            for sequence, chunk in zip(sequences, chunks, strict=True)
            if sequence.guide is not None and chunk[3]
        ]
        if not guided:
            return
        count = sum(len(draft.tokens) + 1 for _, _, draft in guided)
        if len(self._rows) < count:
            self._rows = np.zeros((count, self._words), np.uint32)
        walks: list[_Walk] = []
        first = 0
        for sequence, guide, draft in guided:
            rows = self._rows[first : first + len(draft.tokens) + 1]
            first += len(rows)
            self._numbers.append(sequence.number)
            walks.append((guide.fork() if draft.tokens else guide, draft, rows))
        if not self._beside:
            self._found.put([_walk(*walk) for walk in walks])
            return
        if self._thread is None:
            queues = (self._asked, self._found)
            self._thread = Thread(target=_walk_all, args=queues, name="masks", daemon=True)
            self._thread.start()
            finalize(self, self._asked.put, None)  # the thread ends with its engine
        self._asked.put(walks)

    def end(self) -> Allowed:
        """By sequence number and guess, -1 for none: what may come after it, a mask [words], valid until the
        next `begin`; the token that is forced; or why there is neither, which ends that choice only. Nothing
        where all may come. Raises what is nobody's fault but ours."""
        allowed: Allowed = {}
        if not self._numbers:
            return allowed
        numbers, self._numbers = self._numbers, []
        for number, states in zip(numbers, self._found.get(), strict=True):
            for guess, found in enumerate(states, start=-1):
                if isinstance(found, Exception) and not isinstance(found, StokerError):
                    raise found
                if found is not None:
                    allowed[number, guess] = found
        return allowed


def _walk_all(asked: SimpleQueue[list[_Walk] | None], found: SimpleQueue[list[list[Found]]]) -> None:
    while (walks := asked.get()) is not None:
        found.put([_walk(*walk) for walk in walks])


def _walk(guide: Guide, draft: Draft, rows: UInt32) -> list[Found]:
    """What may come now, and after each guess, as far as it can be told. One guide goes along a path; where
    another begins, it leaves a fork."""
    states: list[Found] = [None] * len(rows)
    begins: dict[int, list[int]] = {}  # the guess before -> the guesses that begin paths after it
    for path in draft.paths()[1:]:
        begins.setdefault(path.parent, []).append(path.guesses[0])
    forks: dict[int, Guide] = {}
    now: Guide | None = guide  # none: what comes before could not be followed
    for guess, row in enumerate(rows, start=-1):
        try:
            if guess >= 0:
                if draft.parent(guess) != guess - 1 or guess in forks:
                    now = forks.pop(guess, None)
                if now is None:
                    continue
                now.push(draft.tokens[guess])
            assert now is not None
            for begin in begins.get(guess, ()):
                forks[begin] = now.fork()
            states[guess + 1] = _state(now, row)
        except Exception as error:  # raised or noted by `end`, in the engine's thread
            states[guess + 1] = error
            now = None
    return states


def _state(guide: Guide, row: MaskRow) -> Found:
    if guide.forced:
        return guide.forced[0]
    if guide.free or guide.finished:
        return None
    guide.fill_mask(row)
    return row
