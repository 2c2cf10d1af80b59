"""Who is admitted next: tenants take turns by the tokens they were given, and within a tenant the request
goes first that costs least because its prefix is known, unless another has waited long enough.

No clock and no chance: age is counted in steps, so the same requests and the same steps give the same order.
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections.abc import Iterator, Set
from dataclasses import dataclass, field
from itertools import islice
from typing import NamedTuple

from stoker.api.errors import QueueFullError
from stoker.cache.radix import Match, RadixTree
from stoker.engine.sequence import Sequence
from stoker.kernels.program import BLOCK_TOKENS

# Of each tenant so many sequences are compared, and the oldest, so that age counts however many have a better
# priority; the rest stand in line behind them by priority and arrival.
_WINDOW = 64
# A step in the queue is worth as much as this many cached tokens: after 64 steps (a second or two) a request
# without any prefix goes before one that has just come with 1 024 tokens in the cache.
_TOKENS_PER_STEP = 16
# Waiting this many steps (some ten seconds) raises a request by one level of priority, so that none starves.
_STEPS_PER_LEVEL = 512
_NO_DEADLINE = 1 << 62
# Tenants that left and are remembered: the names are the clients' choice, so that there may be any number.
_MOST_IDLE = 1024


class _Rank(NamedTuple):
    """Smaller goes first."""

    priority: int
    deadline: int
    gain: int  # minus the tokens that need not be computed, and what waiting counts for
    number: int


@dataclass(slots=True)
class _Tenant:
    """One tenant's sequences in the queue, by (priority, number), and the tokens it was given so far."""

    served: int = 0
    line: list[Sequence] = field(default_factory=list)
    arrivals: list[Sequence] = field(default_factory=list)  # the same, by number
    running: int = 0


class WaitingQueue:
    """Owns what waits, and the tenants' counters. The scheduler is the only caller."""

    def __init__(self, tree: RadixTree, *, most_sequences: int, most_tokens: int) -> None:
        """At most so many sequences, with so many tokens in all, wait at once; preempted ones always may."""
        self._tree = tree
        self._most_sequences = most_sequences
        self._most_tokens = most_tokens
        self._tenants: dict[str, _Tenant] = {}  # those with anything open
        self._idle: dict[str, int] = {}  # what the others were given, by when they left
        self._floor = 0  # what a tenant that comes (back) has been given at least: idle time earns nothing
        self._matches: dict[int, tuple[int, Match]] = {}  # by number: the step it was made in, and the match
        self._count = 0
        self._background = 0  # of these
        self._tokens = 0

    def __len__(self) -> int:
        return self._count

    @property
    def foreground(self) -> int:
        """How many wait that are not in the background."""
        return self._count - self._background

    def __iter__(self) -> Iterator[Sequence]:
        """All that wait, in order of arrival."""
        everyone = [sequence for tenant in self._tenants.values() for sequence in tenant.line]
        return iter(sorted(everyone, key=lambda sequence: sequence.number))

    def check_room(self, choices: list[Sequence]) -> None:
        """Raise `QueueFullError` if the choices of a new request do not fit into the queue."""
        if self._count + len(choices) > self._most_sequences:
            raise QueueFullError(
                f"{self._count} sequences wait; allowed: {self._most_sequences}", hint="try again later"
            )
        tokens = sum(choice.known for choice in choices)
        if self._count and self._tokens + tokens > self._most_tokens:
            raise QueueFullError(
                f"{self._tokens} tokens wait and {tokens} more would; allowed: {self._most_tokens}",
                hint="try again later",
            )

    def add(self, sequence: Sequence) -> None:
        """Let a sequence wait, at its place by priority and arrival."""
        tenant = self._tenant(sequence.tenant)
        insort(tenant.line, sequence, key=_place)
        insort(tenant.arrivals, sequence, key=_number)
        self._count += 1
        self._background += sequence.background
        self._tokens += sequence.known

    def remove(self, sequence: Sequence) -> None:
        """Take a waiting sequence out."""
        tenant = self._tenants[sequence.tenant]
        for line, key in ((tenant.line, _place), (tenant.arrivals, _number)):
            del line[bisect_left(line, key(sequence), key=key)]
        self._rest(sequence.tenant)
        self._matches.pop(sequence.number, None)
        self._count -= 1
        self._background -= sequence.background
        self._tokens -= sequence.known

    def started(self, sequence: Sequence) -> None:
        """A sequence of its tenant runs from now on."""
        self._tenant(sequence.tenant).running += 1

    def stopped(self, sequence: Sequence) -> None:
        """It does no longer."""
        self._tenants[sequence.tenant].running -= 1
        self._rest(sequence.tenant)

    def charge(self, tenant: str, tokens: int) -> None:
        """Count tokens computed for a tenant."""
        self._tenants[tenant].served += tokens

    def served(self, tenant: str) -> int:
        """The tokens a tenant was given, as fairness counts them: 0 for one that is not known (any more)."""
        known = self._tenants.get(tenant)
        return self._idle.get(tenant, 0) if known is None else known.served

    def next(
        self, step: int, passed: Set[int], *, background: bool = True
    ) -> tuple[Sequence, Match | None] | None:
        """The sequence to admit now, with its known prefix (none if it has a table or cannot use one).

        Of the sequences whose number is in `passed`, or whose leader computes their prompt, none; of those in
        the background none unless `background`.
        """
        if not background and not self.foreground:
            return None
        if self._tenants:
            self._floor = max(self._floor, min(tenant.served for tenant in self._tenants.values()))
        best: tuple[tuple[int, int, str], Sequence] | None = None
        for name, tenant in self._tenants.items():
            found = self._best_of(tenant, step, passed, background) if tenant.line else None
            if found is None:
                continue
            rank, sequence = found
            order = (rank.priority, tenant.served, name)
            if best is None or order < best[0]:
                best = order, sequence
        if best is None:
            return None
        return best[1], self._match(best[1], step, fresh=True)

    def _best_of(
        self, tenant: _Tenant, step: int, passed: Set[int], background: bool
    ) -> tuple[_Rank, Sequence] | None:
        def is_ready(s: Sequence) -> bool:
            return s.leader is None and s.number not in passed and (background or not s.background)

        ready = filter(is_ready, tenant.line)
        oldest = filter(is_ready, tenant.arrivals)
        ranked = [(self._rank(s, step), s) for s in (*islice(ready, _WINDOW), *islice(oldest, 1))]
        return min(ranked, key=lambda pair: pair[0]) if ranked else None

    def _rank(self, sequence: Sequence, step: int) -> _Rank:
        waited = max(step - sequence.queued_at, 0)
        match = self._match(sequence, step)
        known = sequence.computed if match is None else match.tokens
        deadline = _NO_DEADLINE if sequence.deadline is None else sequence.deadline
        level = sequence.priority - waited // _STEPS_PER_LEVEL
        return _Rank(level, deadline, -(known + waited * _TOKENS_PER_STEP), sequence.number)

    def _match(self, sequence: Sequence, step: int, *, fresh: bool = False) -> Match | None:
        """What the tree has of it. Ranking may use an answer that is a few steps old; admission may not."""
        if sequence.table is not None or not sequence.reads_prefixes:
            return None
        known = self._matches.get(sequence.number)
        if not fresh and known is not None and step - known[0] < BLOCK_TOKENS:
            return known[1]
        match = self._tree.match(sequence.namespace, sequence.ids)
        self._matches[sequence.number] = step, match
        return match

    def _tenant(self, name: str) -> _Tenant:
        tenant = self._tenants.get(name)
        if tenant is None:
            served = max(self._idle.pop(name, 0), self._floor)
            tenant = self._tenants[name] = _Tenant(served)
        return tenant

    def _rest(self, name: str) -> None:
        """If nothing of a tenant is open, only what it was given is remembered, for a while."""
        tenant = self._tenants[name]
        if tenant.line or tenant.running:
            return
        del self._tenants[name]
        if tenant.served > self._floor:
            self._idle[name] = tenant.served
            if len(self._idle) > _MOST_IDLE:
                del self._idle[next(iter(self._idle))]


def _number(sequence: Sequence) -> tuple[int, ...]:
    return (sequence.number,)


def _place(sequence: Sequence) -> tuple[int, ...]:
    return sequence.priority, sequence.number
