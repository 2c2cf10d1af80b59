"""Events as parts, in bunches: for every dialect the same."""

from __future__ import annotations

import asyncio
import dataclasses
import itertools
from collections.abc import AsyncIterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stoker.api.chat import Tool
from stoker.api.errors import EngineError, RequestError
from stoker.api.events import DoneEvent, Event, TokenLogprob, TokensEvent, Usage
from stoker.server.errors import Refusal
from stoker.server.parts import AnswerPart, Gathered, LogprobsPart, parts_of
from stoker.tools import AnswerParser, chat_format

FORMAT = chat_format("{{ tools }}<tool_call>")
TOOLS = (Tool("clock"),)
CALL = '<tool_call>\n{"name": "clock", "arguments": {"tz": "Köln"}}\n</tool_call>'


def _parser(seed: str) -> AnswerParser:
    return FORMAT.parser(thinking=None, tools=TOOLS, call_seed=seed)


def _done(choice: int, reason: str = "stop") -> DoneEvent:
    return DoneEvent("r", choice, reason, None, 1, Usage(1, 1))  # type: ignore[arg-type]


async def _events(items: list[Event], waits: list[bool]) -> AsyncIterator[Event]:
    for item, wait in zip(items, waits, strict=True):
        if wait:
            await asyncio.sleep(0)
        yield item


async def _gathered(items: list[Event], waits: list[bool], choices: int) -> list[Gathered]:
    found = [Gathered() for _ in range(choices)]
    async for bunch in parts_of(_events(items, waits), _parser, call_seed="r", choices=choices):
        assert bunch
        for choice, part in bunch:
            assert found[choice].done is None
            found[choice].add(part)
    return found


@given(st.data())
@settings(max_examples=60, deadline=None)
def test_parts_put_together_are_the_answer(data: st.DataObject) -> None:
    choices = data.draw(st.integers(1, 3))
    queues: list[list[Event]] = []
    for choice in range(choices):
        text = f"Well {choice}.\n{CALL}\n{CALL}"
        places = sorted({0, len(text), *data.draw(st.lists(st.integers(0, len(text)), max_size=9))})
        pieces = [text[a:b] for a, b in itertools.pairwise(places)]
        events: list[Event] = [TokensEvent("r", choice, (1,), piece) for piece in pieces]
        queues.append([*events, _done(choice)])
    items: list[Event] = []
    while any(queues):
        index = data.draw(st.sampled_from([i for i, queue in enumerate(queues) if queue]))
        items.append(queues[index].pop(0))
    waits = data.draw(st.lists(st.booleans(), min_size=len(items), max_size=len(items)))
    found = asyncio.run(_gathered(items, waits, choices))
    for choice, gathered in enumerate(found):
        assert gathered.done is not None
        assert gathered.text == f"Well {choice}."
        assert [(c.name, c.arguments) for c in gathered.calls] == [("clock", '{"tz": "Köln"}')] * 2
    assert len({call.id for gathered in found for call in gathered.calls}) == 2 * choices


def _all(items: list[Event]) -> list[tuple[int, AnswerPart]]:
    async def read() -> list[tuple[int, AnswerPart]]:
        events = _events(items, [False] * len(items))
        return [item async for bunch in parts_of(events, _parser, call_seed="r") for item in bunch]

    return asyncio.run(read())


def test_log_probabilities_follow_the_parts_of_their_tokens() -> None:
    entry = TokenLogprob(1, -0.5)
    parts = _all(
        [TokensEvent("r", 0, (1,), "a", (entry,)), TokensEvent("r", 0, (1,), "", (entry,)), _done(0)]
    )
    assert [type(part).__name__ for _, part in parts] == [
        "TextPart", "LogprobsPart", "LogprobsPart", "DoneEvent",
    ]  # fmt: skip
    assert parts[1][1] == LogprobsPart((entry,))


def test_what_fails_is_raised() -> None:
    with pytest.raises(EngineError):
        _all([TokensEvent("r", 0, (1,), "a"), _done(0, "error")])
    with pytest.raises(Refusal):
        _all([_done(0, "abort")])
    too_large = dataclasses.replace(_done(0, "error"), stop_reason="the constraint cannot be followed")
    with pytest.raises(RequestError):
        _all([TokensEvent("r", 0, (1,), "a"), too_large])
    with pytest.raises(EngineError, match="ended before"):
        _all([TokensEvent("r", 0, (1,), "a")])


def test_leaving_aborts_what_is_open() -> None:
    closed: list[bool] = []

    async def events() -> AsyncIterator[Event]:
        try:
            while True:
                yield TokensEvent("r", 0, (1,), "a")
                await asyncio.sleep(0)
        finally:
            closed.append(True)

    async def leave() -> None:
        parts = parts_of(events(), _parser, call_seed="r")
        await anext(parts)
        await parts.aclose()

    asyncio.run(leave())
    assert closed == [True]
