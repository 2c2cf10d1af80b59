"""What is to be verified for one sequence: guessed tokens, a chain of them or a tree."""

from __future__ import annotations

from typing import NamedTuple

from stoker.api.errors import EngineError


class Path(NamedTuple):
    """A part of a tree: guesses that follow one another, after a guess of an earlier path."""

    parent: int  # index of the guess that it follows; -1: the last known token
    guesses: tuple[int, ...]  # indices, each the parent of the next


class Draft(NamedTuple):
    """Guesses by index. A tree may guess several tokens for one position: one of them at most is right."""

    tokens: tuple[int, ...]
    parents: tuple[int, ...] | None = None  # the guess before each, a lower index; -1: none; None: a chain

    @property
    def is_chain(self) -> bool:
        """Whether each guess follows the one before it."""
        return self.parents is None or self.parents == tuple(range(-1, len(self.tokens) - 1))

    def parent(self, guess: int) -> int:
        """Index of the guess before it, -1 for the last known token."""
        return guess - 1 if self.parents is None else self.parents[guess]

    @property
    def stem(self) -> tuple[int, ...]:
        """The tokens of the first path."""
        return self.tokens if self.is_chain else tuple(self.tokens[i] for i in self.paths()[0].guesses)

    def following(self, guess: int, token: int) -> int | None:
        """The guess of this token right after another; None if it was not guessed there."""
        if self.parents is None:
            return guess + 1 if self.tokens[guess + 1 : guess + 2] == (token,) else None
        for after in range(guess + 1, len(self.tokens)):
            if self.parents[after] == guess and self.tokens[after] == token:
                return after
        return None

    def depth(self, guess: int) -> int:
        """How many guesses come before it; -1 for the last known token, whose index is -1."""
        depth = -1
        while guess >= 0:
            guess, depth = self.parent(guess), depth + 1
        return depth

    def path(self, guess: int) -> tuple[int, ...]:
        """The tokens from the first guess to this one."""
        found = []
        while guess >= 0:
            found.append(self.tokens[guess])
            guess = self.parent(guess)
        return tuple(reversed(found))

    def paths(self) -> tuple[Path, ...]:
        """The tree taken apart: each guess is in one path, and a path's parent is in an earlier one.

        At every guess a path goes on with the first of those that follow. A guess with the token of an
        earlier one after the same parent is left out, with all that follows it. Raises `EngineError` for a
        parent that does not come before its guess.
        """
        if self.parents is None:
            return (Path(-1, tuple(range(len(self.tokens)))),) if self.tokens else ()
        following: dict[int, int] = {}
        begins: list[int] = []
        seen: set[tuple[int, int]] = set()
        left_out: set[int] = set()
        for guess, (token, parent) in enumerate(zip(self.tokens, self.parents, strict=True)):
            if not -1 <= parent < guess:
                raise EngineError(f"guess {guess} has parent {parent}; allowed: -1 to {guess - 1}")
            if parent in left_out or (parent, token) in seen:
                left_out.add(guess)
                continue
            seen.add((parent, token))
            if parent == -1 or parent in following:
                begins.append(guess)
            following.setdefault(parent, guess)
        return tuple(Path(self.parents[begin], _follow(begin, following)) for begin in begins)

    def places_in(self, other: Draft) -> tuple[int | None, ...]:
        """For each guess the one that another draft has after the same tokens, if it has."""
        found: list[int | None] = []
        for guess, token in enumerate(self.tokens):
            parent = self.parent(guess)
            place = -1 if parent < 0 else found[parent]
            found.append(None if place is None else other.following(place, token))
        return tuple(found)

    def accepted(self, tokens: tuple[int, ...]) -> tuple[int, ...]:
        """Indices of the guesses that were right, if these tokens came; stops at the first that was not
        guessed."""
        found: list[int] = []
        for token in tokens:
            guess = self.following(found[-1] if found else -1, token)
            if guess is None:
                break
            found.append(guess)
        return tuple(found)


class AllowedDraft(NamedTuple):
    """What a guide leaves of a draft."""

    draft: Draft
    forced: frozenset[int]  # indices of the guesses that must come after those before them


def _follow(guess: int, following: dict[int, int]) -> tuple[int, ...]:
    found = [guess]
    while (after := following.get(found[-1])) is not None:
        found.append(after)
    return tuple(found)
