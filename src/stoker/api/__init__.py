"""The waist of the hourglass: requests, events, endpoints, errors. Standard library only."""

from stoker.api.events import DoneEvent, Event, FinishReason, TokenLogprob, TokensEvent, Usage
from stoker.api.protocols import Endpoint, ModelCard, ModelHost, SeedSource, ServedModel
from stoker.api.request import Message, Prompt, Request, SamplingParams
from stoker.api.stats import EngineStats, HotPrefix

__all__ = [
    "DoneEvent",
    "Endpoint",
    "EngineStats",
    "Event",
    "FinishReason",
    "HotPrefix",
    "Message",
    "ModelCard",
    "ModelHost",
    "Prompt",
    "Request",
    "SamplingParams",
    "SeedSource",
    "ServedModel",
    "TokenLogprob",
    "TokensEvent",
    "Usage",
]
