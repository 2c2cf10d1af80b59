"""What a drafter is. It may be wrong about everything: at each position the model's own token decides."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol, runtime_checkable

from stoker.cache.lending import BlockLender
from stoker.sampling.rows import PackedParams
from stoker.speculation.features import Features


class Proposal(NamedTuple):
    """Tokens that may come next, and for each its kind: whatever the drafter likes, as long as tokens of one
    kind are about equally often right. Each kind has an acceptance of its own."""

    tokens: Sequence[int]
    kinds: Sequence[int]
    # Of a tree, for each token the index of the one before it, -1 for the last known token; parents come
    # before their children. None: a chain.
    parents: Sequence[int] | None = None


class Opening(NamedTuple):
    """What a drafter is told of a sequence before its tokens."""

    namespace: bytes = b""  # what is learnt may be shared only within it
    prompt_tokens: int = 0
    prediction: tuple[int, ...] = ()  # what the request says the answer will be like
    packed: PackedParams | None = None  # how its tokens are sampled; none: not known
    features: Features | None = None  # the target's hidden states of its last tokens, if a drafter reads them
    stop_ids: frozenset[int] = frozenset()  # tokens that end it


class Drafter(Protocol):
    """Follows one sequence. A function of what it was shown, so that a run can be repeated."""

    def extend(self, token_ids: Sequence[int]) -> None:
        """The next known tokens of the sequence, prompt first."""
        ...

    def propose(self, most: int) -> Proposal | None:
        """At most so many tokens that may follow the known ones; none if there is no idea."""
        ...

    def close(self) -> None:
        """The sequence has ended; what was learnt of it may serve others."""
        ...


@runtime_checkable
class Observer(Protocol):
    """A drafter that learns from what the target said at all positions of its drafts."""

    def observe(self, draft: Sequence[int], sampled: Sequence[int]) -> None:
        """Of its last proposal this chain was verified; `sampled`: what the target said in its place, token
        by token, and after it; the first wrong guess was wrong for those after it too. -1: nothing. Told
        before `extend` tells what became known."""
        ...


@runtime_checkable
class CatchesUp(Protocol):
    """A drafter that computes something of each known token before it can propose, as a draft model does."""

    @property
    def behind(self) -> int:
        """Known tokens to be computed first, besides the last."""
        ...

    def catch_up(self, most: int) -> int:
        """Compute at most so many of them; how many were. 0: it cannot now."""
        ...


class Following(NamedTuple):
    """What a drafter knows to follow guesses of another one."""

    depth: int  # so many of these guesses come before it
    proposal: Proposal  # a chain; kinds are those of `followed_chances`


@runtime_checkable
class Follower(Protocol):
    """A drafter that also says what would follow another one's guesses."""

    def follow(self, path: Sequence[int], most: int) -> Following | None:
        """At most so many tokens that follow the known ones and some guesses of this path: as few as let the
        first of them be the path's next guess, or else all. The path is not empty; it is not remembered."""
        ...


class Drafters(Protocol):
    """Makes a drafter for each sequence."""

    name: str
    # Most passes of a model that a proposal takes, one after the other: then asking costs time. 0: it costs
    # next to nothing.
    passes: int
    feature_tokens: int  # of how many last tokens it reads the target's hidden states

    @property
    def chances(self) -> Sequence[float]:
        """By kind, from 0: how often a token of it is accepted, until experience says so."""
        ...

    def open(self, opening: Opening) -> Drafter | None:
        """For a new sequence; none if there is nothing to draft it from, now or later."""
        ...


@runtime_checkable
class Followers(Protocol):
    """Drafters whose every drafter is a `Follower`."""

    @property
    def followed_chances(self) -> Sequence[float]:
        """Like `Drafters.chances`, of tokens that follow another drafter's guesses."""
        ...


@runtime_checkable
class Borrower(Protocol):
    """Drafters that keep keys and values in blocks of the engine's pool."""

    def borrow(self, lender: BlockLender) -> Drafters:
        """The same drafters with blocks of this lender, an engine's; there may be other engines beside it."""
        ...
