"""Drafts: what a sequence will probably say next, to be verified by the model many tokens at once."""

from stoker.speculation.draft import AllowedDraft, Draft
from stoker.speculation.draft_model import NAME as DRAFT_MODEL
from stoker.speculation.drafter import Borrower, Drafter, Drafters, Observer, Opening, Proposal
from stoker.speculation.features import Features
from stoker.speculation.registry import AUTO, BOUND, DRAFTERS, OFF, drafter_names, drafters_of
from stoker.speculation.speculator import Cost, Speculator, Stream
from stoker.speculation.tally import DraftTally

__all__ = [
    "AUTO",
    "BOUND",
    "DRAFTERS",
    "DRAFT_MODEL",
    "OFF",
    "AllowedDraft",
    "Borrower",
    "Cost",
    "Draft",
    "DraftTally",
    "Drafter",
    "Drafters",
    "Features",
    "Observer",
    "Opening",
    "Proposal",
    "Speculator",
    "Stream",
    "drafter_names",
    "drafters_of",
]
