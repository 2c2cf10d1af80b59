"""Several requests of one call, answered beside each other, as one stream of events."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator

from stoker.api.events import DoneEvent, Event, TokensEvent
from stoker.api.protocols import Endpoint
from stoker.api.request import Request


async def merged(endpoint: Endpoint, requests: tuple[Request, ...]) -> AsyncIterator[Event]:
    """The events of all requests as they come; choice c of request p is choice p · n + c.

    The first error of one ends all.
    """
    queue: asyncio.Queue[Event | Exception | None] = asyncio.Queue()

    async def read(number: int, request: Request) -> None:
        first = number * request.sampling.n
        try:
            async for event in endpoint.generate(request):
                if isinstance(event, TokensEvent | DoneEvent):
                    event = dataclasses.replace(event, choice=first + event.choice)
                queue.put_nowait(event)
        except Exception as error:  # raised again below, in the task of the one who reads
            queue.put_nowait(error)
        else:
            queue.put_nowait(None)

    tasks = [asyncio.create_task(read(number, request)) for number, request in enumerate(requests)]
    try:
        ended = 0
        while ended < len(tasks):
            item = await queue.get()
            if isinstance(item, Exception):
                raise item
            if item is None:
                ended += 1
            else:
                yield item
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
