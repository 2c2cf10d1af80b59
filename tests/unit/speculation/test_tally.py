"""Drafts counted by depth."""

from __future__ import annotations

from stoker.speculation import DraftTally


def test_each_draft_is_counted_once_by_what_it_had_and_once_by_what_was_accepted() -> None:
    tally = DraftTally()
    assert (tally.drafts, tally.by_tokens, tally.by_accepted) == (0, (), ())
    for drafted, accepted in [(3, 3), (1, 0), (7, 3), (3, 0)]:
        tally.add(drafted, accepted)
    assert tally.drafts == 4
    assert tally.by_tokens == (0, 1, 0, 2, 0, 0, 0, 1)
    assert tally.by_accepted == (2, 0, 0, 2)
