"""Four kinds of work for drafters, from much that is copied to nothing: texts of our own, as many
as wanted."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_NAMES: Final = ("Ada", "Bruno", "Chiara", "Dmitri", "Esra", "Farid", "Greta", "Hugo", "Ines", "Jonas")
_THINGS: Final = ("kettles", "lanterns", "ropes", "barrels", "apples", "tickets", "bricks", "letters")
_PLACES: Final = ("harbour", "mill", "station", "market", "bakery", "library", "garden", "workshop")

# With mistakes to correct. Prose, as the smallest models that are measured do edit prose, and make up
# something of their own when told to copy records or code: what is not copied says nothing of copying.
_STORIES: Final = (
    "Last summer {name} and {other} went to the old {place} near the river. They was walking for {d} "
    "hours before they seen the first house. A man who sold {thing} has given them bread and cheese and"
    " told them about the flood of 19{m}, when the water have risen above the second window. In the "
    "evening they goes back by train, tired but happy, and they has decided to come again next year.",
    "The {place} of our town have been closed for {d} weeks because the roof were damaged by a storm. "
    "{name}, who work there since 19{m}, say that {k} boxes of {thing} was lost. {other} has offered to"
    " lend the money for a new roof, but the town council have not answered yet. Until then the {thing}"
    " is kept in a tent behind the station, where anybody can buys them in the morning.",
    "Dear {name}, thank you for the {k} {thing} that you has sent to the {place} on Monday. {d} of them"
    " was broken, and I has put them back into the box. Could you please tells {other} to collect the "
    "box before the end of the month? The invoice of {m} crowns are paid, and we would like to orders "
    "the same again for the winter, if the price have not changed.",
)
_COPY: Final = (
    "Correct the grammar mistakes in this text and return the corrected text:\n\n{story}",
    "Please rewrite the following text with correct grammar, changing as little as possible.\n\n{story}",
    "Replace the name {name} by the name Klara in the following text, and write the whole text "
    "again.\n\n{story}",
    "Repeat this text exactly:\n\n{story}",
)
_REASONING: Final = (
    "{name} has {n} {thing}. {other} gives {name} {k} more each day for {d} days. Then {name} sells "
    "{m} of them at the "
    "{place}. How many {thing} does {name} have now? Think step by step.",
    "A {place} sells {thing} for {d} crowns each. {name} buys {k} of them and {other} buys twice as "
    "many. They pay "
    "with {m} notes of ten crowns. How much do they get back? Explain each step.",
    "{name} carries {k} {thing} in one hour, and {other} carries {d} fewer. They work together at the "
    "{place} for {d} "
    "hours. How many {thing} have they carried? Show your work.",
)
_CODE: Final = (
    'Complete this Python function:\n\ndef count_{thing}(rows):\n    """Return how many {thing} there '
    "are in rows, a "
    "list of dictionaries with the keys 'name' and 'count'.\"\"\"\n",
    "Write a Python class {name}Queue with the methods push, pop, peek and size, and a short test for "
    "each method.",
    "Write a Python function that reads a CSV file of {thing} with the columns name, place and price, "
    "and prints the "
    "total price for each place, sorted by name.",
    "Write a JavaScript function that takes a list of {thing} and returns those whose price is above "
    "{k}, sorted by "
    "price, and show how it is called.",
)
_CHAT: Final = (
    "What would you tell {name}, who is about to open a small {place} and is afraid of failing?",
    "Write a short story about {name} and {other}, who find {k} old {thing} in a {place}.",
    "Why do people like to visit a {place}? Give three reasons in your own words.",
    "Describe a morning at a {place} to somebody who has never seen one.",
)
_ENDING: Final = "\n\nUse at most {n} words."  # different in each, and no work of its kind
_KINDS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType(
    {"copy": _COPY, "reasoning": _REASONING, "code": _CODE, "chat": _CHAT}
)
WORKLOADS: Final = tuple(_KINDS)


def prompts_of(workload: str, count: int) -> list[str]:
    """So many prompts of a kind, all different, the same every time."""
    return [_prompt(_KINDS[workload], number) for number in range(count)]


def _prompt(texts: tuple[str, ...], number: int) -> str:
    values = {
        "name": _NAMES[number % 10],
        "other": _NAMES[(number * 3 + 1) % 10],
        "thing": _THINGS[number % 8],
        "place": _PLACES[number * 5 % 8],
        "d": 2 + number % 7,
        "k": 11 + number * 7 % 40,
        "m": 30 + number * 13 % 60,
        "n": 100 + number * 37,
    }
    values["story"] = _STORIES[number % len(_STORIES)].format(**values)
    return (texts[number % len(texts)] + _ENDING).format(**values)
