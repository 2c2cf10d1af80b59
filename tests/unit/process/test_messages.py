"""Everything survives the way to the other process."""

from __future__ import annotations

import math
import os
import subprocess
import sys

import msgspec
import pytest

from stoker.api import errors
from stoker.api.constraint import Constraint, Tag, Tags, Thinking
from stoker.api.errors import EngineError, PromptTooLongError, QueueFullError, RequestError, StokerError
from stoker.api.events import DoneEvent, Event, TokenLogprob, TokensEvent, Usage
from stoker.api.request import SamplingParams
from stoker.api.stats import EngineStats, HotPrefix
from stoker.process import messages
from stoker.process.messages import (
    Abort,
    Command,
    ErrorText,
    Open,
    Report,
    Shutdown,
    Stats,
    StatsQuery,
    pack_error,
    pack_events,
    unpack_error,
    unpack_scored,
)

ERROR_CLASSES = [
    value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, StokerError)
]


def through_command(command: object) -> object:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(command), type=Command)


def through_report(report: object) -> object:
    return msgspec.msgpack.decode(msgspec.msgpack.encode(report), type=Report)


@pytest.mark.parametrize("kind", ERROR_CLASSES, ids=lambda kind: kind.__name__)
def test_errors_keep_their_class(kind: type[StokerError]) -> None:
    there = kind("what went wrong", hint="what to do")
    here = unpack_error(msgspec.msgpack.decode(msgspec.msgpack.encode(pack_error(there)), type=ErrorText))
    assert (type(here), here.message, here.hint, str(here)) == (kind, there.message, there.hint, str(there))


def test_errors_in_particular() -> None:
    full = unpack_error(pack_error(QueueFullError("full", retry_after_s=7.5)))
    assert isinstance(full, QueueFullError)
    assert full.retry_after_s == 7.5
    assert isinstance(unpack_error(pack_error(PromptTooLongError("long"))), RequestError)
    unknown = unpack_error(ErrorText("OddError", "odd"))
    assert type(unknown) is EngineError
    assert "OddError" in unknown.message
    assert type(unpack_error(ErrorText("Exception", "no class of ours"))) is EngineError


def test_a_request_keeps_every_parameter() -> None:
    sampling = SamplingParams(
        temperature=0.5, top_k=7, top_p=0.25, min_p=0.125, typical_p=0.75, repetition_penalty=1.5,
        frequency_penalty=-0.5, presence_penalty=0.25, logit_bias={3: -math.inf, 5: 2.0}, seed=(1 << 64) - 1,
        stop=("a", "\n\n"), stop_token_ids=(9,), include_stop_str_in_output=True, ignore_eos=True,
        min_tokens=2, max_tokens=100, logprobs=3, n=2, prompt_logprobs=2, skip_special_tokens=False,
        constraint=Constraint("tags", tags=Tags((Tag("<a>", "{}", "</a>"),), ("<a>",), text=True, most=3)),
        thinking=Thinking("<think>", "</think>", True, 100),
    )  # fmt: skip
    opened = Open("17", [1, 2, 3], sampling, -5, "tenant", "salt", 250, ((1, 2), None), True, "mean")
    assert through_command(opened) == opened
    for command in (Abort("17"), StatsQuery(), Shutdown()):
        assert through_command(command) == command


def test_events_keep_their_values() -> None:
    logprobs = (TokenLogprob(4, -0.1, ((4, -0.1), (5, -1e-300))), TokenLogprob(6, -math.inf))
    there: list[Event] = [
        TokensEvent("1", 0, (7,), "é"),
        TokensEvent("2", 3, (4, 6), "", logprobs),
        DoneEvent("1", 0, "stop", "STOP", (1 << 64) - 1, Usage(5, 6, 4)),
        DoneEvent("2", 3, "stop", 17, 0, Usage(5, 6, 0, 4), warnings=("a", "b")),
        DoneEvent("3", 0, "length", None, 0, Usage(5, 6)),
    ]
    report = through_report(pack_events(there))
    assert isinstance(report, messages.Events)
    assert report == pack_events(there)
    assert report.rows == [("1", 0, (7,), "é")]
    assert unpack_scored("mine", report.scored[0]) == TokensEvent("mine", 3, (4, 6), "", logprobs)


def test_stats() -> None:
    stats = Stats(EngineStats(running=3, hottest=(HotPrefix(16, 2, (1, 2), (3,)),)))
    assert through_report(stats) == stats


def test_the_worker_imports_little() -> None:
    """It starts again while readers wait."""
    code = "import sys, stoker.process.worker\nprint(*sorted(set(sys.modules) & set(sys.argv[1].split())))"
    unwanted = "fastapi starlette pydantic uvicorn httpx rich typer asyncio jinja2 tokenizers logging ssl"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    found = subprocess.run(
        [sys.executable, "-c", code, unwanted], env=environment, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == ""
