"""The server as one ASGI application: routes, and before them who may ask. Nothing here knows an engine.

Only pure ASGI: a middleware that makes objects of responses would cost more per token than the token.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException
from starlette.routing import BaseRoute, Route, Router

from stoker.api.protocols import ModelHost
from stoker.server.auth import Hosts, Keys
from stoker.server.batches import BatchRunner, batch_routes
from stoker.server.chat import chat_endpoint
from stoker.server.completions import completions_endpoint
from stoker.server.embeddings import Embeddings
from stoker.server.errors import ClientGone, Problem, problem_of
from stoker.server.files import file_routes
from stoker.server.health import Health, Metrics, Stats, Version
from stoker.server.http import Handler, Receive, Scope, Send, answer_problem, request_id
from stoker.server.messages import CountTokens, Messages, answer_messages_problem, speaks_messages
from stoker.server.models import Models
from stoker.server.openapi import OpenApi
from stoker.server.options import ServerOptions
from stoker.server.page_files import page_routes
from stoker.server.responses import response_routes
from stoker.server.service import Service, Views
from stoker.server.stored_chats import ChatStore, stored_chat_routes
from stoker.server.tokenize import Detokenize, Tokenize
from stoker.state import StateSource

_LOGGER = logging.getLogger("stoker.server")


def build_app(
    host: ModelHost,
    options: ServerOptions,
    *,
    views: Views | None = None,
    state: StateSource | None = None,
) -> tuple[Any, Service]:
    """The ASGI application that serves `host`, and what its handlers share.

    `views` adds /metrics and /stats. Without `state` nothing is kept: no files, batches, stored answers.
    """
    service = Service(host, options, views, state)
    # Ours is the only code that answers unknown paths and methods: with "app" in the scope the router raises.
    router = Router([*_all_routes(service), *page_routes()], redirect_slashes=False)
    app: Any = Gate(router, Hosts(options.allowed_hosts), Keys(options.api_keys))
    if options.allowed_origins:
        from starlette.middleware.cors import CORSMiddleware

        app = CORSMiddleware(
            app,
            allow_origins=options.allowed_origins,
            allow_methods=("GET", "POST", "DELETE"),
            allow_headers=(
                "authorization",
                "content-type",
                "x-api-key",
                "x-request-id",
                "anthropic-version",
                "anthropic-beta",
                "anthropic-dangerous-direct-browser-access",
            ),
            expose_headers=("x-request-id", "request-id", "retry-after"),
        )
    return app, service


def _all_routes(service: Service) -> Sequence[BaseRoute]:
    """Those that answer, and those of batches, whose lines go through the former."""
    routes = _routes(service)
    runner = BatchRunner(service, _handlers(routes), lambda behind: _handlers(_routes(behind)))
    service.works.append(runner)
    return (*routes, *batch_routes(service, runner))


def _handlers(routes: Sequence[BaseRoute]) -> dict[str, Handler]:
    return {
        route.path: route.app
        for route in routes
        if isinstance(route, Route) and route.methods is not None and "POST" in route.methods
    }


def _routes(service: Service) -> Sequence[BaseRoute]:
    chats = ChatStore(service)
    routes: list[BaseRoute] = [
        *file_routes(service),
        *response_routes(service),
        *stored_chat_routes(service, chats, chat_endpoint(service, chats)),
        Route("/v1/completions", completions_endpoint(service), methods=["POST"]),
        Route("/v1/embeddings", Embeddings(service), methods=["POST"]),
        Route("/v1/messages", Messages(service), methods=["POST"]),
        Route("/v1/messages/count_tokens", CountTokens(service), methods=["POST"]),
        Route("/v1/models", Models(service), methods=["GET"]),
        Route("/v1/models/{name:path}", Models(service), methods=["GET"]),
        Route("/tokenize", Tokenize(service), methods=["POST"]),
        Route("/detokenize", Detokenize(service), methods=["POST"]),
        Route("/health", Health(service), methods=["GET"]),
        Route("/ping", Health(service), methods=["GET"]),
        Route("/version", Version(), methods=["GET"]),
        Route("/openapi.json", OpenApi(), methods=["GET"]),
    ]
    if service.views is not None:
        routes += [
            Route("/metrics", Metrics(service), methods=["GET"]),
            Route("/stats", Stats(service), methods=["GET"]),
        ]
    return routes


@dataclass(frozen=True)
class Gate:
    """The outermost application: lets in who may ask, and turns whatever is raised into an answer."""

    app: Handler
    hosts: Hosts
    keys: Keys

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call, or pass the lifespan on."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        scope["app"] = self
        answer = answer_messages_problem if speaks_messages(scope) else answer_problem
        try:
            self.hosts.check(scope)
            self.keys.check(scope)
            await self.app(scope, receive, send)
        except ClientGone:
            return
        except HTTPException as error:
            await answer(scope, send, _problem_of_router(scope, error))
        except Exception as error:
            problem = problem_of(error)
            if problem.is_ours:
                fields = {"request_id": request_id(scope), "path": scope["path"]}
                _LOGGER.error("a request failed", exc_info=error, extra={"fields": fields})
            await answer(scope, send, problem)


def _problem_of_router(scope: Scope, error: HTTPException) -> Problem:
    path = f"{scope['path']!r:.200}"
    if error.status_code == 405:
        allowed = (error.headers or {}).get("Allow", "")
        return Problem(
            405,
            f"{scope['method']} is not a method of {path}; allowed: {allowed}",
            code="method_not_allowed",
            headers=((b"allow", allowed.encode()),),
        )
    return Problem(404, f"{path} does not exist; GET /openapi.json lists what does", code="not_found")
