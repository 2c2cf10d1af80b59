"""How much to draft, for whom, from whom: what brings most accepted tokens per millisecond.

Goodput after Liu et al., "Optimizing speculative decoding for serving using goodput", 2024: of all drafted
tokens the likeliest come first, and as many are verified as make expected tokens per expected time largest.
Acceptance is estimated from what was accepted so far, of a sequence and of all.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from stoker.speculation.draft import AllowedDraft, Draft
from stoker.speculation.drafter import (
    CatchesUp,
    Drafter,
    Drafters,
    Follower,
    Followers,
    Observer,
    Opening,
    Proposal,
)
from stoker.speculation.joined import joined
from stoker.speculation.profit import Profit

Int32 = npt.NDArray[np.int32]

MOST_DRAFTED = 15  # with the token before it a tile of 16 of the kernels
_FORGET = 0.9  # of a sequence's own experience, per draft: answers change from copying to inventing
_FORGET_ALL = 0.995
_PRIOR_WEIGHT = 2.0  # in tries, of all sequences' experience against the sequence's own
_PRIOR_ASKS = 4.0  # of a drafter that runs a model: weight of what all streams know against the stream's own
# As much weighs what a drafter that runs a model is taken to bring against what it brought to all streams.
# After 13 asks by chance without luck it was not asked again, with a weight of 4 (1 answer text of 10).
_PRIOR_GAINS = 32.0
_FORGET_ASKS = 0.95
_MOST_SLOWER = 3.0  # than asking it usually is: more is the machine's doing
_GUESS_WEIGHT = 4.0  # in tries, of a drafter's first guess against all experience
_TRY_AGAIN_STEPS = 128  # now and then a draft of a source that is not worth it is tried, to see whether it is
# A drafted token must promise so many times its cost where others would wait for a wrong one: estimates of
# both are rough. For a stream alone 1.0 brought 1 % more than 1.2, on four kinds of work.
_MARGIN = 1.2
# Where only tokens that are nearly certain pay, they bring less than looking for them costs: at 16 streams
# and more of SmolLM2 on two cores, drafting and asking made answers 2 to 15 % slower.
_MOST_NEEDED = 0.55
# Where at least one stream in so many has a prediction, which is said to be right, a rest that others'
# answers brought about ends: a few hundred tokens could be over before it does. And nearly certain tokens are
# there: in one run of some ten nothing was looked for as 56 to 58 % seemed to be needed, after one slow step.
_PREDICTED_SHARE = 4
_MOST_NEEDED_PREDICTED = 0.8
_TOO_DEAR_STEPS = 8  # until that is computed again: it takes 30 us, and changes slowly
# One that runs a model is asked again sooner, if that takes no more than this share of the time: with 128
# steps between asks a head that had no luck for a while was as good as lost: a quarter of the speed.
_TRY_SHARE = 0.01
_LEAST_AGAIN_STEPS = 16
_LONGER_BESIDE_BETTER = 8  # where another one's drafts pay meanwhile: a try is a step without these
_LOOK_AGAIN_STEPS = 8  # divides _TRY_AGAIN_STEPS
_MOST_CHANCE = 0.995
FORCED = -1  # kind of a token that a guide wrote: no drafter's, and certain
# What a drafter's model may take to read what its stream knew before it: a share of what the stream's answer
# took so far. A short answer to a long prompt is over before that would pay.
_CATCH_UP_SHARE = 0.1
_CATCH_UP_TOKENS = 128  # at once, so that no stream waits long
_NEW_COST = 0.1  # weight of the latest part in what reading a token takes


class Cost(Protocol):
    """What a step takes; `stoker.engine.decode_cost.DecodeCost` is one."""

    def predict_ms(self, tokens: int, *, streams: int) -> float:
        """A step of so many tokens; those beyond one a stream are drafted."""
        ...


class Stream(NamedTuple):
    """A sequence that decodes."""

    number: int
    opening: Opening
    ids: Int32  # [known]
    most: int  # drafted tokens it has room for
    # Where not every token may come: what may of a draft, at most so many tokens.
    allowed: Callable[[Draft, int], AllowedDraft] | None = None


@dataclass(slots=True)
class _Rate:
    """Accepted of tried, the latest counting most."""

    accepted: float = 0.0
    tried: float = 0.0

    def add(self, *, accepted: bool, forget: float) -> None:
        self.accepted = self.accepted * forget + accepted
        self.tried = self.tried * forget + 1.0


@dataclass(slots=True)
class _Asks:
    """Of a drafter that runs a model: what asking it cost and brought, the latest counting most."""

    asked: float = 0.0
    spent_ms: float = 0.0
    verified: float = 0.0
    accepted: float = 0.0

    def add(self, spent_ms: float, forget: float) -> None:
        self.asked = self.asked * forget + 1.0
        self.spent_ms = self.spent_ms * forget + spent_ms
        self.verified *= forget
        self.accepted *= forget


class _Rates:
    """Of one drafter over all streams: acceptance by kind, and what asking it brings."""

    def __init__(self, drafters: Drafters, followed: Sequence[float]) -> None:
        """`followed`: first guesses, by kinds after its own, of what follows the tokens of one that runs a
        model."""
        self._guesses = (*drafters.chances, *(followed if drafters.passes else ()))
        self.first_followed = len(drafters.chances)
        self.kinds = tuple(_Rate() for _ in self._guesses)
        self.asks = _Asks()
        self.catch_up_ms = 0.0  # a token

    def chance(self, kind: int) -> float:
        rate = self.kinds[kind]
        return (rate.accepted + _GUESS_WEIGHT * self._guesses[kind]) / (rate.tried + _GUESS_WEIGHT)


@dataclass(slots=True)
class _Source:
    """One drafter of a stream, and how it fared."""

    name: str
    passes: int
    drafter: Drafter
    observer: Observer | None  # the drafter, if it is one
    catches_up: CatchesUp | None  # the drafter, if it does
    of_all: _Rates
    followed: _Followed | None = None  # of one with passes
    shown: int = 0  # tokens that the drafter has seen
    rates: dict[int, _Rate] = field(default_factory=dict)  # by kind
    asks: _Asks = field(default_factory=_Asks)  # of one with passes
    skipped: int = 0  # steps since it was last tried in which it was not asked
    declined: int = 0  # and in which its proposal was not worth its cost
    caught_up_ms: float = 0.0  # what reading what was known took

    def chance(self, kind: int) -> float:
        """That a token of this kind is accepted, if those before it are."""
        if kind == FORCED:
            return _MOST_CHANCE
        return _joined(self.rates.get(kind), self.of_all.chance(kind))

    def is_due(self, longer: int = 1) -> bool:
        """Whether it has not been tried for that long, or so many times longer."""
        # One that runs a model was asked all the same, which takes more than trying.
        patience = _LEAST_AGAIN_STEPS if self.passes else _TRY_AGAIN_STEPS
        return self.skipped + self.declined + 1 >= longer * patience

    def learn(self, kind: int, *, accepted: bool) -> None:
        if kind == FORCED:
            return
        self.rates.setdefault(kind, _Rate()).add(accepted=accepted, forget=_FORGET)
        self.of_all.kinds[kind].add(accepted=accepted, forget=_FORGET_ALL)

    def learn_cost(self, spent_ms: float) -> None:
        self.asks.add(spent_ms, _FORGET_ASKS)
        self.of_all.asks.add(spent_ms, _FORGET_ALL)

    def learn_gain(self, verified: int, accepted: int) -> None:
        for asks in (self.asks, self.of_all.asks):
            asks.verified += verified
            asks.accepted += accepted

    def promise(self, worth: _Worth, guessed_ms: float) -> float:
        """What a step is worth for which it is asked, as far as it is known."""
        verified = self._mean("verified", 1.5, _PRIOR_GAINS)
        accepted = self._mean("accepted", 0.6, _PRIOR_GAINS)
        return worth.of_mean(verified, accepted, self.spent_ms(guessed_ms))

    def spent_ms(self, guessed_ms: float) -> float:
        """What asking it takes, as far as it is known."""
        return self._mean("spent_ms", guessed_ms, _PRIOR_ASKS)

    def _mean(self, name: str, guess: float, prior: float) -> float:
        """Of the stream's asks, of which few are completed by those of all, and these by a guess."""
        own, general = self.asks, self.of_all.asks
        usual = (getattr(general, name) + prior * guess) / (general.asked + prior)
        mean: float = (getattr(own, name) + _PRIOR_ASKS * usual) / (own.asked + _PRIOR_ASKS)
        return mean


class _Followed(NamedTuple):
    """Who knows what follows a model's guesses."""

    source: _Source
    follower: Follower  # its drafter


def _joined(own: _Rate | None, general: float) -> float:
    if own is None:
        return min(general, _MOST_CHANCE)
    return min((own.accepted + _PRIOR_WEIGHT * general) / (own.tried + _PRIOR_WEIGHT), _MOST_CHANCE)


class _Candidate(NamedTuple):
    """What was proposed for a stream: the chance that each token is reached and accepted, and what a step
    with the best part of it is worth."""

    number: int
    source: _Source
    proposal: Proposal
    chances: tuple[float, ...]
    worth: float


@dataclass(slots=True)
class _Asked:
    """What was drafted for a stream in the step that runs."""

    source: _Source
    tokens: tuple[int, ...]
    kinds: tuple[int, ...]
    parents: tuple[int, ...] | None


class _Worth:
    """Expected tokens per millisecond of a step, by drafted tokens."""

    def __init__(self, cost: Cost, streams: int) -> None:
        self.streams = streams
        self._margin = _MARGIN if streams > 1 else 1.0
        self._cost = cost
        self._least_chance: float | None = None
        self._costs_ms = [
            max(cost.predict_ms(streams, streams=streams), 1e-3)
        ]  # by drafted tokens, as far as was asked
        self.step_ms = self._costs_ms[0]  # without drafts
        self.plain = streams / self.step_ms
        # Two passes of a draft head, each of which reads a twentieth of what a step does.
        self.guessed_drafting_ms = 0.1 * self.step_ms

    def _cost_ms(self, drafted: int) -> float:
        """Of a step with so many drafted tokens."""
        costs_ms = self._costs_ms
        while len(costs_ms) <= drafted:
            # More tokens do not take less: where they seem to, that is noise.
            predicted_ms = self._cost.predict_ms(self.streams + len(costs_ms), streams=self.streams)
            costs_ms.append(max(predicted_ms, costs_ms[-1]))
        return costs_ms[drafted]

    def of(self, drafted: int, gain: float) -> float:
        """Of so many drafted tokens of which so many are expected to be accepted."""
        return (self.streams + gain / self._margin) / self._cost_ms(drafted)

    def best(self, chances: Sequence[float]) -> tuple[int, float]:
        """How many of the tokens with these chances, likeliest first, to verify; and what that is worth."""
        most, best, gain = 0, self.plain, 0.0
        for count, chance in enumerate(chances, 1):
            gain += chance
            worth = self.of(count, gain)
            if worth > best:
                most, best = count, worth
        return most, best

    def of_mean(self, drafted: float, gain: float, drafting_ms: float) -> float:
        """The same of a mean number of drafted tokens."""
        low = int(drafted)
        low_ms = self._cost_ms(low)
        cost_ms = low_ms + (drafted - low) * (self._cost_ms(low + 1) - low_ms)
        return (self.streams + gain / self._margin) / (cost_ms + drafting_ms)

    def least_chance(self) -> float:
        """A drafted token with a smaller chance is worth its cost at no draft length of one stream."""
        if self._least_chance is None:
            per_token = min((self._cost_ms(n) - self.step_ms) / n for n in range(1, MOST_DRAFTED + 1))
            self._least_chance = self._margin * per_token * self.plain
        return self._least_chance


class Speculator:
    """Owns the drafters of all streams, and what is known of their success. One thread uses it."""

    def __init__(
        self, drafters: Sequence[Drafters], cost: Cost, *, clock_ms: Callable[[], float] | None = None
    ) -> None:
        """`clock_ms` times drafting; without it that is taken to cost nothing."""
        self._drafters = drafters
        self._cost = cost
        self._clock_ms = clock_ms
        followed = next((one.followed_chances for one in drafters if isinstance(one, Followers)), ())
        self._all = {one.name: _Rates(one, followed) for one in drafters}
        self._sources: dict[int, list[_Source]] = {}  # by stream
        self._asked: dict[int, _Asked] = {}  # by stream, while the step runs
        self._worth: _Worth | None = None  # of the step that comes, if it was asked for
        self._profit = Profit()
        self._too_dear: dict[int, int] = {}  # by streams: for so many steps that is taken for granted
        self.drafting_ms = 0.0  # that looking for drafts took before the step that runs
        self.drafted_tokens = 0
        self.accepted_tokens = 0

    def may_pay(self, streams: int, predicted: Sequence[int] = ()) -> bool:
        """Whether any draft could be worth its cost beside so many streams, these of which came with a
        prediction. To be asked once before each step. Quick: mostly none is."""
        most_needed = _MOST_NEEDED
        if len(predicted) * _PREDICTED_SHARE >= streams:
            most_needed = _MOST_NEEDED_PREDICTED
            if any(number not in self._sources for number in predicted):
                self._profit.try_anew(streams)
        if not self._profit.pays(streams):
            return False
        steps = self._too_dear.get(streams, 0)
        if steps:
            self._too_dear[streams] = steps - 1
            return False
        self._worth = _Worth(self._cost, streams)
        if self._worth.least_chance() < most_needed:
            return True
        self._too_dear[streams] = _TOO_DEAR_STEPS
        return False

    def would_look(self, streams: int) -> bool:
        """Whether drafts would be looked for, were the next step one of so many streams alone."""
        return not self._profit.rests(streams) and _Worth(self._cost, streams).least_chance() < _MOST_NEEDED

    def learn_profit(self, streams: int, saved: float) -> None:
        """What a step saved for which `draft` was called, in parts of a plain step of so many streams."""
        self._profit.learn(streams, saved)

    def draft(self, streams: Sequence[Stream], *, most_tokens: int) -> dict[int, tuple[int, ...] | Draft]:
        """What to verify beside each stream's next token, at most so many tokens in all; by number."""
        started_ms = self._now_ms()
        found = self._draft(streams, most_tokens)
        self.drafting_ms = self._now_ms() - started_ms
        return found

    def _draft(self, streams: Sequence[Stream], most_tokens: int) -> dict[int, tuple[int, ...] | Draft]:
        self._asked.clear()
        most = min(most_tokens, MOST_DRAFTED * len(streams))
        if most <= 0:
            return {}
        worth, self._worth = self._worth, None
        if worth is None or worth.streams != len(streams):
            worth = _Worth(self._cost, len(streams))
        candidates = [found for stream in streams if (found := self._candidate(stream, worth)) is not None]
        chosen: dict[int, tuple[int, ...] | Draft] = {}
        for candidate, places in zip(candidates, _chosen(candidates, worth, most), strict=True):
            source = candidate.source
            if not places:
                if not source.is_due():
                    source.declined += 1
                    continue
                # One token tells whether it is right; who observes needs its whole window.
                places = list(range(1 if source.observer is None else len(candidate.chances)))
            source.skipped = source.declined = 0
            chosen[candidate.number] = self._ask(candidate, places)
        return chosen

    def judge(
        self, number: int, drafted: int, accepted: Sequence[int], sampled: Sequence[int] | Int32 = ()
    ) -> None:
        """Of the draft of a stream the first so many tokens were verified; those at these places, in order,
        the model said as well. `sampled`: what it said at all verified places of a chain, and after it."""
        self.drafted_tokens += drafted
        self.accepted_tokens += len(accepted)
        asked = self._asked.pop(number, None)
        if asked is None:
            return
        reached, said = {-1, *accepted}, set(accepted)
        for i in range(min(drafted, len(asked.kinds))):
            parent = i - 1 if asked.parents is None else asked.parents[i]
            if parent in reached:
                asked.source.learn(asked.kinds[i], accepted=i in said)
        if asked.source.observer is not None and asked.parents is None and len(sampled):
            said_there = [int(token_id) for token_id in sampled]
            asked.source.observer.observe(asked.tokens[:drafted], said_there)
        if asked.source.passes:
            asked.source.learn_gain(drafted, len(accepted))

    def forget(self, number: int) -> None:
        """A stream has ended."""
        self._asked.pop(number, None)
        for source in self._sources.pop(number, ()):
            source.drafter.close()

    def _ask(self, candidate: _Candidate, places: list[int]) -> tuple[int, ...] | Draft:
        """These tokens of a proposal, in order; a subtree is closed under parents, as those are likelier."""
        proposal = candidate.proposal
        parents = None
        if proposal.parents is None:
            tokens, kinds = tuple(proposal.tokens[: len(places)]), tuple(proposal.kinds[: len(places)])
        else:
            tokens = tuple(proposal.tokens[i] for i in places)
            kinds = tuple(proposal.kinds[i] for i in places)
            new = {-1: -1} | {old: place for place, old in enumerate(places)}
            parents = tuple(new[proposal.parents[i]] for i in places)
            if all(parent == i - 1 for i, parent in enumerate(parents)):
                parents = None
        self._asked[candidate.number] = _Asked(candidate.source, tokens, kinds, parents)
        return tokens if parents is None else Draft(tokens, parents)

    def _candidate(self, stream: Stream, worth: _Worth) -> _Candidate | None:
        """The draft that promises most for a stream; none if none is worth its cost."""
        most = min(stream.most, MOST_DRAFTED)
        if most <= 0:
            return None
        least = worth.least_chance()
        proposed: list[_Candidate] = []
        most_worth = worth.plain
        costly = []
        for source in self._sources_of(stream):
            if source.passes:
                costly.append(source)
                continue
            # What was hopeless a moment ago still is: looking costs as much as asking.
            if source.skipped % _LOOK_AGAIN_STEPS or self._is_hopeless(source, least):
                source.skipped += 1
                continue
            candidate = self._proposal(stream, source, most, worth)
            if candidate is not None:
                proposed.append(candidate)
                most_worth = max(most_worth, candidate.worth)
        if len(costly) > 1:
            costly.sort(key=lambda source: -source.promise(worth, self._guessed_ms(worth)))
        for source in costly:
            candidate = self._costly(stream, source, most, worth, most_worth)
            if candidate is not None:
                # What asking took is spent: now the better draft counts.
                proposed.append(candidate)
                break
        return _best(proposed, worth) if proposed else None

    def _costly(
        self, stream: Stream, source: _Source, most: int, worth: _Worth, other_worth: float
    ) -> _Candidate | None:
        """The draft of a drafter that runs a model, asked for only if it promises more than the others'."""
        guessed_ms = self._guessed_ms(worth)
        if source.promise(worth, guessed_ms) <= other_worth:
            source.skipped += 1
            again_steps = worth.streams * source.spent_ms(guessed_ms) / (_TRY_SHARE * worth.step_ms)
            again_steps = min(max(again_steps, _LEAST_AGAIN_STEPS), _TRY_AGAIN_STEPS)
            if source.skipped < again_steps or other_worth > worth.plain:
                return None
            source.declined = _LEAST_AGAIN_STEPS  # asked to be tried
        if source.catches_up is not None and not self._caught_up(stream, source, source.catches_up, worth):
            return None
        source.skipped = 0
        if self._clock_ms is None:
            source.learn_cost(0.0)
            return self._proposal(stream, source, most, worth)
        # One that was not asked for long has a prompt to catch up with, once: not what it usually takes.
        is_usual = source.shown > 0 and len(stream.ids) - source.shown <= MOST_DRAFTED + 1
        started_ms = self._clock_ms()
        candidate = self._proposal(stream, source, most, worth)
        spent_ms = self._clock_ms() - started_ms
        most_ms = _MOST_SLOWER * source.spent_ms(guessed_ms)
        source.learn_cost(min(spent_ms, most_ms) if is_usual else guessed_ms)
        return candidate

    def _guessed_ms(self, worth: _Worth) -> float:
        """What a drafter that runs a model takes, until it is known."""
        return 0.0 if self._clock_ms is None else worth.guessed_drafting_ms

    def _caught_up(self, stream: Stream, source: _Source, drafter: CatchesUp, worth: _Worth) -> bool:
        """Whether the drafter has read what is known, but for a step's tokens. If not it reads on, as far as
        the stream's answer has earned it."""
        self._show(stream, source)
        behind = drafter.behind
        if behind <= MOST_DRAFTED:
            return True
        rates, said = source.of_all, len(stream.ids) - stream.opening.prompt_tokens
        earned_ms = _CATCH_UP_SHARE * said * worth.step_ms / worth.streams
        if source.caught_up_ms + rates.catch_up_ms * behind > earned_ms:
            return False
        started_ms = self._now_ms()
        done = drafter.catch_up(_CATCH_UP_TOKENS)
        spent_ms = self._now_ms() - started_ms
        source.caught_up_ms += spent_ms
        if done:
            known_ms = rates.catch_up_ms
            rates.catch_up_ms += (_NEW_COST if known_ms else 1.0) * (spent_ms / done - known_ms)
        return behind - done <= MOST_DRAFTED

    def _now_ms(self) -> float:
        return 0.0 if self._clock_ms is None else self._clock_ms()

    def _show(self, stream: Stream, source: _Source) -> None:
        if source.shown == len(stream.ids):
            return
        source.drafter.extend(stream.ids[source.shown :].tolist())
        source.shown = len(stream.ids)

    def _proposal(self, stream: Stream, source: _Source, most: int, worth: _Worth) -> _Candidate | None:
        self._show(stream, source)
        proposal = source.drafter.propose(most)
        if proposal is not None and proposal.tokens and source.followed is not None:
            other, follower = source.followed
            self._show(stream, other)
            proposal = joined(proposal, follower, most, source.of_all.first_followed)
        if proposal is not None and stream.allowed is not None:
            proposal = _allowed(proposal, stream.allowed, most)
        if proposal is None or not proposal.tokens:
            return None
        chances: list[float] = []
        of_kinds = {kind: source.chance(kind) for kind in set(proposal.kinds)}
        for i, kind in enumerate(proposal.kinds):
            parent = i - 1 if proposal.parents is None else proposal.parents[i]
            chances.append(of_kinds[kind] * (1.0 if parent < 0 else chances[parent]))
        return _Candidate(stream.number, source, proposal, tuple(chances), worth.best(chances)[1])

    def _sources_of(self, stream: Stream) -> list[_Source]:
        sources = self._sources.get(stream.number)
        if sources is None:
            sources = self._sources[stream.number] = []
            for one in self._drafters:
                drafter = one.open(stream.opening)
                if drafter is None:
                    continue
                observer = drafter if isinstance(drafter, Observer) else None
                catches_up = drafter if isinstance(drafter, CatchesUp) else None
                source = _Source(one.name, one.passes, drafter, observer, catches_up, self._all[one.name])
                sources.append(source)
            followed = next(
                (_Followed(one, one.drafter) for one in sources if isinstance(one.drafter, Follower)), None
            )
            for source in sources:
                source.followed = followed if source.passes else None
        return sources

    def _is_hopeless(self, source: _Source, least_chance: float) -> bool:
        """Whether nothing that it may propose would be worth its cost: then it need not be asked."""
        if source.skipped >= _TRY_AGAIN_STEPS:
            return False
        return all(source.chance(kind) <= least_chance for kind in range(len(source.of_all.kinds)))


def _best(proposed: Sequence[_Candidate], worth: _Worth) -> _Candidate:
    """The candidate that is worth most; where none is worth its cost, or for much longer than that, one that
    has not been tried for long. The others were declined."""
    if len(proposed) == 1:
        return proposed[0]
    best = max(proposed, key=lambda one: one.worth)
    longer = 1 if best.worth <= worth.plain else _LONGER_BESIDE_BETTER
    best = next((one for one in proposed if one.source.is_due(longer)), best)
    for one in proposed:
        one.source.declined += one is not best
    return best


def _allowed(proposal: Proposal, allowed: Callable[[Draft, int], AllowedDraft], most: int) -> Proposal:
    """What a guide lets through of a proposal, and writes into it."""
    parents = None if proposal.parents is None else tuple(proposal.parents)
    before = Draft(tuple(proposal.tokens), parents)
    draft, forced = allowed(before, most)
    places = draft.places_in(before)
    kinds = [
        FORCED if i in forced or place is None else proposal.kinds[place] for i, place in enumerate(places)
    ]
    return Proposal(draft.tokens, kinds, draft.parents)


def _chosen(candidates: Sequence[_Candidate], worth: _Worth, most: int) -> Iterator[list[int]]:
    """The places of each candidate's tokens to verify: the likeliest of all, as many as are worth most, at
    most so many."""
    if len(candidates) == 1 and candidates[0].proposal.parents is None:
        return iter((list(range(worth.best(candidates[0].chances[:most])[0])),))  # it is ranked as it stands
    ranked = sorted(
        (-chance, which, place)
        for which, candidate in enumerate(candidates)
        for place, chance in enumerate(candidate.chances)
    )
    count, _ = worth.best([-chance for chance, _, _ in ranked[:most]])
    places: list[list[int]] = [[] for _ in candidates]
    for _, which, place in ranked[:count]:
        places[which].append(place)
    return map(sorted, places)
