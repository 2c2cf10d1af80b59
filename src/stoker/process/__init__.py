"""Engines in processes of their own: started, watched, restarted where they were; several, under a cap."""

from stoker.process.endpoint import ProcessEndpoint
from stoker.process.options import ProcessOptions
from stoker.process.shelf import ModelShelf, ShelfOptions

__all__ = ["ModelShelf", "ProcessEndpoint", "ProcessOptions", "ShelfOptions"]
