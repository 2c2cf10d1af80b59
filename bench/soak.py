"""Ten minutes of what a server meets: mixed requests, clients that vanish, engines that are killed.

    python -m bench.soak [--minutes 10] [--kill-every 45] [--model smollm2] [--seed 1]

Starts `stoker serve` and drives it with 24 clients: chats and completions, streamed and whole, shared and
own prefixes, n = 2, stop strings, bad requests; a third leave before the end; every 45 seconds the engine's
process is killed. Afterwards nothing may be left: no open request, no held block, no more file handles, and
no more memory than after the first fifth (5 %). Answers with a seed that were not cut off must be equal each
time they are given. Prints one JSON object and ends with status 1 if something is wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from typing import Any

import httpx

CLIENTS = 24
WARM_SHARE = 0.2  # of the run, before memory is first looked at
MOST_GROWTH = 1.05
STUCK_S = 120.0  # no request of this load takes as long, however busy the machine
PREFIX = "You are the stoker of a steam engine. You know coal and water, and answer in few words. " * 6


def children(pid: int) -> list[int]:
    """The processes that `pid` started."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident_bytes(pid: int) -> int:
    """Memory in use of one process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE")


def handles(pid: int) -> int:
    """Open files of one process."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def request_of(draw: random.Random, model: str) -> tuple[str, dict[str, Any]]:
    """Path and body of one request of the mix."""
    seed = draw.randrange(40)
    fields: dict[str, Any] = {
        "model": model, "max_tokens": draw.choice([1, 8, 32, 96]), "seed": seed,
        "temperature": draw.choice([0, 0.8]), "stream": draw.random() < 0.6,
    }  # fmt: skip
    kind = draw.random()
    if kind < 0.05:
        bad = draw.choice([[], "hello", [{"role": "nobody"}]])
        return "/v1/chat/completions", {**fields, "messages": bad}
    if kind < 0.1:
        fields["n"] = 2
    elif kind < 0.2:
        fields["stop"] = ["\n", " the"]
    text = (PREFIX if kind < 0.6 else "") + f"Question {seed}: what burns best?"
    text += " Say why." * draw.choice([0, 40])
    if draw.random() < 0.5:
        return "/v1/chat/completions", {**fields, "messages": [{"role": "user", "content": text}]}
    return "/v1/completions", {**fields, "prompt": text}


class Soak:
    """One run's counters; all clients write into it."""

    def __init__(self, url: str, model: str, seed: int) -> None:
        self.model = model
        limits = httpx.Limits(max_connections=None)
        self.client = httpx.AsyncClient(base_url=url, timeout=STUCK_S, limits=limits)
        self.draw = random.Random(seed)
        self.outcomes: Counter[str] = Counter()
        self.answers: dict[str, str] = {}  # by request: what a whole answer says
        self.unequal: list[str] = []

    async def run_client(self, until_s: float) -> None:
        """Ask one after another, and leave some in the middle."""
        while time.monotonic() < until_s:
            path, body = request_of(self.draw, self.model)
            leave_s = self.draw.uniform(0.0, 1.5) if self.draw.random() < 0.33 else None
            try:
                async with asyncio.timeout(leave_s):
                    self.outcomes[await self.ask(path, body)] += 1
            except TimeoutError:
                self.outcomes["left"] += 1
            except httpx.TimeoutException:
                self.outcomes["stuck"] += 1
            except httpx.HTTPError as error:
                self.outcomes[f"broken {type(error).__name__}"] += 1

    async def ask(self, path: str, body: dict[str, Any]) -> str:
        """Send one request and compare its answer with the one given before."""
        if not body["stream"]:
            reply = await self.client.post(path, json=body)
            if reply.status_code != 200:
                return f"status {reply.status_code}"
            choices = reply.json()["choices"]
            texts = [c["message"]["content"] if "message" in c else c["text"] for c in choices]
            return self.compare(path, body, texts)
        texts = [""] * body.get("n", 1)
        ended = False
        async with self.client.stream("POST", path, json=body) as stream:
            if stream.status_code != 200:
                await stream.aread()
                return f"status {stream.status_code}"
            async for line in stream.aiter_lines():
                if line == "data: [DONE]":
                    ended = True
                elif line.startswith("data: "):
                    event = json.loads(line[6:])
                    if "error" in event:
                        return "error in a stream"
                    for choice in event["choices"]:
                        piece = choice["delta"].get("content") if "delta" in choice else choice["text"]
                        texts[choice["index"]] += piece or ""
        return self.compare(path, body, texts) if ended else "stream without an end"

    def compare(self, path: str, body: dict[str, Any], texts: list[str]) -> str:
        """Equal requests have equal answers, streamed or not, before and after a death of the engine."""
        key = json.dumps([path, {**body, "stream": None}], sort_keys=True)
        answer = json.dumps(texts)
        if self.answers.setdefault(key, answer) != answer:
            self.unequal.append(key)
            return "unequal"
        return "answered"


async def kill_engines(server_pid: int, every_s: float, until_s: float) -> int:
    """Kill the engine's process now and then; how often."""
    killed = 0
    while time.monotonic() + every_s < until_s:
        await asyncio.sleep(every_s)
        for pid in children(server_pid):
            os.kill(pid, signal.SIGKILL)
            killed += 1
    return killed


async def stats_of(client: httpx.AsyncClient) -> dict[str, Any]:
    """The engine's counters."""
    return (await client.get("/stats")).json()["models"][0]["stats"]


async def settle(client: httpx.AsyncClient) -> dict[str, Any]:
    """The counters once nothing is open any more, or after half a minute."""
    for _ in range(60):
        found = await stats_of(client)
        if not found["running"] and not found["waiting"] and not found["blocks_held"]:
            break
        await asyncio.sleep(0.5)
    return found


async def soak(
    url: str, server: subprocess.Popen[bytes], model: str, minutes: float, kill_every_s: float, seed: int
) -> dict[str, Any]:
    """Run the load; what came of it."""
    run = Soak(url, model, seed)
    began_s = time.monotonic()
    until_s = began_s + minutes * 60
    clients = [asyncio.create_task(run.run_client(until_s)) for _ in range(CLIENTS)]
    killing = asyncio.create_task(kill_engines(server.pid, kill_every_s, until_s))
    await asyncio.sleep(minutes * 60 * WARM_SHARE)
    early_bytes = resident_bytes(server.pid)
    await asyncio.gather(*clients)
    killed = await killing
    await run.client.aclose()
    async with httpx.AsyncClient(base_url=url, timeout=60) as client:
        await asyncio.sleep(2)
        stats = await settle(client)
        before = handles(server.pid)
        for _ in range(20):  # one more round on a quiet server: handles must not follow the requests
            await client.post("/v1/completions", json={"model": model, "prompt": "a", "max_tokens": 2})
        stats = await settle(client)
    late_bytes = resident_bytes(server.pid)
    signs = ("broken", "stuck", "unequal", "error", "stream", "status 5")
    wrong = [outcome for outcome in run.outcomes if outcome.startswith(signs)]
    free = stats["blocks_free"] + stats["blocks_cached"]
    checks = {
        "no_wrong_outcome": not wrong,
        "no_open_request": not stats["running"] and not stats["waiting"],
        "no_held_block": not stats["blocks_held"] and free == stats["blocks"],
        "no_leaked_handle": handles(server.pid) <= before + 2,
        "memory_within_5_percent": late_bytes <= early_bytes * MOST_GROWTH,
    }
    return {
        "minutes": minutes, "outcomes": dict(run.outcomes), "killed": killed,
        "distinct_answers": len(run.answers),
        "early_mb": early_bytes / 1e6, "late_mb": late_bytes / 1e6, "handles": handles(server.pid),
        "stats": {k: v for k, v in stats.items() if isinstance(v, int)}, "checks": checks,
    }  # fmt: skip


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--kill-every", type=float, default=45.0, help="seconds between two kills")
    parser.add_argument("--model", default="smollm2")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--port", type=int, default=8417)
    asked = parser.parse_args()
    command = [
        sys.executable,
        "-m",
        "stoker",
        "serve",
        asked.model,
        "--state",
        "none",
        "--port",
        str(asked.port),
    ]
    server = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{asked.port}"
    try:
        for _ in range(240):
            try:
                if httpx.get(f"{url}/health").status_code == 200:
                    break
            except httpx.HTTPError:
                time.sleep(0.25)
        found = asyncio.run(soak(url, server, asked.model, asked.minutes, asked.kill_every, asked.seed))
    finally:
        server.terminate()
        server.wait(60)
    print(json.dumps(found, indent=1))
    return 0 if all(found["checks"].values()) else 1


if __name__ == "__main__":
    sys.exit(main())
