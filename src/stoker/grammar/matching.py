"""A guide over llguidance's matcher."""

from __future__ import annotations

import numpy as np
from llguidance import LLMatcher

from stoker.api.errors import EngineError, RequestError
from stoker.grammar.guide import MaskRow, tokens_in
from stoker.grammar.schema.strings import first_line
from stoker.grammar.vocabulary import Vocabulary


class GrammarGuide:
    """One text under a grammar. `matcher` is this guide's own."""

    free = False
    thought_tokens = 0

    def __init__(self, matcher: LLMatcher, vocabulary: Vocabulary, *, forced: tuple[int, ...] = ()) -> None:
        self._matcher = matcher
        self._vocabulary = vocabulary
        self.finished: bool = matcher.is_stopped()
        # Computed once, then followed to its end: what is forced half-way through a forced run may be
        # tokenized otherwise, and would depend on when it was asked for.
        self.forced: tuple[int, ...] = forced
        self._force()

    def fill_mask(self, mask: MaskRow) -> None:
        """See `Guide`. Raises RequestError if nothing can follow or the grammar's limits are met."""
        self._matcher.unsafe_compute_mask_ptr(mask.ctypes.data, self._vocabulary.words * 4)
        self._check()

    def allows(self, token_id: int) -> bool:
        """Whether the text may go on with the token; for an end token, whether it may end."""
        return self._matcher.validate_tokens([token_id]) == 1

    def after(self, token_id: int) -> GrammarGuide | None:
        """A guide of its own for what comes after a token; None if the grammar cannot follow it."""
        matcher = self._matcher.deep_copy()
        if not matcher.consume_token(token_id):
            return None
        return GrammarGuide(matcher, self._vocabulary, forced=self.forced[1:])

    def few_next(self, most: int) -> list[int] | None:
        """The tokens that may come next; None if they are more than `most`, or cannot be told."""
        mask = np.zeros(self._vocabulary.words, dtype=np.uint32)
        matcher = self._matcher.deep_copy()
        matcher.unsafe_compute_mask_ptr(mask.ctypes.data, self._vocabulary.words * 4)
        return None if matcher.is_error() else tokens_in(mask, most)

    def refuses(self, token_id: int) -> bool:
        """Nothing: the grammar says all there is to say."""
        return False

    def push(self, token_id: int) -> None:
        """See `Guide`. Raises EngineError for a token that neither the mask nor `forced` has."""
        if self.forced and token_id != self.forced[0]:
            raise EngineError(f"token {token_id} was pushed where token {self.forced[0]} is forced")
        if not self._matcher.consume_token(token_id):
            if "satisfy the grammar" not in self._matcher.get_error():
                self._check()  # a limit was met
            raise EngineError(f"token {token_id} was pushed where the grammar does not allow it")
        self.finished = self._matcher.is_stopped()
        self.forced = self.forced[1:]
        self._force()

    def fork(self) -> GrammarGuide:
        """See `Guide`."""
        return GrammarGuide(self._matcher.deep_copy(), self._vocabulary, forced=self.forced)

    def leave_run(self) -> None:
        """Forget what is forced: another token comes that the grammar allows too."""
        self.forced = ()

    def _force(self) -> None:
        if not self.forced and not self.finished:
            self.forced = tuple(self._matcher.compute_ff_tokens())
        self._check()

    def _check(self) -> None:
        # After an error llguidance's masks allow the end of the text, which must not pass for an answer.
        if self._matcher.is_error():
            raise RequestError(f"the constraint cannot be followed further: {first_line(self._matcher)}")
