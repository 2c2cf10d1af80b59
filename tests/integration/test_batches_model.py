"""Batches by a real model behind `stoker serve`, through OpenAI's SDK: killed, restarted, cut off."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest
from tests.postgresql import cluster

from stoker import LLM, SamplingParams
from stoker.api.chat import Message
from stoker.server.batches.lines import seed_of

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 120.0
CHAT = "/v1/chat/completions"


@contextmanager
def serving(model: Path, state: str, home: Path) -> Iterator[tuple[openai.OpenAI, subprocess.Popen[str]]]:
    """A client of a server that is ready, and the server's process."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_API")}
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "stoker",
            "serve",
            str(model),
            "--port",
            "0",
            "--no-disk-cache",
            "--state",
            state,
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env={**kept, "PYTHONPATH": str(ROOT / "src"), "XDG_DATA_HOME": str(home)},
    )
    timer = threading.Timer(START_LIMIT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), line
        timer.cancel()
        with openai.OpenAI(base_url=line.split()[0] + "/v1", api_key="none", max_retries=0) as client:
            yield client, process
    finally:
        timer.cancel()
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


def wait_for(client: openai.OpenAI, batch_id: str, until: Callable[[Any], bool]) -> Any:
    deadline = time.monotonic() + 240
    while True:
        batch = client.batches.retrieve(batch_id)
        if until(batch):
            return batch
        assert time.monotonic() < deadline, batch
        time.sleep(0.05)


def lines_of(count: int, **body: Any) -> list[dict[str, Any]]:
    return [
        {
            "custom_id": f"c{i}",
            "method": "POST",
            "url": CHAT,
            "body": {"messages": [{"role": "user", "content": f"Say something about {i}."}], **body},
        }
        for i in range(count)
    ]


def create(client: openai.OpenAI, lines: list[dict[str, Any]], endpoint: Any = CHAT) -> Any:
    text = "".join(json.dumps(line) + "\n" for line in lines)
    file = client.files.create(file=("in.jsonl", text.encode()), purpose="batch")
    return client.batches.create(input_file_id=file.id, endpoint=endpoint, completion_window="24h")


def texts_of(client: openai.OpenAI, batch: Any) -> dict[str, str]:
    found = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
    assert len({entry["custom_id"] for entry in found}) == len(found)
    return {
        entry["custom_id"]: entry["response"]["body"]["choices"][0]["message"]["content"] for entry in found
    }


def expected_texts(model: Path, batch_id: str, lines: list[dict[str, Any]]) -> dict[str, str]:
    """What the engine gives for every eighth line alone, under the line's own seed."""
    found = {}
    with LLM(model) as llm:
        for number, line in list(enumerate(lines, 1))[::8]:
            body = dict(line["body"])
            messages = tuple(Message(**message) for message in body.pop("messages"))
            params = SamplingParams(seed=seed_of(batch_id, number), **body)
            found[line["custom_id"]] = llm.chat(messages, params).text
    return found


@pytest.mark.model
@pytest.mark.slow
def test_a_server_that_is_killed_loses_and_repeats_nothing(smollm2_path: Path, tmp_path: Path) -> None:
    state = str(tmp_path / "state.db")
    lines = lines_of(96, max_tokens=24)
    with serving(smollm2_path, state, tmp_path) as (client, process):
        batch_id = create(client, lines).id
        wait_for(client, batch_id, lambda batch: batch.request_counts.completed > 0)
        process.send_signal(signal.SIGKILL)
        process.wait(30)
    with serving(smollm2_path, state, tmp_path) as (client, process):
        at_start = client.batches.retrieve(batch_id)
        assert at_start.status == "in_progress"
        assert at_start.request_counts.completed < 96
        batch = wait_for(client, batch_id, lambda batch: batch.status == "completed")
        assert (batch.request_counts.completed, batch.request_counts.failed) == (96, 0)
        texts = texts_of(client, batch)
        assert list(texts) == [line["custom_id"] for line in lines]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    expected = expected_texts(smollm2_path, batch_id, lines)
    assert {custom_id: texts[custom_id] for custom_id in expected} == expected


@pytest.mark.model
@pytest.mark.slow
def test_every_call_of_the_sdk(smollm2_path: Path, tmp_path: Path) -> None:
    with serving(smollm2_path, str(tmp_path / "state.db"), tmp_path) as (client, _):
        texts = lines_of(3, max_tokens=4, ignore_eos=True)
        first = create(client, [*texts, {**texts[0], "custom_id": "bad", "body": {"messages": []}}])
        batch = wait_for(client, first.id, lambda batch: batch.status == "completed")
        assert batch.request_counts.failed == 1
        assert batch.usage.output_tokens == 12
        bad = json.loads(client.files.content(batch.error_file_id).text)
        assert (bad["custom_id"], bad["response"]["status_code"]) == ("bad", 400)
        prompts: Any = {"/v1/completions": "prompt", "/v1/responses": "input", "/v1/embeddings": "input"}
        for endpoint, field in prompts.items():
            line = {"custom_id": "a", "method": "POST", "url": endpoint, "body": {field: "Coal is"}}
            made = create(client, [line], endpoint)
            done = wait_for(client, made.id, lambda batch: batch.status == "completed")
            (entry,) = client.files.content(done.output_file_id).text.splitlines()
            assert json.loads(entry)["response"]["status_code"] == 200, entry
        long = create(client, lines_of(300, max_tokens=100, ignore_eos=True))
        wait_for(client, long.id, lambda batch: batch.status == "in_progress")
        # Calls of clients come first: one is answered while hundreds of lines wait.
        answer = client.chat.completions.create(
            model=smollm2_path.stem, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
        )
        assert answer.choices[0].message.content
        assert client.batches.cancel(long.id).status == "cancelling"
        assert (
            wait_for(client, long.id, lambda batch: batch.status == "cancelled").request_counts.total == 300
        )
        listed = [batch.id for batch in client.batches.list(limit=2)]
        assert (len(listed), listed[0], listed[-1]) == (5, long.id, first.id)
        assert {file.purpose for file in client.files.list()} == {"batch", "batch_output"}
        assert client.files.delete(first.input_file_id).deleted
        with pytest.raises(openai.NotFoundError):
            client.files.retrieve(first.input_file_id)
        with pytest.raises(openai.ConflictError):
            client.batches.cancel(first.id)


@pytest.mark.model
@pytest.mark.slow
def test_postgresql_that_stops_in_the_middle(smollm2_path: Path, tmp_path: Path) -> None:
    with cluster() as postgresql, serving(smollm2_path, postgresql.url, tmp_path) as (client, _):
        lines = lines_of(64, max_tokens=24)
        batch_id = create(client, lines).id
        wait_for(client, batch_id, lambda batch: batch.request_counts.completed > 0)
        postgresql.stop()
        with pytest.raises(openai.InternalServerError) as gone:
            client.batches.retrieve(batch_id)
        assert gone.value.status_code == 503
        # What needs no database is answered as ever.
        assert client.chat.completions.create(
            model=smollm2_path.stem,
            messages=[{"role": "user", "content": "Hello"}],
            max_tokens=4,
            store=False,
        ).choices
        health = httpx.get(str(client.base_url).removesuffix("v1/") + "health")
        assert health.status_code == 200
        time.sleep(3)
        postgresql.start()
        deadline = time.monotonic() + 20
        while True:
            try:
                client.batches.retrieve(batch_id)
                break
            except openai.InternalServerError:
                assert time.monotonic() < deadline
                time.sleep(0.2)
        batch = wait_for(client, batch_id, lambda batch: batch.status == "completed")
        assert batch.request_counts.completed == 64
        assert list(texts_of(client, batch)) == [line["custom_id"] for line in lines]
