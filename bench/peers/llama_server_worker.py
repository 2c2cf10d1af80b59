"""llama-server with one of its speculative modes as a measuring worker, with the protocol and the answers of
llama_cpp_speculation_worker.py; and how much was drafted and accepted: {"drafted": ..., "accepted": ...}.

Usage: python llama_server_worker.py LLAMA_SERVER MODEL.gguf THREADS [OPTION OF LLAMA_SERVER ...]
"""

from __future__ import annotations

import contextlib
import http.client
import json
import socket
import subprocess
import sys
import time
from typing import Any

CONTEXT_TOKENS = 4096
START_LIMIT_S = 120.0


def start(program: str, model: str, threads: str, options: list[str]) -> tuple[subprocess.Popen[bytes], int]:
    """A server of its own on a free port of this machine, ready to answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [program, "-m", model, "--host", "127.0.0.1", "--port", str(port), "-np", "1"]
    command += ["-t", threads, "-tb", threads, "-c", str(CONTEXT_TOKENS), *options]
    server = subprocess.Popen(
        command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    deadline = time.monotonic() + START_LIMIT_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(OSError):  # until it listens
            if _ask(port, "GET", "/health", None)[0] == 200:
                return server, port
        time.sleep(0.1)
    server.kill()
    raise SystemExit(f"{' '.join(command)} is not ready; its status is {server.wait()}")


def answer(port: int, token_ids: list[int], answer_tokens: int) -> dict[str, Any]:
    """The greedy answer, the seconds it took its client, and the server's counts of drafts."""
    body = {
        "prompt": token_ids,
        "n_predict": answer_tokens,
        "temperature": 0.0,
        "samplers": ["temperature"],
        "cache_prompt": True,
        "return_tokens": True,
    }
    started = time.perf_counter()
    status, text = _ask(port, "POST", "/completion", json.dumps(body))
    seconds = time.perf_counter() - started
    if status != 200:
        raise SystemExit(f"llama-server answered {status}: {text[:500]!r}")
    found = json.loads(text)
    timings = found["timings"]
    return {
        "tokens": found["tokens"],
        "seconds": seconds,
        "drafted": timings.get("draft_n", 0),
        "accepted": timings.get("draft_n_accepted", 0),
    }


def _ask(port: int, method: str, path: str, body: str | None) -> tuple[int, bytes]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=600)
    try:
        connection.request(method, path, body, {"Content-Type": "application/json"})
        response = connection.getresponse()
        return response.status, response.read()
    finally:
        connection.close()


def main() -> None:
    """Answer requests until stdin ends."""
    program, model, threads, *options = sys.argv[1:]
    version = subprocess.run([program, "--version"], capture_output=True, text=True, check=True)
    server, port = start(program, model, threads, options)
    try:
        first_line = (version.stdout + version.stderr).strip().splitlines()[0]
        print(json.dumps({"ready": True, "version": f"llama-server {first_line}"}), flush=True)
        for line in sys.stdin:
            request = json.loads(line)
            print(json.dumps(answer(port, request["token_ids"], request["answer_tokens"])), flush=True)
    finally:
        server.terminate()
        server.wait(timeout=30)


if __name__ == "__main__":
    main()
