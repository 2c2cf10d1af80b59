"""/v1/files: what clients upload for batches and for themselves, and what batches have written."""

from stoker.server.files.routes import file_routes

__all__ = ["file_routes"]
