"""Drafts: what a sequence will probably say next, to be verified by the model many tokens at once."""

from stoker.speculation.drafter import Drafter, Drafters, Proposal
from stoker.speculation.speculator import Speculator, Stream

__all__ = ["Drafter", "Drafters", "Proposal", "Speculator", "Stream"]
