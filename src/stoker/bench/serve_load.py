"""When requests are sent: so many at a time, or by Poisson arrivals whatever the server does."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence

from stoker.bench.serve_http import Client, Exchange


def poisson_arrivals(rate: float, count: int, chance: random.Random) -> list[float]:
    """Seconds at which `count` requests are due, `rate` per second on average; the first at 0."""
    due_s = [0.0]
    while len(due_s) < count:
        due_s.append(due_s[-1] + chance.expovariate(rate))
    return due_s[:count]


async def send_closed(
    client: Client, path: str, bodies: Sequence[bytes], *, concurrency: int, timeout_s: float
) -> list[Exchange]:
    """`concurrency` clients, each of which sends its next request when its last has ended; in order sent."""
    queue = iter(bodies)
    exchanges: list[Exchange] = []

    async def one_client() -> None:
        for body in queue:
            exchange = Exchange(0.0)
            exchanges.append(exchange)
            await client.exchange(path, body, timeout_s=timeout_s, exchange=exchange)

    async with asyncio.TaskGroup() as group:
        for _ in range(min(concurrency, len(bodies))):
            group.create_task(one_client())
    return exchanges


async def send_open(
    client: Client, path: str, bodies: Sequence[bytes], *, due_s: Sequence[float], timeout_s: float
) -> list[Exchange]:
    """Each request at its time, counted from now. Latencies run from when it was due: a client that comes
    late because its machine is busy must not flatter the server."""
    start_s = client.clock()

    async def one_request(body: bytes, due: float) -> Exchange:
        await asyncio.sleep(start_s + due - client.clock())
        return await client.exchange(path, body, timeout_s=timeout_s, due_s=start_s + due)

    async with asyncio.TaskGroup() as group:
        tasks = [group.create_task(one_request(body, due)) for body, due in zip(bodies, due_s, strict=True)]
    return [task.result() for task in tasks]


async def send_with_intruder(
    client: Client,
    path: str,
    bodies: Sequence[bytes],
    intruder: bytes,
    *,
    settled_reads: int,
    timeout_s: float,
) -> tuple[list[Exchange], Exchange | None]:
    """All `bodies` at once; when each has brought `settled_reads` reads, one more request beside them.

    The intruder is none if a stream ended before all had started: then there was nothing to disturb.
    """
    streams = [Exchange(0.0) for _ in bodies]
    async with asyncio.TaskGroup() as group:
        tasks = [
            group.create_task(client.exchange(path, body, timeout_s=timeout_s, exchange=stream))
            for body, stream in zip(bodies, streams, strict=True)
        ]
        while not any(task.done() for task in tasks):
            if all(len(stream.arrivals) >= settled_reads for stream in streams):
                late = await client.exchange(path, intruder, timeout_s=timeout_s)
                break
            await asyncio.sleep(0.002)  # a tenth of a token's time at the least
        else:
            late = None
    return streams, late
