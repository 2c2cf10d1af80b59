"""The OpenAI-compatible HTTP server. It speaks `ModelHost`, `Request` and `Event`, and nothing below."""

from stoker.server.app import build_app
from stoker.server.options import ServerOptions
from stoker.server.service import Service, Views

__all__ = ["ServerOptions", "Service", "Views", "build_app"]
