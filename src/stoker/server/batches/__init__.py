"""/v1/batches: files of calls, answered while nothing else needs the machine."""

from stoker.server.batches.routes import batch_routes
from stoker.server.batches.runner import BatchRunner

__all__ = ["BatchRunner", "batch_routes"]
