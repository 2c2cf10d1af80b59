"""From sampling parameters to guides, compiled once for the same constraint."""

from __future__ import annotations

from collections import OrderedDict
from threading import Lock

from llguidance import LLMatcher

from stoker.api.constraint import Constraint, Thinking
from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.grammar.checked import CheckedGuide
from stoker.grammar.guide import FreeGuide, Guide, Guides
from stoker.grammar.limits import CACHED_CHARS, CACHED_GRAMMARS, parser_limits
from stoker.grammar.matching import GrammarGuide
from stoker.grammar.schema.strings import first_line
from stoker.grammar.sources import Source, source_of
from stoker.grammar.thinking import Inner, ThinkingGuide, ThinkingMarks
from stoker.grammar.vocabulary import Vocabulary
from stoker.tokenizer import Tokenizer


class Grammar:
    """A compiled constraint: matchers are copied from it. Immutable to its callers."""

    def __init__(self, matcher: LLMatcher, source: Source, vocabulary: Vocabulary) -> None:
        self._matcher = matcher
        self._new_checks = source.new_checks
        self._vocabulary = vocabulary
        self.warnings = (*source.warnings, *matcher.get_grammar_warnings())

    @property
    def can_begin(self) -> bool:
        """False if it is plain from the first tokens that no text satisfies it."""
        guide = self.new()
        return guide.can_begin if isinstance(guide, CheckedGuide) else True

    def new(self) -> GrammarGuide | CheckedGuide:
        """A guide at the start of a text."""
        guide = GrammarGuide(self._matcher.deep_copy(), self._vocabulary)
        return (
            guide if self._new_checks is None else CheckedGuide(guide, self._new_checks(), self._vocabulary)
        )


class ConstraintGuides:
    """What a request's choices need: one guide each, and the warnings to be sent with the answer."""

    def __init__(self, grammar: Grammar | None, thinking: ThinkingMarks | None) -> None:
        self._grammar = grammar
        self._thinking = thinking
        self.warnings: tuple[str, ...] = () if grammar is None else grammar.warnings

    def new(self) -> Guide:
        """A guide at the start of an answer. Quick."""
        if self._thinking is None:
            return self._inner()
        return ThinkingGuide(self._thinking, self._inner)

    def _inner(self) -> Inner:
        return FreeGuide() if self._grammar is None else self._grammar.new()


class GrammarCompiler:
    """Compiles constraints for one model. Safe to share between threads.

    `vocabulary` is the number of logits.
    """

    def __init__(self, tokenizer: Tokenizer, *, vocabulary: int) -> None:
        self._vocabulary = Vocabulary(tokenizer, vocabulary)
        self._lock = Lock()
        self._grammars: OrderedDict[Constraint, Grammar] = OrderedDict()  # last used last
        self._chars = 0  # of their sources

    def prepare(self) -> None:
        """Do now what the first constraint would otherwise wait for, a second for the largest vocabularies.
        Holds Python's lock meanwhile."""
        _ = self._vocabulary.trie

    @property
    def cached(self) -> int:
        """Compiled constraints that are kept."""
        return len(self._grammars)

    def guides(self, params: SamplingParams) -> Guides | None:
        """What `params` ask of the text; None if nothing. May take a second.

        Raises RequestError for a constraint that is wrong, cannot be enforced, or costs too much.
        """
        if params.constraint is None and params.thinking is None:
            return None
        grammar = None if params.constraint is None else self._grammar(params.constraint)
        return ConstraintGuides(grammar, self._marks(params.thinking))

    def _marks(self, thinking: Thinking | None) -> ThinkingMarks | None:
        return None if thinking is None else ThinkingMarks.of(thinking, self._vocabulary)

    def _grammar(self, constraint: Constraint) -> Grammar:
        with self._lock:
            found = self._grammars.get(constraint)
            if found is not None:
                self._grammars.move_to_end(constraint)
                return found
        grammar = self._compile(constraint)  # unlocked: two may do it twice, and nobody waits
        with self._lock:
            if constraint not in self._grammars:
                self._grammars[constraint] = grammar
                self._chars += _chars(constraint)
            while len(self._grammars) > CACHED_GRAMMARS or self._chars > CACHED_CHARS:
                oldest, _ = self._grammars.popitem(last=False)
                self._chars -= _chars(oldest)
        return grammar

    def _source(self, constraint: Constraint) -> Source:
        """Its errors say what they are about, so that whoever asked can name the field."""
        try:
            return source_of(constraint, self._vocabulary)
        except RequestError as error:
            if "schema" in error.message or "constraint" in error.message:
                raise
            raise RequestError(f"{constraint.kind}: {error.message}", hint=error.hint) from error

    def _compile(self, constraint: Constraint) -> Grammar:
        try:
            source = self._source(constraint)
            matcher = source.grammar
            if isinstance(matcher, str):
                matcher = LLMatcher(self._vocabulary.trie, matcher, log_level=0, limits=parser_limits())
        except ValueError as error:  # lone surrogates, which have no UTF-8
            raise RequestError(f"the {constraint.kind} constraint cannot be read: {error}") from error
        if matcher.is_error():
            raise RequestError(f"the {constraint.kind} constraint cannot be enforced: {first_line(matcher)}")
        grammar = Grammar(matcher, source, self._vocabulary)
        if not grammar.can_begin:
            raise RequestError(f"the {constraint.kind} constraint contradicts itself: no text satisfies it")
        return grammar


def _chars(constraint: Constraint) -> int:
    chars = len(constraint.text) + sum(map(len, constraint.choices))
    if constraint.tags is not None:
        chars += sum(len(tag.begin) + len(tag.schema) + len(tag.end) for tag in constraint.tags.tags)
    return chars
