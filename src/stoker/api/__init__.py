"""The waist of the hourglass: requests, events, endpoints, errors. Standard library only."""

from stoker.api.events import DoneEvent, Event, FinishReason, TokenLogprob, TokensEvent, Usage
from stoker.api.protocols import Endpoint, SeedSource
from stoker.api.request import Message, Prompt, Request, SamplingParams

__all__ = [
    "DoneEvent",
    "Endpoint",
    "Event",
    "FinishReason",
    "Message",
    "Prompt",
    "Request",
    "SamplingParams",
    "SeedSource",
    "TokenLogprob",
    "TokensEvent",
    "Usage",
]
