"""The engine without HTTP under the load generator's requests: JSON lines in, JSON lines out.

Usage: python -m bench.serve_worker MODEL.gguf THREADS CONCURRENCY. First a line of facts; then, for each
{"prompts": [[token ids], ...], "max_tokens": N}, a line {"tokens_per_s": ..., "first_token_ms": ...}.
All requests are handed over at once, and at most CONCURRENCY of them run: a client that is never late.
Steps, sampling and detokenizing are in the time; a process boundary, JSON and sockets are not.
"""

from __future__ import annotations

import json
import sys
import time
from typing import Any

from stoker import LLM, SamplingParams, __version__


def main() -> None:
    """Answer requests until stdin ends."""
    model, threads, concurrency = sys.argv[1:]
    llm = LLM(model, threads=int(threads), max_sequences=int(concurrency))
    _say({"version": __version__})
    for line in sys.stdin:
        request = json.loads(line)
        _say(_measure(llm, request["prompts"], request["max_tokens"]))


def _measure(llm: LLM, prompts: list[list[int]], max_tokens: int) -> dict[str, Any]:
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=max_tokens)
    started = time.perf_counter()
    if len(prompts) == 1:
        pieces = llm.stream(prompts[0], params)
        next(pieces)
        first_ms = (time.perf_counter() - started) * 1e3
        tokens = 1 + sum(1 for _ in pieces)
    else:
        first_ms = None
        tokens = sum(len(found.choices[0].token_ids) for found in llm.generate(prompts, params))
    return {"tokens_per_s": tokens / (time.perf_counter() - started), "first_token_ms": first_ms}


def _say(value: dict[str, Any]) -> None:
    print(json.dumps(value), flush=True)


if __name__ == "__main__":
    main()
