"""A real model in a worker that is killed: readers get the same tokens, text and log-probabilities."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.fakes import CountingSeeds
from tests.unit.process.serving import Answered, ask, is_alive, read, run, until

from stoker import LLM
from stoker.api.chat import Message
from stoker.api.constraint import Constraint, Thinking
from stoker.api.errors import CapacityError
from stoker.api.request import Request, SamplingParams
from stoker.engine.load import LoadOptions
from stoker.process import ModelShelf, ProcessEndpoint, ProcessOptions, ShelfOptions

pytestmark = [pytest.mark.model, pytest.mark.slow]

KV_BYTES = 256 << 20
PROMPTS = (
    "The capital of France is",
    "Once upon a time, in a kitchen at lunch rush,",
    "Write numbers in words: one, two, three,",
    "Der Kessel und die Kohle:",
    "def fibonacci(n):\n",
)


def start(path: Path) -> Any:
    return ProcessEndpoint.start(
        path, LoadOptions(kv_bytes=KV_BYTES), ProcessOptions(), seeds=CountingSeeds()
    )


def requests_of(count: int, tokens: int) -> list[Request]:
    """Plain ones, with four choices, with stop strings, with log-probabilities, of schemas."""
    person = '{"type":"object","properties":{"name":{"type":"string"},"sizes":{"type":"array","items":'
    person += '{"type":"integer"}}},"required":["name","sizes"],"additionalProperties":false}'
    schema = Constraint("json_schema", person)
    thinking = Thinking("<think>", "</think>", begun=True, budget_tokens=5)
    kinds: tuple[dict[str, Any], ...] = (
        {},
        {"n": 4},
        {"stop": (" the", "\n\n"), "n": 2},
        {"logprobs": 3, "prompt_logprobs": 1},
        {"constraint": schema, "n": 2},
        {"constraint": schema, "thinking": thinking},
        {"constraint": schema, "logprobs": 1, "presence_penalty": 0.5},
    )
    return [
        ask(
            f"r{i}",
            PROMPTS[i % len(PROMPTS)],
            **{"seed": 100 + i, "max_tokens": tokens, **kinds[i % len(kinds)]},
        )
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 8, 32])
def test_killed_in_the_middle(smollm2_path: Path, count: int) -> None:
    async def work() -> None:
        requests = requests_of(count, 24)
        async with await start(smollm2_path) as endpoint:
            calm = await asyncio.gather(*(read(endpoint, request) for request in requests))
            kills = iter([count * 4, count * 12])
            threshold: int | None = next(kills)
            answers = [Answered() for _ in requests]

            def on_token(_: Answered) -> None:
                nonlocal threshold
                if threshold is None or endpoint.worker_pid is None:
                    return
                if sum(answer.tokens for answer in answers) >= threshold:
                    os.kill(endpoint.worker_pid, signal.SIGKILL)
                    threshold = next(kills, None)

            await asyncio.gather(
                *(
                    read(endpoint, request, into, on_token)
                    for request, into in zip(requests, answers, strict=True)
                )
            )
            assert endpoint.restarts == 2
            stats = await endpoint.stats()
            assert stats.blocks_held == stats.running == stats.waiting == 0
        for before, after in zip(calm, answers, strict=True):
            assert after.without_cache() == before.without_cache()

    run(work, timeout_s=240)


def test_the_same_as_in_this_process(smollm2_path: Path) -> None:
    """Also while other answers are computed, and through the chat template."""
    messages = (Message("user", "Name three colours."),)
    sampling = SamplingParams(temperature=0.8, seed=5, max_tokens=24)
    with LLM(smollm2_path, kv_bytes=KV_BYTES) as llm:
        expected = llm.chat(messages, sampling)

    async def work() -> None:
        async with await start(smollm2_path) as endpoint:
            assert endpoint.has_chat_template
            assert endpoint.card.digest == hashlib.sha256(smollm2_path.read_bytes()).hexdigest()
            found, *_ = await asyncio.gather(
                read(endpoint, Request("chat", messages, sampling)),
                *(read(endpoint, request) for request in requests_of(8, 16)),
            )
            assert (found.text[0], tuple(found.token_ids[0])) == (expected.text, expected.token_ids)
            prompt_ids = await endpoint.encode(messages)
            assert tuple(prompt_ids) == expected.prompt_token_ids
            assert endpoint.decode(prompt_ids).endswith("<|im_start|>assistant\n")
            shorter = await endpoint.encode(messages, add_generation_prompt=False)
            assert prompt_ids[: len(shorter)] == shorter
            assert len(shorter) < len(prompt_ids)

    run(work, timeout_s=120)


def test_two_models_and_room_for_one(smollm2_path: Path, gemma3_path: Path) -> None:
    async def work() -> None:
        cap_bytes = int(max(path.stat().st_size for path in (smollm2_path, gemma3_path)) * 2.2) + KV_BYTES
        shelf = ModelShelf(
            [smollm2_path, gemma3_path],
            LoadOptions(kv_bytes=KV_BYTES),
            ShelfOptions(memory_bytes=cap_bytes),
            seeds=CountingSeeds(),
        )
        small, large = (card.name for card in shelf.cards())
        texts: dict[str, list[str]] = {small: [], large: []}
        pids = set()
        for name in (small, large, small):
            async with shelf.use(name) as model:
                answered = await read(model, ask("a", PROMPTS[0], max_tokens=8))
                texts[name].append(answered.text[0])
                assert shelf.taken_bytes <= cap_bytes
                assert len(shelf.loaded()) == 1
                assert isinstance(model, ProcessEndpoint)
                pids.add(model.worker_pid)
        assert len(pids) == 3
        assert texts[small][0] == texts[small][1] != texts[large][0]
        await shelf.close(drain_s=0)
        await until(lambda: not any(is_alive(pid) for pid in pids if pid is not None))

    run(work, timeout_s=120)


def test_a_model_past_the_cap(smollm2_path: Path) -> None:
    async def work() -> None:
        shelf = ModelShelf(
            [smollm2_path], LoadOptions(), ShelfOptions(memory_bytes=1 << 20), seeds=CountingSeeds()
        )
        with pytest.raises(CapacityError, match="may take"):
            async with shelf.use(smollm2_path.stem):
                pass
        await shelf.close(drain_s=0)

    run(work)
