"""GET /health, /ping, /version, /metrics and /stats: how the server is."""

from __future__ import annotations

from dataclasses import dataclass

from stoker import __version__
from stoker.server.http import Receive, Scope, Send, answer_bytes, answer_json
from stoker.server.service import Service


@dataclass(frozen=True)
class Health:
    """200 while a token can be produced: a loaded model is ready, or all were unloaded because nobody used
    them, and the server is not stopping."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        models = [{"name": model.card.name, "ready": model.ready} for model in self.service.host.loaded()]
        good = not self.service.draining and (
            any(model["ready"] for model in models) or (not models and self.service.warm)
        )
        answer = {"status": "ok" if good else "unavailable", "models": models}
        await answer_json(scope, send, answer, 200 if good else 503)


@dataclass(frozen=True)
class Version:
    """The release that runs here."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        await answer_json(scope, send, {"version": __version__})


@dataclass(frozen=True)
class Metrics:
    """Prometheus' text format."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        views = self.service.views
        assert views is not None  # the route exists only with them
        kind = (b"content-type", views.metrics_content_type.encode())
        await answer_bytes(scope, send, 200, await views.metrics(), [kind])


@dataclass(frozen=True)
class Stats:
    """The engines' counters and their hottest prefixes, for the page."""

    service: Service

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call."""
        views = self.service.views
        assert views is not None
        await answer_json(scope, send, await views.stats())
