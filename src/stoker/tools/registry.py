"""The formats, and which one a template's model writes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from types import MappingProxyType

from stoker.api.errors import RequestError
from stoker.tools.format import CallFormat, ChatFormat
from stoker.tools.gemma import GEMMA
from stoker.tools.generic import GENERIC
from stoker.tools.hermes import HERMES
from stoker.tools.llama3 import LLAMA3
from stoker.tools.mistral import MISTRAL, MISTRAL_NAMED, MISTRAL_SPACED
from stoker.tools.thinking import thinking_marks

FORMATS: Mapping[str, CallFormat] = MappingProxyType(
    {
        call_format.name: call_format
        for call_format in (HERMES, LLAMA3, MISTRAL, MISTRAL_SPACED, MISTRAL_NAMED, GEMMA, GENERIC)
    }
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
    """The format that a template renders calls in; in none that is known: plain text."""
    if re.search(r"\btools\b", source) is None:
        return "gemma" if "<start_of_turn>" in source else "generic"
    if "[TOOL_CALLS]" in source:
        if "[ARGS]" in source:
            return "mistral-named"
        return "mistral-spaced" if "[TOOL_CALLS] [" in source else "mistral"
    if "<tool_call>" in source and "<function=" not in source and "<arg_key>" not in source:
        return "hermes"
    if "<|start_header_id|>" in source and '"parameters": ' in source:
        return "llama3"
    return "generic"
