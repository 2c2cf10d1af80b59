"""Tool calls and thoughts in text: how each model's template writes them, and one parser for all."""

from stoker.tools.arguments import arguments_schema, closed_schema
from stoker.tools.format import CallFormat, ChatFormat
from stoker.tools.parser import AnswerParser, CallMarks
from stoker.tools.parts import CallArguments, CallStart, Part, ReasoningPart, TextPart
from stoker.tools.registry import FORMATS, call_format_named, chat_format
from stoker.tools.thinking import ThinkingMarks

__all__ = [
    "FORMATS",
    "AnswerParser",
    "CallArguments",
    "CallFormat",
    "CallMarks",
    "CallStart",
    "ChatFormat",
    "Part",
    "ReasoningPart",
    "TextPart",
    "ThinkingMarks",
    "arguments_schema",
    "call_format_named",
    "chat_format",
    "closed_schema",
]
