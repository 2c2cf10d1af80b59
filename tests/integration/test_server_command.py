"""`stoker serve` as a process: what it prints, how it refuses, how it ends; and a real model behind it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai
import pytest

from stoker import LLM, SamplingParams
from stoker.api.chat import Message

ROOT = Path(__file__).parents[2]
START_LIMIT_S = 60.0


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "stoker", "serve", *arguments]


def _environment(**more: str) -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("STOKER_API")}
    return {**kept, "PYTHONPATH": str(ROOT / "src"), **more}


def _run(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        _command(*arguments),
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
        stdin=subprocess.DEVNULL,
        env=_environment(**environment),
    )


def test_a_port_in_use_is_one_line_and_costs_no_load() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        shown = _run("--port", str(taken.getsockname()[1]))
    assert (shown.returncode, shown.stdout) == (1, "")
    assert shown.stderr.count("\n") == 1
    assert "Address already in use" in shown.stderr


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        (("--host", "0.0.0.0", "--port", "0"), 1, "there is no API key"),
        (("--host", "no.such.host.invalid", "--port", "0"), 1, "no API key"),
        (("--port", "70000"), 2, "--port"),
        (("--kv-bytes", "lots"), 2, "no size"),
        (("--keep-alive", "soon"), 2, "no duration"),
        (("--api-key-file", "/nowhere/keys", "--port", "0"), 1, "cannot read the API keys"),
        (("/nowhere/model.gguf", "--port", "0"), 1, "/nowhere/model.gguf"),
    ],
)
def test_what_cannot_be_served_is_refused(arguments: tuple[str, ...], status: int, says: str) -> None:
    shown = _run(*arguments)
    assert shown.returncode == status
    assert says in shown.stderr
    assert "Traceback" not in shown.stderr


@contextmanager
def _serving(model: Path, *arguments: str, **environment: str) -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """The URL of a server that is ready, and its process; killed at the end if it still runs."""
    process = subprocess.Popen(
        _command(str(model), "--port", "0", "--no-disk-cache", *arguments),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=_environment(**environment),
    )
    timer = threading.Timer(START_LIMIT_S, process.kill)
    timer.start()
    try:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert line.startswith("http://127.0.0.1:"), process.communicate()
        assert f" serves {model.stem} " in line
        yield line.split()[0], process
    finally:
        timer.cancel()
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)


@pytest.mark.model
def test_an_answer_through_http_is_the_engines(smollm2_path: Path) -> None:
    with LLM(smollm2_path) as llm:
        question = (Message("user", "Name three uses of coal."),)
        expected = llm.chat(question, SamplingParams(seed=11, max_tokens=24))
    with _serving(smollm2_path) as (url, process):
        with openai.OpenAI(base_url=url + "/v1", api_key="none") as client:
            messages = [{"role": "user", "content": "Name three uses of coal."}]
            options = {"model": smollm2_path.stem, "messages": messages, "seed": 11, "max_tokens": 24}
            whole = client.chat.completions.create(**options)
            assert whole.choices[0].message.content == expected.text
            pieces = client.chat.completions.create(**options, stream=True)
            assert "".join(piece.choices[0].delta.content or "" for piece in pieces) == expected.text
        long = httpx.post(url + "/v1/completions", json={"prompt": "a " * 20_000}, timeout=30)
        assert (long.status_code, long.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert httpx.get(url + "/health").status_code == 200
        assert "stoker_sequences_running" in httpx.get(url + "/metrics").text
        assert httpx.get(url + "/stats").json()["models"][0]["ready"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0


@pytest.mark.model
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_lets_an_open_stream_finish(smollm2_path: Path, number: signal.Signals) -> None:
    with _serving(smollm2_path, STOKER_API_KEY="secret") as (url, process):
        assert httpx.get(url + "/v1/models").status_code == 401
        with openai.OpenAI(base_url=url + "/v1", api_key="secret") as client:
            stream = client.completions.create(
                model=smollm2_path.stem,
                prompt="Once",
                seed=1,
                max_tokens=60,
                stream=True,
                extra_body={"ignore_eos": True, "return_token_ids": True},
            )
            chunks = [next(stream), next(stream)]
            process.send_signal(number)
            chunks += stream
        tokens = [token for chunk in chunks for token in chunk.choices[0].model_extra.get("token_ids", [])]
        assert len(tokens) == 60
        assert chunks[-1].choices[0].finish_reason == "length"
        started = time.monotonic()
        assert process.wait(30) == 0
        assert time.monotonic() - started < 10
