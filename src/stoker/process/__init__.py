"""Engines in processes of their own: started, watched, restarted where they were."""

from stoker.process.endpoint import ProcessEndpoint
from stoker.process.options import ProcessOptions

__all__ = ["ProcessEndpoint", "ProcessOptions"]
