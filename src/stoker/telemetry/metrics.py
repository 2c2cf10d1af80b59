"""Prometheus metrics: the counters of every model's requests, and the answer to GET /metrics.

The numbers live where they are counted (`EngineStats`, `ModelMeasures`) and are read at a scrape. No registry
of the process is touched, so several servers in one process do not mix.
"""

from __future__ import annotations

import asyncio
import importlib
from collections import Counter
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any

from stoker.api.protocols import ModelHost
from stoker.telemetry.measures import ModelMeasures
from stoker.telemetry.stats import read_all_stats

# Of the text format that every Prometheus reads. Newer ones differ in names that are not ASCII; ours are.
CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

Scope = MutableMapping[str, Any]
Send = Callable[[Scope], Awaitable[None]]
AsgiApp = Callable[[Scope, Any, Send], Awaitable[None]]


class Metrics:
    """The counters of every model's requests, and the answer to GET /metrics."""

    def __init__(self) -> None:
        self._measures: dict[str, ModelMeasures] = {}
        self._responses: Counter[int] = Counter()  # by status

    def measures(self, model: str) -> ModelMeasures:
        """The counters of a model, made when it is first asked for. Only for names of real models."""
        if model not in self._measures:
            self._measures[model] = ModelMeasures()
        return self._measures[model]

    def middleware(self, app: AsgiApp) -> AsgiApp:
        """An ASGI application that answers as `app` and counts its answers: most of what is refused is so
        before it reaches a model."""

        async def counting(scope: Scope, receive: Any, send: Send) -> None:
            if scope["type"] != "http":
                await app(scope, receive, send)
                return

            async def count(message: Scope) -> None:
                if message["type"] == "http.response.start":
                    self._responses[message["status"]] += 1
                await send(message)

            await app(scope, receive, count)

        return counting

    async def exposition(self, host: ModelHost) -> bytes:
        """All metrics in Prometheus' text format, `CONTENT_TYPE`.

        Engines are asked now, all at once; one that does not answer in time is left out, and its
        `stoker_model_ready` says so.
        """
        stats = await read_all_stats(host)
        # prometheus-client takes 30 to 50 ms to import: neither the start nor running streams wait.
        scrape = await asyncio.to_thread(importlib.import_module, "stoker.telemetry.scrape")
        names = tuple(card.name for card in host.cards())
        text: bytes = scrape.write_metrics(names, stats, self._measures, self._responses)
        return text
