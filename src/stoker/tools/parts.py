"""What an answer's text is made of, piece by piece: thoughts, text, calls. The same streamed and whole."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class ReasoningPart:
    """More of the model's thoughts, without the marks around them."""

    text: str


@dataclass(frozen=True, slots=True)
class TextPart:
    """More of what the model says."""

    text: str


@dataclass(frozen=True, slots=True)
class CallStart:
    """The model begins to call a tool. Calls are numbered from 0; one ends before the next begins."""

    index: int
    call_id: str
    name: str


@dataclass(frozen=True, slots=True)
class CallArguments:
    """More of the JSON text of a call's arguments."""

    index: int
    text: str


Part = ReasoningPart | TextPart | CallStart | CallArguments
