"""/v1/responses: OpenAI's Responses API, with stored, continued, background and streamed responses."""

from stoker.server.responses.routes import response_routes

__all__ = ["response_routes"]
