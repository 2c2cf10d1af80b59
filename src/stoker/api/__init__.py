"""The waist of the hourglass: requests, events, endpoints, errors. Standard library only."""

from stoker.api.chat import Chat, Message, Tool, ToolCall
from stoker.api.constraint import Constraint, Tag, Tags, Thinking
from stoker.api.events import (
    DoneEvent,
    EmbeddingEvent,
    Event,
    FinishReason,
    PromptEvent,
    TokenLogprob,
    TokensEvent,
    Usage,
)
from stoker.api.protocols import Endpoint, ModelCard, ModelHost, SeedSource, ServedModel
from stoker.api.request import Prompt, Request, SamplingParams
from stoker.api.stats import EngineStats, HotPrefix

__all__ = [
    "Chat",
    "Constraint",
    "DoneEvent",
    "EmbeddingEvent",
    "Endpoint",
    "EngineStats",
    "Event",
    "FinishReason",
    "HotPrefix",
    "Message",
    "ModelCard",
    "ModelHost",
    "Prompt",
    "PromptEvent",
    "Request",
    "SamplingParams",
    "SeedSource",
    "ServedModel",
    "Tag",
    "Tags",
    "Thinking",
    "TokenLogprob",
    "TokensEvent",
    "Tool",
    "ToolCall",
    "Usage",
]
