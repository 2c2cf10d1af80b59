"""What is verified behind a stream's last known token: a chain of tokens, or a tree."""

from __future__ import annotations

from typing import NamedTuple


class Draft(NamedTuple):
    """Tokens, and of a tree for each the index of the one before it (-1: the last known token), parents
    first.
    """

    tokens: tuple[int, ...]
    parents: tuple[int, ...] | None = None  # none: each follows the one before it
