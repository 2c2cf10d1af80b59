"""The formats, and which one a template's model writes."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from stoker.api.errors import RequestError
from stoker.tools.format import CallFormat, ChatFormat
from stoker.tools.generic import GENERIC
from stoker.tools.hermes import HERMES
from stoker.tools.thinking import thinking_marks

FORMATS: Mapping[str, CallFormat] = MappingProxyType(
    {call_format.name: call_format for call_format in (HERMES, GENERIC)}
)


def call_format_named(name: str) -> CallFormat:
    """A format of the registry. Raises `RequestError` that lists them."""
    if name not in FORMATS:
        raise RequestError(f"the tool format {name!r:.80} is not known; allowed: {', '.join(FORMATS)}")
    return FORMATS[name]


@lru_cache(maxsize=64)  # templates are long, and a server has few
def chat_format(template: str | None) -> ChatFormat:
    """What a template's source tells. Without one, calls are plain JSON and there are no thoughts."""
    source = template or ""
    return ChatFormat(call_format_named(_told_name(source)), thinking_marks(source), source)


def _told_name(source: str) -> str:
    if "tools" in source and "<tool_call>" in source and "<function=" not in source:
        return "hermes"
    return "generic"
