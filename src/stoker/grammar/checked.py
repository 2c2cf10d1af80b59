"""A guide whose grammar accepts too much, with tests of the values in the text."""

from __future__ import annotations

from stoker.grammar.guide import MaskRow
from stoker.grammar.matching import GrammarGuide
from stoker.grammar.text_checks import TextChecks
from stoker.grammar.vocabulary import Vocabulary

# How far a token is followed to see whether anything can come of it: while so few tokens may come next, and
# over so many of them altogether. A dead end further away is not seen.
MOST_NEXT = 8
MOST_FOLLOWED = 48


class CheckedGuide:
    """A `GrammarGuide` that also refuses tokens after which a value would be wrong."""

    free = False
    thought_tokens = 0

    def __init__(self, inner: GrammarGuide, checks: TextChecks, vocabulary: Vocabulary) -> None:
        self._inner = inner
        self._checks = checks
        self._vocabulary = vocabulary
        self._tried: tuple[int, TextChecks] | None = None  # the last token that was asked about

    @property
    def forced(self) -> tuple[int, ...]:
        """What the grammar forces."""
        return self._inner.forced

    @property
    def finished(self) -> bool:
        """Whether the grammar is at its end."""
        return self._inner.finished

    @property
    def can_begin(self) -> bool:
        """False if what is forced at the beginning is refused, so that no text can come of it."""
        return _Search(self._vocabulary).goes_on(self._inner, self._checks.copy())

    def fill_mask(self, mask: MaskRow) -> None:
        """The grammar's mask."""
        self._inner.fill_mask(mask)

    def allows(self, token_id: int) -> bool:
        """Whether the text may go on with the token."""
        return self._inner.allows(token_id) and not self.refuses(token_id)

    def refuses(self, token_id: int) -> bool:
        """Whether the token completes a value that is wrong, or leaves nothing but that."""
        checks = self._checks.copy()
        if token_id in self._vocabulary.stop_ids:
            return not checks.end()
        if not checks.feed(self._vocabulary.tokenizer.token_bytes(token_id)):
            return True
        self._tried = (token_id, checks)
        return not _Search(self._vocabulary).goes_on(self._inner.after(token_id), checks.copy())

    def push(self, token_id: int) -> None:
        """See `Guide`."""
        self._inner.push(token_id)
        tried, self._tried = self._tried, None
        if tried is not None and tried[0] == token_id:
            self._checks = tried[1]
        elif token_id not in self._vocabulary.stop_ids:
            self._checks.feed(self._vocabulary.tokenizer.token_bytes(token_id))

    def fork(self) -> CheckedGuide:
        """See `Guide`."""
        return CheckedGuide(self._inner.fork(), self._checks.copy(), self._vocabulary)

    def leave_run(self) -> None:
        """See `GrammarGuide`."""
        self._inner.leave_run()


class _Search:
    """Follows what a grammar leaves until there is a choice among many tokens."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._left = MOST_FOLLOWED

    def goes_on(self, guide: GrammarGuide | None, checks: TextChecks) -> bool:
        """False if every way from here is refused. `checks` are used up."""
        if guide is None:  # the grammar cannot follow it: the push will say why
            return True
        while guide.forced:
            for token_id in guide.forced:
                if not checks.feed(self._vocabulary.tokenizer.token_bytes(token_id)):
                    return False
                guide = guide.after(token_id)
                if guide is None:
                    return True
        if guide.finished:
            return checks.end()
        next_ids = guide.few_next(MOST_NEXT)
        if next_ids is None:
            return True
        for token_id in next_ids:
            self._left -= 1
            if self._left < 0 or self._may_come(guide, checks, token_id):
                return True
        return False

    def _may_come(self, guide: GrammarGuide, checks: TextChecks, token_id: int) -> bool:
        branch = checks.copy()
        if token_id in self._vocabulary.stop_ids:
            return branch.end()
        if not branch.feed(self._vocabulary.tokenizer.token_bytes(token_id)):
            return False
        return self.goes_on(guide.after(token_id), branch)
