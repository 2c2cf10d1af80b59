"""One path with a handler for each of its methods."""

from __future__ import annotations

from stoker.server.http import Handler, Receive, Scope, Send


class Methods:
    """Calls the handler of a call's method. One route: another method is told all that are allowed."""

    def __init__(self, **handlers: Handler) -> None:
        self._handlers = handlers

    @property
    def names(self) -> list[str]:
        """The methods."""
        return list(self._handlers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one call; the route lets no other method through."""
        # A route that has GET has HEAD too; the server leaves the body out.
        method = "GET" if scope["method"] == "HEAD" else scope["method"]
        await self._handlers[method](scope, receive, send)
