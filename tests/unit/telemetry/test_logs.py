"""Log lines: one object per line, whatever a client sends; prompts only when asked for."""

from __future__ import annotations

import asyncio
import io
import json
import logging

import pytest
from tests.unit.telemetry.fake_host import FakeHost, FakeModel, ManualClock, done, tokens

from stoker.api import Message, Request, SamplingParams
from stoker.api.chat import Chat
from stoker.api.errors import EngineError, QueueFullError, RequestError
from stoker.telemetry import ObservedHost, RequestLog, configure_logging, log_event
from stoker.telemetry.measures import ModelMeasures

SECRET = "the fox keeps his gold under the third stone"
NASTY = 'x"\n{"event":"forged"}\r\x1b[2J\u2028\u202e\x00'


@pytest.fixture
def configured():
    """Configure logging on a stream, and put the process's loggers back as they were."""
    names = (
        "",
        "stoker",
        "stoker.requests",
        "uvicorn",
        "uvicorn.error",
        "uvicorn.access",
        "asyncio",
        "httpx",
        "httpcore",
    )
    loggers = [logging.getLogger(name) for name in names]
    before = [(lo, lo.level, lo.propagate, list(lo.handlers)) for lo in loggers]
    stream = io.StringIO()

    def configure(format: str, level: str = "info") -> io.StringIO:
        configure_logging(format=format, level=level, stream=stream)  # type: ignore[arg-type]
        return stream

    yield configure
    for logger, level, propagate, handlers in before:
        logger.setLevel(level)
        logger.propagate = propagate
        logger.handlers[:] = handlers


async def _ask(script, request: Request, clock: ManualClock, **log: bool) -> None:
    host = ObservedHost(
        FakeHost(FakeModel("m", lambda r: script(r, clock))),
        lambda name: ModelMeasures(),
        observers=[RequestLog(**log)],
        keep_texts=log.get("log_prompts", False),
        clock=clock,
    )
    async with host.use("m") as model:
        async for _ in model.generate(request):
            pass


async def _answer(request: Request, clock: ManualClock):
    clock.now_s += 0.25
    yield tokens(request, SECRET.upper())
    clock.now_s += 0.5
    yield done(request, 1, cached=16)


def test_a_request_is_one_json_line_without_its_text(configured) -> None:
    stream = configured("json")
    request = Request("id-1", SECRET, tenant="blue", model="m")
    asyncio.run(_ask(_answer, request, ManualClock()))
    (text,) = stream.getvalue().splitlines()
    line = json.loads(text)
    assert line.pop("time").endswith("Z")
    assert line == {
        "level": "info",
        "event": "request finished",
        "logger": "stoker.requests",
        "request_id": "id-1",
        "model": "m",
        "tenant": "blue",
        "prompt_tokens": 40,
        "cached_tokens": 16,
        "generated_tokens": 1,
        "first_token_ms": 250.0,
        "ms": 750.0,
        "finish_reason": "stop",
        "seed": 7,
    }
    assert SECRET not in text
    assert SECRET.upper() not in text


@pytest.mark.parametrize(
    ("prompt", "logged"),
    [
        (SECRET, SECRET),
        ((1, 2), [1, 2]),
        ((Message("user", SECRET),), [{"role": "user", "content": SECRET}]),
        (Chat((Message("user", SECRET),)), [{"role": "user", "content": SECRET}]),
    ],
)
def test_prompts_and_answers_are_logged_when_asked_for(configured, prompt, logged) -> None:
    stream = configured("json")
    asyncio.run(_ask(_answer, Request("id", prompt), ManualClock(), log_prompts=True))
    line = json.loads(stream.getvalue())
    assert line["prompt"] == logged
    assert line["answers"] == [SECRET.upper()]


@pytest.mark.parametrize(("after", "event"), [(0, "request refused"), (1, "request failed")])
def test_what_went_wrong_is_said(configured, after: int, event: str) -> None:
    async def script(request: Request, clock: ManualClock):
        for _ in range(after):
            yield tokens(request, "a")
        raise (EngineError if after else QueueFullError)("no room for it")

    stream = configured("json")
    with pytest.raises((EngineError, QueueFullError)):
        asyncio.run(_ask(script, Request("id", "x", SamplingParams(n=2)), ManualClock()))
    line = json.loads(stream.getvalue())
    assert (line["level"], line["event"], line["reason"]) == ("warning", event, "no room for it")
    assert line["error"] == ("EngineError" if after else "QueueFullError")
    assert line["finish_reason"] == "error,error"


@pytest.mark.parametrize("format", ["json", "text"])
def test_what_a_client_sends_forges_no_line(configured, format: str) -> None:
    stream = configured(format)
    asyncio.run(_ask(_answer, Request(NASTY, "x", tenant=NASTY * 1000), ManualClock()))
    log_event(logging.getLogger("stoker.server"), logging.INFO, NASTY, path=NASTY)
    written = stream.getvalue()
    assert len(written.split("\n")) == 3  # two lines and their ends
    assert all(character.isprintable() or character == "\n" for character in written)
    assert len(written) < 3000


def test_other_loggers_come_in_the_same_form(configured) -> None:
    stream = configured("json")
    logging.getLogger("uvicorn.error").info("Started server process [%d]", 12)
    logging.getLogger("uvicorn.access").info("GET / 200")
    logging.getLogger("some.library").debug("details")
    try:
        raise ValueError("broken")
    except ValueError:
        logging.getLogger("asyncio").exception("Task failed")
    first, second = map(json.loads, stream.getvalue().splitlines())
    assert (first["event"], first["logger"]) == ("Started server process [12]", "uvicorn.error")
    assert "ValueError: broken" in second["exception"]


def test_levels(configured) -> None:
    stream = configured("json", "warning")
    logger = logging.getLogger("stoker.server")
    log_event(logger, logging.INFO, "quiet")
    log_event(logger, logging.WARNING, "loud", port=8000, nothing=None)
    line = json.loads(stream.getvalue())
    assert (line["event"], line["port"]) == ("loud", 8000)
    assert "nothing" not in line
    configured("json", "debug")
    logger.debug("details")
    assert "details" in stream.getvalue()


def test_fields_do_not_replace_what_the_line_is(configured) -> None:
    stream = configured("json")
    log_event(logging.getLogger("stoker"), logging.INFO, "start", level="forged", time="never", value=object)
    line = json.loads(stream.getvalue())
    assert line["level"] == "info"
    assert line["time"] != "never"
    assert "object" in line["value"]


def test_the_form_for_a_terminal(configured) -> None:
    stream = configured("text")
    asyncio.run(_ask(_answer, Request("id-1", SECRET, tenant="blue team"), ManualClock()))
    line = stream.getvalue().rstrip()
    assert line[8:] == (
        ' request finished request_id=id-1 model=m tenant="blue team" prompt_tokens=40 cached_tokens=16 '
        "generated_tokens=1 first_token_ms=250.0 ms=750.0 finish_reason=stop seed=7"
    )


@pytest.mark.parametrize(("format", "level"), [("yaml", "info"), ("json", "loud")])
def test_unknown_formats_and_levels_are_refused(format: str, level: str) -> None:
    with pytest.raises(RequestError, match="allowed"):
        configure_logging(format=format, level=level)  # type: ignore[arg-type]
