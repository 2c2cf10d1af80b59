"""Through HTTP: an answer is the same alone and among 64, cold and warm, after eviction and preemption, from
disk after a restart, and over a kill of the engine's process in the middle of its stream."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Semaphore
from typing import Any

import httpx
import pytest

from stoker.weights.sources import KNOWN_MODELS

SYSTEM = "You are the stoker of a steam engine, and you answer in few words. " * 8  # some eight blocks
ASKS = [f"{SYSTEM}Question {i}: what is {word}?" for i, word in enumerate(["coal", "water", "fire", "soot"])]
ASKS += [f"{word} upon a time, a stoker" for word in ["Once", "Twice", "Thrice", "Never"]]

pytestmark = [pytest.mark.model, pytest.mark.slow]


class Server:
    """`stoker serve` on a free port."""

    def __init__(self, url: str, process: subprocess.Popen[str]) -> None:
        self.url = url
        self.process = process

    def ask(self, number: int, *, max_tokens: int = 24) -> tuple[list[int], str, int]:
        """Token ids, text and cached tokens of one answer at temperature 0.8."""
        reply = httpx.post(f"{self.url}/v1/completions", json=body(number, max_tokens), timeout=240)
        assert reply.status_code == 200, reply.text
        found = reply.json()
        choice, details = found["choices"][0], found["usage"]["prompt_tokens_details"]
        return choice["token_ids"], choice["text"], details["cached_tokens"]

    def stream(self, number: int, *, max_tokens: int, came: Callable[[], None]) -> tuple[list[int], str]:
        """The same, as it comes; `came` is called at each piece."""
        token_ids: list[int] = []
        text, ends, asked = "", 0, {**body(number, max_tokens), "stream": True}
        with httpx.stream("POST", f"{self.url}/v1/completions", json=asked, timeout=240) as reply:
            for line in reply.iter_lines():
                if line.startswith("data: {"):
                    came()
                    choice = json.loads(line[6:])["choices"][0]
                    token_ids += choice.get("token_ids") or []
                    text += choice["text"]
                    ends += choice["finish_reason"] is not None
        assert ends == 1
        return token_ids, text

    def stats(self) -> dict[str, Any]:
        """The engine's counters."""
        found: dict[str, Any] = httpx.get(f"{self.url}/stats").json()["models"][0]["stats"]
        return found


def body(number: int, max_tokens: int) -> dict[str, Any]:
    return {
        "model": KNOWN_MODELS["smollm2"].file_name.removesuffix(".gguf"), "prompt": ASKS[number],
        "max_tokens": max_tokens, "temperature": 0.8, "seed": number, "ignore_eos": True,
        "return_token_ids": True,
    }  # fmt: skip


@contextmanager
def serving(home: Path, model: Path, *options: str) -> Iterator[Server]:
    command = [sys.executable, "-m", "stoker", "serve", str(model), "--port", "0", *options]
    environ = {**os.environ, "STOKER_HOME": str(home)}
    process = subprocess.Popen(
        command, env=environ, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        assert process.stdout is not None
        lines = []
        for line in process.stdout:
            lines.append(line)
            if " serves " in line:
                break
        else:
            pytest.fail("".join(lines))
        yield Server(line.split()[0], process)
    finally:
        process.send_signal(signal.SIGTERM)
        process.communicate(timeout=60)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def expected(home: Path, smollm2_path: Path) -> list[tuple[list[int], str]]:
    """Each ask alone, one after another; the first of those that share a prefix with a cold cache."""
    with serving(home, smollm2_path, "--no-disk-cache") as server:
        answers = [server.ask(i) for i in range(len(ASKS))]
        assert answers[0][2] == 0
        assert all(cached > 100 for _, _, cached in answers[1:4])
        again = [server.ask(i) for i in range(len(ASKS))]
        assert [a[:2] for a in again] == [a[:2] for a in answers]
    return [answer[:2] for answer in answers]


def test_among_64_others_and_under_eviction(
    expected: list[tuple[list[int], str]], home: Path, smollm2_path: Path
) -> None:
    with serving(home, smollm2_path, "--no-disk-cache") as server, ThreadPoolExecutor(64) as pool:
        answers = list(pool.map(server.ask, [i % len(ASKS) for i in range(64)]))
        assert [a[:2] for a in answers] == [expected[i % len(ASKS)] for i in range(64)]
    with (
        serving(home, smollm2_path, "--no-disk-cache", "--kv-bytes", "4MB") as server,
        ThreadPoolExecutor(32) as pool,
    ):
        answers = list(pool.map(server.ask, [i % len(ASKS) for i in range(64)]))
        assert [a[:2] for a in answers] == [expected[i % len(ASKS)] for i in range(64)]
        found = server.stats()
        assert found["evictions"] > 0
        assert found["blocks_held"] == 0


def test_a_known_prefix_outlives_the_server(
    expected: list[tuple[list[int], str]], home: Path, smollm2_path: Path
) -> None:
    with serving(home, smollm2_path) as server:
        assert [server.ask(i)[:2] for i in (0, 1)] == expected[:2]
    with serving(home, smollm2_path) as server:
        *answer, cached = server.ask(2)
        assert tuple(answer) == expected[2]
        assert cached > 100
        assert server.stats()["disk_hits_tokens"] > 100


def test_streams_go_on_when_the_engine_is_killed(home: Path, smollm2_path: Path) -> None:
    pieces = Semaphore(0)
    with serving(home, smollm2_path, "--no-disk-cache") as server, ThreadPoolExecutor(8) as pool:
        whole = list(pool.map(lambda i: server.ask(i, max_tokens=400)[:2], range(8)))
        waiting = [pool.submit(server.stream, i, max_tokens=400, came=pieces.release) for i in range(8)]
        children = Path(f"/proc/{server.process.pid}/task/{server.process.pid}/children")
        killed: set[int] = set()
        for _ in range(2):  # as soon as streams are under way: what is known is drafted, and comes fast
            for _ in range(24):
                assert pieces.acquire(timeout=60)
            assert not all(task.done() for task in waiting)
            workers = {int(pid) for pid in children.read_text().split()}
            assert workers
            for pid in workers:
                os.kill(pid, signal.SIGKILL)
            killed |= workers
            while not {int(pid) for pid in children.read_text().split()} - killed:
                time.sleep(0.01)
            while pieces.acquire(blocking=False):  # what was on its way when the engine ended
                pass
        assert [task.result() for task in waiting] == whole
        assert server.stats()["blocks_held"] == 0
