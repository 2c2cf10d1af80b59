"""The OpenAI-compatible HTTP server. It speaks `ModelHost`, `Request` and `Event`, and nothing below.

`build_app` (in `stoker.server.app`) makes the ASGI application, `HttpServer` (in `stoker.server.run`) runs
it.
They are not imported here: their libraries take longer to load than the engine's process to start.
"""

from stoker.server.listen import check_exposure, is_loopback, loopback_names, open_socket, url_of
from stoker.server.options import ServerOptions

__all__ = [
    "ServerOptions",
    "check_exposure",
    "is_loopback",
    "loopback_names",
    "open_socket",
    "url_of",
]
