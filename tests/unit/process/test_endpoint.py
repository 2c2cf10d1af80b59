"""A worker around a fake model: what it answers, and what becomes of its readers when it dies."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.fakes import ByteTokenizer, CountingSeeds
from tests.unit.process.fake_worker import POISON
from tests.unit.process.serving import (
    Answered,
    ask,
    is_alive,
    read,
    run,
    start_fake,
    until,
    write_model,
)

from stoker.api.chat import Message
from stoker.api.errors import (
    EngineError,
    ModelFormatError,
    PromptTooLongError,
    QueueFullError,
    RequestError,
    UnavailableError,
)
from stoker.api.request import Request, SamplingParams
from stoker.engine.load import LoadOptions
from stoker.process import ProcessEndpoint, ProcessOptions

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="signals and pipes of Unix")


@pytest.fixture
def private_tmp(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder for temporary files in which anything left behind is seen."""
    folder = Path(tempfile.mkdtemp(dir="/tmp"))  # short: a socket's path has 107 bytes
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def test_answers_and_leaves_nothing(tmp_path: Path, private_tmp: Path) -> None:
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else None

    async def work() -> None:
        endpoint = await start_fake(write_model(tmp_path))
        async with endpoint:
            pid = endpoint.worker_pid
            assert pid is not None
            assert endpoint.ready
            assert (endpoint.card.name, endpoint.card.loaded, endpoint.card.context_tokens) == (
                "fake", True, 1000,
            )  # fmt: skip
            assert endpoint.memory_bytes > LoadOptions().kv_bytes
            assert not os.listdir(private_tmp)  # the socket's path is gone as soon as it is connected
            first = await read(endpoint, ask("a", n=3, logprobs=2))
            again = await read(endpoint, ask("a", n=3, logprobs=2))
            assert first.without_cache() == again.without_cache()
            assert [len(first.token_ids[choice]) for choice in range(3)] == [40, 40, 40]
            assert [first.done[choice].seed for choice in range(3)] == [11, 12, 13]
            assert len(first.logprobs[2]) == 40
            drawn = await read(endpoint, ask("b", seed=None))
            assert drawn.done[0].seed == 1000
            stats = await endpoint.stats()
            assert stats.generated_tokens == 280
            assert stats.blocks_held == stats.running == stats.waiting == 0
        assert endpoint.is_down
        assert not endpoint.ready
        assert not is_alive(pid)
        with pytest.raises(UnavailableError, match="shut down"):
            await read(endpoint, ask("c"))

    run(work)
    assert not os.listdir(private_tmp)
    if before is not None:
        assert len(os.listdir("/proc/self/fd")) <= before + 1  # asyncio keeps one for signals of children


def test_prompts(tmp_path: Path) -> None:
    async def work() -> None:
        async with await start_fake(write_model(tmp_path)) as endpoint:
            assert await endpoint.encode("abc") == [97, 98, 99]
            assert endpoint.decode([97, ByteTokenizer.TURN]) == "a<turn>"
            assert not endpoint.has_chat_template
            with pytest.raises(RequestError, match="no chat template"):
                await read(endpoint, ask("a", (Message("user", "hi"),)))
            for prompt, found in (
                ((5, 265), "token id 265"),
                ((-1,), "token id -1"),
                ((1 << 70,), "token id"),
                ((True,), "True"),
            ):
                with pytest.raises(RequestError, match=found):
                    await read(endpoint, ask("a", prompt))
            with pytest.raises(RequestError, match="empty"):
                await read(endpoint, ask("a", ()))
            with pytest.raises(PromptTooLongError, match="at least"):
                await read(endpoint, ask("a", "x" * 100_000))
            with pytest.raises(PromptTooLongError, match="1001 tokens"):
                await read(endpoint, ask("a", "x" * 1001))
            for chars, found in (
                (1001, "the prediction has 1001 tokens"),
                (100_000, "the prediction has at l"),
            ):
                with pytest.raises(PromptTooLongError, match=found):
                    await read(endpoint, replace(ask("a"), prediction="x" * chars))
            with pytest.raises(RequestError, match="passed on"):
                await read(endpoint, ask("a", stop=("\ud800",)))
            with pytest.raises(RequestError, match="stop_token_ids"):
                await read(endpoint, ask("a", stop_token_ids=(100_000,)))
            assert endpoint.open_requests == 0
            assert (await read(endpoint, ask("a"))).done[0].finish_reason == "length"

    run(work)


def test_a_name_is_open_once_and_queues_are_bounded(tmp_path: Path) -> None:
    async def work() -> None:
        async with await start_fake(write_model(tmp_path, step_ms=30), max_waiting=2) as endpoint:
            long = ask("long", max_tokens=200)
            running = Answered()
            first = asyncio.create_task(read(endpoint, long, running))
            await until(lambda: running.tokens > 0)  # it waits no longer
            with pytest.raises(RequestError, match="open already"):
                await read(endpoint, long)
            second = asyncio.create_task(read(endpoint, ask("second", "y" * 900)))
            third = asyncio.create_task(read(endpoint, ask("third", "z" * 900)))
            await asyncio.sleep(0)  # both are in the queue, or the first of them past it
            await until(lambda: endpoint.open_requests == 3)
            with pytest.raises(QueueFullError) as caught:
                await read(endpoint, ask("one too many"))
            assert 1.0 <= caught.value.retry_after_s <= 60.0
            for task in (first, second, third):
                task.cancel()
            await asyncio.wait([first, second, third])
            assert endpoint.open_requests == 0
            await until_idle(endpoint)

    run(work)


async def until_idle(endpoint: ProcessEndpoint) -> None:
    """Wait until the worker has dropped everything, and check that no block is held."""
    async with asyncio.timeout(10):
        while True:
            stats = await endpoint.stats()
            if not stats.running and not stats.waiting and not stats.blocks_held:
                assert stats.blocks_free + stats.blocks_cached == stats.blocks
                return
            await asyncio.sleep(0.01)


def test_leaving_aborts_in_the_worker(tmp_path: Path) -> None:
    async def work() -> None:
        async with await start_fake(write_model(tmp_path, step_ms=5)) as endpoint:
            events = endpoint.generate(ask("a", max_tokens=900))
            await anext(events)
            assert (await endpoint.stats()).running == 1
            await events.aclose()
            await until_idle(endpoint)
            task = asyncio.create_task(read(endpoint, ask("b", max_tokens=900)))
            await asyncio.sleep(0.05)
            task.cancel()
            await asyncio.wait([task])
            await until_idle(endpoint)
            assert (await endpoint.stats()).generated_tokens < 200

    run(work)


def test_deadline(tmp_path: Path) -> None:
    async def work() -> None:
        async with await start_fake(write_model(tmp_path, step_ms=100)) as endpoint:
            hog = asyncio.create_task(read(endpoint, ask("hog", "y" * 700)))
            await asyncio.sleep(0.02)
            late = Request("late", "x" * 700, SamplingParams(n=2, seed=5), deadline_ms=40)
            answered = await read(endpoint, late)
            assert answered.tokens == 0
            ends = [(end.finish_reason, end.stop_reason, end.seed) for end in answered.done.values()]
            assert ends == [("abort", "deadline", 5), ("abort", "deadline", 6)]
            in_time = Request(
                "in time", "x", SamplingParams(max_tokens=3, ignore_eos=True), deadline_ms=20_000
            )
            assert (await read(endpoint, in_time)).done[0].finish_reason == "length"
            hog.cancel()
            await asyncio.wait([hog])

    run(work)


# --- deaths ----------------------------------------------------------------------------------------


async def read_through_deaths(
    endpoint: ProcessEndpoint, requests: list[Request], *, kill: int, after_tokens: list[int]
) -> list[Answered]:
    """Read all answers; the worker is killed each time so many tokens were given in all."""
    answers = [Answered() for _ in requests]
    thresholds = iter(after_tokens)
    threshold = next(thresholds, None)

    def on_token(_: Answered) -> None:
        nonlocal threshold
        if threshold is None or endpoint.worker_pid is None:
            return
        if sum(answer.tokens for answer in answers) >= threshold:
            os.kill(endpoint.worker_pid, kill)
            threshold = next(thresholds, None)

    await asyncio.gather(
        *(read(endpoint, request, into, on_token) for request, into in zip(requests, answers, strict=True))
    )
    assert threshold is None
    return answers


def requests_of_all_kinds(count: int) -> list[Request]:
    kinds: list[dict[str, Any]] = [
        {}, {"n": 4}, {"stop": ("zz", "e")}, {"logprobs": 2}, {"n": 2, "stop": (" the",), "min_tokens": 5},
        {"repetition_penalty": 1.3}, {"max_tokens": 3}, {"ignore_eos": False}, {"seed": None},
    ]  # fmt: skip
    return [
        ask(f"r{i}", f"prompt {i} " * (1 + i % 5), **{"seed": i, **kinds[i % len(kinds)]})
        for i in range(count)
    ]


@pytest.mark.parametrize("count", [1, 9, pytest.param(32, marks=pytest.mark.slow)])
def test_kill_goes_on_at_the_next_token(tmp_path: Path, count: int) -> None:
    async def work() -> None:
        path = write_model(tmp_path, step_ms=2)
        requests = requests_of_all_kinds(count)
        async with await start_fake(path) as endpoint:
            calm = await asyncio.gather(*(read(endpoint, request) for request in requests))
        async with await start_fake(path) as endpoint:
            troubled = await read_through_deaths(
                endpoint, requests, kill=signal.SIGKILL, after_tokens=[count * 2, count * 9, count * 20]
            )
            assert endpoint.restarts == 3
            await until_idle(endpoint)
        for before, after in zip(calm, troubled, strict=True):
            assert after.without_cache() == before.without_cache()

    run(work)


def test_a_worker_that_stands_still(tmp_path: Path) -> None:
    async def work() -> None:
        path = write_model(tmp_path, step_ms=2)
        async with await start_fake(path) as endpoint:
            calm = await read(endpoint, ask("a"))
            (troubled,) = await read_through_deaths(
                endpoint, [ask("a")], kill=signal.SIGSTOP, after_tokens=[10]
            )
            assert endpoint.restarts == 1
        assert troubled.without_cache() == calm.without_cache()

    run(work)


def test_a_step_without_end(tmp_path: Path) -> None:
    async def work() -> None:
        path = write_model(tmp_path, step_ms=60_000)
        options = {"step_limit_s": 0.3, "max_restarts": 1}
        async with await start_fake(path, **options) as endpoint:
            with pytest.raises(UnavailableError, match="a step took"):
                await read(endpoint, ask("a"))

    run(work)


def test_death_at_the_start(tmp_path: Path, private_tmp: Path) -> None:
    flag = tmp_path / "cold"
    flag.touch()

    async def work() -> None:
        with pytest.raises(UnavailableError, match="status 9: line one; the boiler is cold"):
            await start_fake(write_model(tmp_path, cold_while=str(flag)))
        with pytest.raises(ModelFormatError, match="is no model") as caught:
            await start_fake(write_model(tmp_path, refused=True))
        assert caught.value.hint == "take another"
        with pytest.raises(UnavailableError, match="cannot be started"):
            await ProcessEndpoint.start(
                write_model(tmp_path), LoadOptions(), seeds=CountingSeeds(), tokenizer=ByteTokenizer(),
                command=("/no/such/program",),
            )  # type: ignore[arg-type]  # fmt: skip

    run(work)
    assert not os.listdir(private_tmp)


def test_restarts_end(tmp_path: Path) -> None:
    flag = tmp_path / "cold"

    async def work() -> None:
        path = write_model(tmp_path, step_ms=5, cold_while=str(flag))
        async with await start_fake(path, max_restarts=2) as endpoint:
            pid = endpoint.worker_pid
            assert pid is not None
            reading = asyncio.create_task(read(endpoint, ask("a", max_tokens=900)))
            await until(lambda: endpoint.open_requests == 1)
            flag.touch()
            os.kill(pid, signal.SIGKILL)
            await until(lambda: not endpoint.ready)
            waiting = asyncio.create_task(read(endpoint, ask("b")))  # comes while there is no worker
            for task in (reading, waiting):
                with pytest.raises(UnavailableError, match="the boiler is cold"):
                    await task
            assert endpoint.is_down
            assert not endpoint.card.loaded
            with pytest.raises(UnavailableError, match="the boiler is cold"):
                await read(endpoint, ask("c"))

    run(work)


def test_requests_wait_for_a_worker_that_comes_back(tmp_path: Path) -> None:
    flag = tmp_path / "cold"

    async def work() -> None:
        path = write_model(tmp_path, cold_while=str(flag))
        async with await start_fake(path) as endpoint:
            assert endpoint.worker_pid is not None
            flag.touch()
            os.kill(endpoint.worker_pid, signal.SIGKILL)
            await until(lambda: not endpoint.ready)
            waiting = asyncio.create_task(read(endpoint, ask("b")))
            left = asyncio.create_task(read(endpoint, ask("nobody waits for this")))
            await asyncio.sleep(0.3)
            assert not waiting.done()
            left.cancel()
            flag.unlink()
            assert (await waiting).done[0].usage.completion_tokens == 40
            assert endpoint.open_requests == 0

    run(work)


@pytest.mark.slow
def test_poison_fails_alone(tmp_path: Path) -> None:
    async def work() -> None:
        path = write_model(tmp_path, step_ms=2)
        requests = requests_of_all_kinds(8)
        async with await start_fake(path) as endpoint:
            calm = await asyncio.gather(*(read(endpoint, request) for request in requests))
            others = [asyncio.create_task(read(endpoint, request)) for request in requests]
            with pytest.raises(EngineError, match="in a row on this request"):
                await read(endpoint, ask("poison", (1, POISON, 2)))
            for before, task in zip(calm, others, strict=True):
                assert (await task).without_cache() == before.without_cache()
            for number in range(2):  # an impatient sender does not take the model down
                with pytest.raises(EngineError, match="in a row on this request"):
                    await read(endpoint, ask(f"poison {number}", (1, POISON, 2)))
            assert not endpoint.is_down
            assert (await read(endpoint, ask("after"))).tokens == 40

    run(work)


def test_a_failing_step_is_a_death(tmp_path: Path) -> None:
    async def work() -> None:
        path = write_model(tmp_path, fails=12)
        async with await start_fake(path) as endpoint:
            answered = await read(endpoint, ask("a"))
            assert endpoint.restarts >= 3  # every 12th step of a worker fails
        async with await start_fake(write_model(tmp_path)) as endpoint:
            assert (await read(endpoint, ask("a"))).without_cache() == answered.without_cache()

    run(work)


def test_resume_from_above(tmp_path: Path) -> None:
    """A fleet that moves a request to another machine gives the tokens along."""

    async def work() -> None:
        async with await start_fake(write_model(tmp_path)) as endpoint:
            sampling = SamplingParams(temperature=0.8, seed=3, max_tokens=30, ignore_eos=True, n=2)
            whole = await read(endpoint, Request("a", "prompt", sampling))
            given = tuple(whole.token_ids[0][:7])
            rest = await read(endpoint, Request("b", "prompt", sampling, resume=(given, None)))
            assert rest.token_ids == {0: whole.token_ids[0][7:]}
            assert whole.text[0].endswith(rest.text[0])
            assert list(rest.done) == [0]
            assert rest.done[0].usage.completion_tokens == 30
            with pytest.raises(RequestError, match="only complete"):
                await read(endpoint, Request("c", "prompt", sampling, resume=(None, None)))

    run(work)


def test_close_drains(tmp_path: Path) -> None:
    async def work() -> None:
        endpoint = await start_fake(write_model(tmp_path, step_ms=5))
        short = asyncio.create_task(read(endpoint, ask("short", max_tokens=30)))
        long = asyncio.create_task(read(endpoint, ask("long", max_tokens=900)))
        await until(lambda: endpoint.open_requests == 2)
        closing = asyncio.create_task(endpoint.close(drain_s=1.5))
        await asyncio.sleep(0)
        with pytest.raises(UnavailableError, match="shutting down"):
            await read(endpoint, ask("late"))
        assert (await short).tokens == 30
        with pytest.raises(UnavailableError, match="shut down"):
            await long
        await closing

    run(work)


PARENT = """
import asyncio, sys
from pathlib import Path
from tests.unit.process.serving import ask, start_fake

async def main():
    endpoint = await start_fake(Path(sys.argv[1]))
    print(endpoint.worker_pid, flush=True)
    async for _ in endpoint.generate(ask("a", max_tokens=900)):
        pass

asyncio.run(main())
"""


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGTERM])
def test_no_orphan(tmp_path: Path, how: int) -> None:
    async def work() -> None:
        path = write_model(tmp_path, step_ms=20)
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
        parent = await asyncio.create_subprocess_exec(
            sys.executable, "-c", PARENT, str(path), stdout=asyncio.subprocess.PIPE, env=environment
        )
        assert parent.stdout is not None
        pid = int(await parent.stdout.readline())
        await asyncio.sleep(0.1)
        assert is_alive(pid)
        os.kill(pid, signal.SIGTERM)  # what a service's stop does to the whole group: the parent decides
        os.kill(pid, signal.SIGINT)
        await asyncio.sleep(0.1)
        assert is_alive(pid)
        parent.send_signal(how)
        await parent.wait()
        started = time.monotonic()
        await until(lambda: not is_alive(pid), timeout_s=5)
        assert time.monotonic() - started < 5

    run(work)


def test_without_ipc(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deep = tmp_path / ("deep" * 30)
    deep.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(deep))  # too long for a socket's path: TCP

    async def work() -> None:
        async with await start_fake(write_model(tmp_path)) as endpoint:
            assert (await read(endpoint, ask("a"))).tokens == 40

    run(work)
    assert not os.listdir(deep)


@pytest.mark.parametrize(
    "options",
    [
        {"max_waiting": 0},
        {"heartbeat_ms": 1},
        {"silence_s": 0.0},
        {"silence_s": float("nan")},
        {"max_restarts": -1},
        {"heartbeat_ms": 5000, "silence_s": 6.0},
        {"step_limit_s": True},
    ],
)
def test_options(options: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="allowed"):
        ProcessOptions(**options)
