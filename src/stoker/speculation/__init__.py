"""Drafts: what a sequence will probably say next, to be verified by the model many tokens at once."""

from stoker.speculation.drafter import Drafter, Drafters, Opening, Proposal
from stoker.speculation.registry import AUTO, DRAFTERS, OFF, drafters_of
from stoker.speculation.speculator import Speculator, Stream

__all__ = [
    "AUTO",
    "DRAFTERS",
    "OFF",
    "Drafter",
    "Drafters",
    "Opening",
    "Proposal",
    "Speculator",
    "Stream",
    "drafters_of",
]
