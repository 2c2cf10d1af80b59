"""How much to draft, for whom, from whom: what brings most accepted tokens per millisecond.

Goodput after Liu et al., "Optimizing speculative decoding for serving using goodput", 2024: drafted tokens
are added one by one, the likeliest first, as long as each raises expected tokens per expected time.
Acceptance is estimated from what was accepted so far, of a sequence and of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stoker.speculation.drafter import Drafter, Drafters, Opening, Proposal

Int32 = npt.NDArray[np.int32]

MOST_DRAFTED = 15  # with the token before it a tile of 16 of the kernels
_FORGET = 0.9  # of a sequence's own experience, per draft: answers change from copying to inventing
_FORGET_ALL = 0.995
_PRIOR_WEIGHT = 2.0  # in tries, of all sequences' experience against the sequence's own
_FIRST_GUESS = 0.5
_TRY_AGAIN_STEPS = 128  # now and then a draft of a source that is not worth it is tried, to see whether it is
# A drafted token must promise so many times its cost: estimates of both are rough, and a wrong draft is work
# that others wait for.
_MARGIN = 1.25
_LOOK_AGAIN_STEPS = 8  # divides _TRY_AGAIN_STEPS
_LEAST_WORTH = 0.02  # a token that is accepted less often is never worth its row of logits


class Cost(Protocol):
    """What a step takes; `stoker.engine.budget.StepCost` is one."""

    @property
    def known(self) -> bool:
        """Whether enough steps were seen."""
        ...

    def predict_ms(self, tokens: int, context_tokens: int) -> float:
        """A step of so many tokens that together read so many tokens of context."""
        ...


class Stream(NamedTuple):
    """A sequence that decodes."""

    number: int
    opening: Opening
    ids: Int32  # [known]
    most: int  # drafted tokens it has room for
    # Where not every token may come: the beginning of a draft that may, at most so many tokens.
    allowed: Callable[[Sequence[int], int], tuple[int, ...]] | None = None


@dataclass(slots=True)
class _Rate:
    """Accepted of tried, the latest counting most."""

    accepted: float = 0.0
    tried: float = 0.0

    def add(self, accepted: int, tried: int, forget: float) -> None:
        self.accepted = self.accepted * forget + accepted
        self.tried = self.tried * forget + tried


@dataclass(slots=True)
class _Source:
    """One drafter of a stream, and how it fared."""

    name: str
    kinds: int
    drafter: Drafter
    shown: int = 0  # tokens that the drafter has seen
    rates: dict[int, _Rate] = field(default_factory=dict)  # by kind
    skipped: int = 0  # steps since it was last tried in which it was not asked
    declined: int = 0  # and in which its proposal was not worth its cost


@dataclass(slots=True)
class _Asked:
    """What was drafted for a stream in the step that runs."""

    source: _Source
    kind: int
    tokens: tuple[int, ...]


class _Candidate(NamedTuple):
    number: int
    source: _Source
    proposal: Proposal
    rate: float
    cost_ms: float


class Speculator:
    """Owns the drafters of all streams, and what is known of their success. One thread uses it."""

    def __init__(self, drafters: Sequence[Drafters], cost: Cost) -> None:
        self._drafters = drafters
        self._cost = cost
        self._sources: dict[int, list[_Source]] = {}  # by stream
        self._all: dict[tuple[str, int], _Rate] = {}  # by drafter and kind
        self._asked: dict[int, _Asked] = {}  # by stream, while the step runs
        self.drafted_tokens = 0
        self.accepted_tokens = 0

    def may_pay(self, streams: int, context_tokens: int) -> bool:
        """Whether any draft could be worth its cost beside so many streams. Quick: mostly none is."""
        base_ms, token_ms, _ = self._step_cost(streams, context_tokens)
        return _MARGIN * streams * token_ms < base_ms

    def draft(self, streams: Sequence[Stream], *, most_tokens: int) -> dict[int, tuple[int, ...]]:
        """What to verify beside each stream's next token, at most so many tokens in all; by number."""
        self._asked.clear()
        context_tokens = sum(len(stream.ids) for stream in streams)
        base_ms, token_ms, context_ms = self._step_cost(len(streams), context_tokens)
        # What a token must be accepted with to be worth it at all, as long as nothing is drafted yet.
        candidates = []
        for stream in streams:
            cost_ms = token_ms + context_ms * len(stream.ids)
            found = self._candidate(stream, cost_ms, _MARGIN * len(streams) * cost_ms / base_ms)
            if found is not None:
                candidates.append(found)
        depths = _depths(candidates, len(streams), base_ms, most_tokens)
        chosen = {}
        for candidate, depth in zip(candidates, depths, strict=True):
            if not depth:
                candidate.source.declined += 1
                if candidate.source.skipped + candidate.source.declined < _TRY_AGAIN_STEPS:
                    continue
                depth = 1
            tokens = tuple(candidate.proposal.tokens[:depth])
            candidate.source.skipped = candidate.source.declined = 0
            self._asked[candidate.number] = _Asked(candidate.source, candidate.proposal.kind, tokens)
            chosen[candidate.number] = tokens
        return chosen

    def judge(self, number: int, drafted: int, accepted: int) -> None:
        """Of the draft of a stream so many tokens were verified, and so many of these accepted."""
        self.drafted_tokens += drafted
        self.accepted_tokens += accepted
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        tried = min(accepted + 1, drafted)
        rate = asked.source.rates.setdefault(asked.kind, _Rate())
        rate.add(accepted, tried, _FORGET)
        of_all = self._all.setdefault((asked.source.name, asked.kind), _Rate())
        of_all.add(accepted, tried, _FORGET_ALL)

    def forget(self, number: int) -> None:
        """A stream has ended."""
        self._asked.pop(number, None)
        for source in self._sources.pop(number, ()):
            source.drafter.close()

    def _step_cost(self, streams: int, context_tokens: int) -> tuple[float, float, float]:
        """Milliseconds of a step without drafts, of one more token, and of each token of context it reads."""
        if not self._cost.known:
            return 1.0, 0.08 / streams, 0.0  # 8 tokens cost about one and a half times what 1 costs
        base_ms = max(self._cost.predict_ms(streams, context_tokens), 1e-3)
        token_ms = self._cost.predict_ms(streams + 1, context_tokens) - base_ms
        context_ms = (self._cost.predict_ms(streams, context_tokens + 1024) - base_ms) / 1024
        return base_ms, max(token_ms, base_ms * 0.01 / streams), max(context_ms, 0.0)

    def _candidate(self, stream: Stream, cost_ms: float, least_rate: float) -> _Candidate | None:
        """The draft that promises most for a stream; none if none is worth its cost."""
        sources = self._sources.get(stream.number)
        if sources is None:
            sources = self._sources[stream.number] = [
                _Source(drafters.name, drafters.kinds, drafters.open(stream.opening))
                for drafters in self._drafters
            ]
        most = min(stream.most, MOST_DRAFTED)
        if most <= 0:
            return None
        best: _Candidate | None = None
        best_gain = 0.0
        for source in sources:
            # What was hopeless a moment ago still is: looking costs as much as asking.
            if source.skipped % _LOOK_AGAIN_STEPS or self._is_hopeless(source, least_rate):
                source.skipped += 1
                continue
            source.drafter.extend(stream.ids[source.shown :].tolist())
            source.shown = len(stream.ids)
            proposal = source.drafter.propose(most)
            if proposal is not None and stream.allowed is not None:
                proposal = Proposal(stream.allowed(proposal.tokens, most), proposal.kind)
            if proposal is None or not proposal.tokens:
                continue
            rate = self._rate(source, proposal.kind)
            gain = rate * (1 - rate ** len(proposal.tokens)) / (1 - rate)
            if gain > best_gain:
                best, best_gain = _Candidate(stream.number, source, proposal, rate, cost_ms), gain
        return best

    def _is_hopeless(self, source: _Source, least_rate: float) -> bool:
        """Whether nothing that it may propose would be worth its cost: then it need not be asked."""
        if source.skipped >= _TRY_AGAIN_STEPS:
            return False
        return all(self._rate(source, kind) <= least_rate for kind in range(source.kinds))

    def _rate(self, source: _Source, kind: int) -> float:
        of_all = self._all.get((source.name, kind), _Rate())
        general = (of_all.accepted + _FIRST_GUESS) / (of_all.tried + 1.0)
        own = source.rates.get(kind)
        if own is None:
            return min(general, 0.999)
        rate = (own.accepted + _PRIOR_WEIGHT * general) / (own.tried + _PRIOR_WEIGHT)
        return min(rate, 0.999)


def _depths(
    candidates: Sequence[_Candidate], streams: int, base_ms: float, most_tokens: int
) -> Iterable[int]:
    """How many tokens of each candidate to verify: one by one, the likeliest first, while it pays."""
    depths = [0] * len(candidates)
    chances = [candidate.rate for candidate in candidates]  # that the next token of each is accepted
    expected, cost_ms = float(streams), base_ms
    for _ in range(most_tokens):
        best = -1
        for i, chance in enumerate(chances):
            if chance > _LEAST_WORTH and (
                best < 0 or chance * candidates[best].cost_ms > chances[best] * candidates[i].cost_ms
            ):
                best = i
        if best < 0 or chances[best] * cost_ms <= _MARGIN * expected * candidates[best].cost_ms:
            break
        expected += chances[best]
        cost_ms += candidates[best].cost_ms
        depths[best] += 1
        full = depths[best] >= len(candidates[best].proposal.tokens)
        chances[best] = 0.0 if full else chances[best] * candidates[best].rate
    return depths
