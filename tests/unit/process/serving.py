"""What the tests of workers share: requests, answers, and workers around the fake model."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Coroutine
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.fakes import ByteTokenizer, CountingSeeds

from stoker.api.events import DoneEvent, PromptEvent, TokenLogprob, TokensEvent
from stoker.api.protocols import Endpoint
from stoker.api.request import Request, SamplingParams
from stoker.engine.load import LoadOptions
from stoker.process import ProcessEndpoint, ProcessOptions

FAKE_WORKER = (sys.executable, "-P", str(Path(__file__).with_name("fake_worker.py")))
QUICK = {"heartbeat_ms": 50, "silence_s": 1.0}


@dataclass
class Answered:
    """All that a reader got, by choice."""

    token_ids: dict[int, list[int]] = field(default_factory=dict)
    text: dict[int, str] = field(default_factory=dict)
    logprobs: dict[int, list[Any]] = field(default_factory=dict)
    done: dict[int, DoneEvent] = field(default_factory=dict)
    prompt: tuple[TokenLogprob, ...] | None = None

    @property
    def tokens(self) -> int:
        """Of all choices so far."""
        return sum(map(len, self.token_ids.values()))

    def without_cache(self) -> Answered:
        """The same, but for the prompt tokens that were found in a cache, which a new worker has not."""
        done = {
            choice: (end.finish_reason, end.stop_reason, end.seed, end.usage.prompt_tokens,
                     end.usage.completion_tokens, end.usage.reasoning_tokens, end.warnings)
            for choice, end in self.done.items()
        }  # fmt: skip
        return Answered(self.token_ids, self.text, self.logprobs, done, self.prompt)  # type: ignore[arg-type]


async def read(
    endpoint: Endpoint, request: Request, into: Answered | None = None, on_token: Any = None
) -> Answered:
    """Read an answer to its end."""
    answered = into or Answered()
    async for event in endpoint.generate(request):
        assert event.request_id == request.request_id
        assert event.choice not in answered.done
        if isinstance(event, TokensEvent):
            answered.token_ids.setdefault(event.choice, []).extend(event.token_ids)
            answered.text[event.choice] = answered.text.get(event.choice, "") + event.text
            if event.logprobs is not None:
                answered.logprobs.setdefault(event.choice, []).extend(event.logprobs)
            if on_token is not None:
                on_token(answered)
        elif isinstance(event, PromptEvent):
            assert answered.prompt is None, "a prompt's log-probabilities come once"
            assert not answered.tokens
            answered.prompt = event.logprobs
        else:
            assert isinstance(event, DoneEvent)
            answered.done[event.choice] = event
    return answered


def ask(name: str, prompt: Any = "The boiler ", **sampling: Any) -> Request:
    """A request at temperature 0.8 with a seed, past every end token."""
    sampling = {"temperature": 0.8, "seed": 11, "max_tokens": 40, "ignore_eos": True, **sampling}
    return Request(name, prompt, SamplingParams(**sampling))


def write_model(folder: Path, **trouble: Any) -> Path:
    """A fake model's file: what goes wrong, if anything."""
    path = folder / "fake.json"
    path.write_text(json.dumps(trouble))
    return path


def start_fake(path: Path, **options: Any) -> Coroutine[Any, Any, ProcessEndpoint]:
    """A worker around the fake model."""
    return ProcessEndpoint.start(
        path, LoadOptions(), ProcessOptions(**{**QUICK, **options}), seeds=CountingSeeds(),
        tokenizer=ByteTokenizer(), command=FAKE_WORKER,
    )  # type: ignore[arg-type]  # fmt: skip


async def until(condition: Callable[[], bool], *, timeout_s: float = 20.0) -> None:
    """Wait for something that happens elsewhere."""
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


def run(work: Callable[[], Awaitable[None]], *, timeout_s: float = 60.0) -> None:
    """Run a test's coroutine; a hang fails it."""

    async def limited() -> None:
        async with asyncio.timeout(timeout_s):
            await work()

    asyncio.run(limited())


def is_alive(pid: int) -> bool:
    """Whether a process runs (a zombie does not)."""
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (ProcessLookupError, FileNotFoundError):
        return False
