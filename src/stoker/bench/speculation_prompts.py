"""Four kinds of work for drafters, from much that is copied to nothing: texts of our own, as many "
"as wanted."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

_NAMES: Final = ("Ada", "Bruno", "Chiara", "Dmitri", "Esra", "Farid", "Greta", "Hugo", "Ines", "Jonas")
_THINGS: Final = ("kettles", "lanterns", "ropes", "barrels", "apples", "tickets", "bricks", "letters")
_PLACES: Final = ("harbour", "mill", "station", "market", "bakery", "library", "garden", "workshop")

_RECORDS: Final = (
    "Order {n}: {name} bought {k} {thing} at the {place} on 1{d} March and paid {m} crowns in cash. "
    "The goods "
    "were handed over the same day by the clerk on duty.",
    "Order {q}: {other} returned {d} {thing} to the {place} on 2{d} March because the boxes were "
    "damaged, and "
    "was given {k} crowns back after the clerk had looked at them.",
    "Order {r}: the {place} sent {m} {thing} to {name} by the evening train. The invoice is open, and the "
    "clerk has written that it must be paid before the end of April.",
)
_COPY: Final = (
    "Here are some records.\n\n{records}\n\nWrite all records again, word for word, with the word "
    "crowns replaced by "
    "the word coins.",
    "{records}\n\nRepeat the text above exactly, and then say in one sentence who bought something.",
    "Correct the spelling of the following text and give back the whole text:\n\n{records}",
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
        "q": 101 + number * 37,
        "r": 102 + number * 37,
    }
    values["records"] = "\n".join(record.format(**values) for record in _RECORDS)
    return (texts[number % len(texts)] + _ENDING).format(**values)
