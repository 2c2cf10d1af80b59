"""Whether drafting has paid lately: all it cost against all it saved, by how many streams there are."""

from __future__ import annotations

from dataclasses import dataclass

# Whether a guess is right decides more than how long a step takes: of one stream the mean of so many steps is
# off by 6 % of a step, of four by 3 %. Many streams tell sooner, and there looking alone takes a twentieth of
# a step; but for fewer than the least steps the machine's own pace decides.
_TRIED_STEPS = 64
_TRIED_STREAM_STEPS = 128
_LEAST_TRIED_STEPS = 8
# After the first try that lost. Beside many streams a step is long and mostly has nothing to spare: 64 for
# every 4 of them.
_FIRST_REST_STEPS = 64
_MOST_REST_STEPS = 1024  # where each try lost: trying costs a sixteenth of what drafting would
# Of a plain step of one stream, by each step: what looking for drafts takes that nobody has. Resting for less
# than this would keep from noticing that there are some.
_BEARABLE_LOSS = 0.02
_MOST_LOSS = 1.0  # of a plain step, by one step: more is the machine's doing


@dataclass(slots=True)
class _Account:
    """Of about so many streams: up to one, two, four, eight ... As answers end, their number falls one by
    one, and a try for each would be a try without end."""

    saved: float = 0.0  # in this try, in plain steps
    steps: int = 0
    rest: int = 0  # steps until the next try
    lost: int = 0  # tries in a row


class Profit:
    """What goodput cannot know: that looking for drafts, and telling who was right, takes time as well, and
    that estimates of cost and chance may both be wrong. It is the sum of all this that counts.
    """

    def __init__(self) -> None:
        self._accounts: dict[int, _Account] = {}  # by the logarithm of streams, rounded up

    def pays(self, streams: int) -> bool:
        """Whether to draft in the next step of so many streams; to be asked once for each."""
        if not self.rests(streams):
            return True
        self._accounts[_about(streams)].rest -= 1
        return False

    def rests(self, streams: int) -> bool:
        """Whether there is no drafting for a while, as it lost."""
        account = self._accounts.get(_about(streams))
        return account is not None and account.rest > 0

    def try_anew(self, streams: int) -> None:
        """Something is new: what was lost before says nothing of it. Where it loses too, the next rest is as
        long as it would have been."""
        account = self._accounts.get(_about(streams))
        if account is not None:
            account.saved, account.steps, account.rest = 0.0, 0, 0

    def learn(self, streams: int, saved: float) -> None:
        """A step in which drafts were looked for saved so much, in parts of a plain step of these streams;
        negative: it lost."""
        account = self._accounts.setdefault(_about(streams), _Account())
        account.saved += max(saved, -_MOST_LOSS)
        account.steps += 1
        if account.steps < max(min(_TRIED_STEPS, _TRIED_STREAM_STEPS // streams), _LEAST_TRIED_STEPS):
            return
        if account.saved < -_BEARABLE_LOSS * account.steps / streams:
            first = _FIRST_REST_STEPS * max(streams // 4, 1)
            account.rest = min(first << account.lost, _MOST_REST_STEPS)
            account.lost = min(account.lost + 1, _MOST_REST_STEPS.bit_length())
        else:
            account.lost = 0
        account.saved, account.steps = 0.0, 0


def _about(streams: int) -> int:
    return (streams - 1).bit_length()
