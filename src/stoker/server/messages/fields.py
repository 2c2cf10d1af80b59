"""From a body's bytes to validated fields, or to a refusal that names the field and what is allowed."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from stoker.server.errors import Refusal, refuse
from stoker.server.fields import body_object
from stoker.server.messages.errors import UNSUPPORTED_THREAD

F = TypeVar("F", bound=BaseModel)

_TEXT_ONLY = "only text goes in and comes out"
_OTHER_TOOLS = "this server runs no tools; allowed: custom tools, with name and input_schema"
_ONE_PLACE = "there is one place here, this machine"

# Fields that clients know and this server has not: why.
REFUSED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "billing_policy": "nothing is billed",
        "compaction": "a conversation is never cut here",
        "container": _OTHER_TOOLS,
        "mcp_servers": _OTHER_TOOLS,
        "toolset_name": _OTHER_TOOLS,
        "diagnostics": "why a prefix was not in the cache is not told",
        "fallback_credit_token": "nothing is billed",
        "fallbacks": "the model that is asked answers, or none does",
        "inference_geo": _ONE_PLACE,
        "thread": "conversations are not kept between requests; send all messages",
        "user_profile_id": "allowed: metadata.user_id",
        "workspace_id": _ONE_PLACE,
        "n": "one answer is given to a request",
        "stop": "it is called stop_sequences here",
        "response_format": "it is called output_config.format here",
        "output_format": "it is called output_config.format here",
        "max_completion_tokens": "it is called max_tokens here",
        "transformations": _TEXT_ONLY,
    }
)
# Kinds of content blocks, likewise.
_REFUSED_BLOCKS: Mapping[str, str] = MappingProxyType(
    {
        "image": f"pictures are not understood: {_TEXT_ONLY}",
        "document": f"documents are not understood: {_TEXT_ONLY}",
        "search_result": "nothing here cites; allowed: its text as a text block",
        "redacted_thinking": "thoughts that another server has encrypted cannot be read here; leave them out",
        "container_upload": _OTHER_TOOLS,
        "tool_reference": "there is no tool search",
    }
)
# pydantic's own speak of Python.
_MESSAGES: Mapping[str, str] = MappingProxyType(
    {
        "model_type": "allowed: an object",
        "model_attributes_type": "allowed: an object",
        "dict_type": "allowed: an object",
        "list_type": "allowed: a list",
    }
)
_BLOCK_TAGS = frozenset({"text", "thinking", "tool_use", "tool_result"})
_MOST_SHOWN = 80  # characters of a wrong value in a message


def parse(body: bytes, model: type[F]) -> F:
    """The fields of a JSON body. Raises `Refusal`."""
    given = body_object(body)
    try:
        return model.model_validate(given)
    except ValidationError as error:
        raise _refusal_of(error, model.model_fields) from None
    except RecursionError:
        raise refuse(None, "the body nests too deeply; allowed: some hundred levels") from None


def _refusal_of(error: ValidationError, known: Any) -> Refusal:
    """One sentence for the first thing that is wrong; a wrong kind of something before what it lacks."""
    errors = error.errors(include_url=False, include_context=False)
    of_place = [e for e in errors if e["loc"][:2] == errors[0]["loc"][:2]]
    item = next((e for e in of_place if e["loc"] and e["loc"][-1] == "type"), of_place[0])
    location, given = item["loc"], item["input"]
    path = _path(location)
    last = str(location[-1]) if location else ""
    if item["type"] == "extra_forbidden":
        if last in REFUSED_FIELDS:
            code = UNSUPPORTED_THREAD if path == "thread" else "unsupported_parameter"
            return refuse(path, f"{path}: {REFUSED_FIELDS[last]}", code=code)
        allowed = f"; allowed: {', '.join(sorted(known))}" if len(location) == 1 else ""
        return refuse(path, f"{path} is not a field of this request{allowed}", code="unknown_parameter")
    if item["type"] == "missing":
        return refuse(path, f"{path} is missing", code="missing_parameter")
    if item["type"] in ("union_tag_invalid", "union_tag_not_found"):
        kind = given.get("type") if isinstance(given, Mapping) else None
        reason = _REFUSED_BLOCKS.get(str(kind)) or f"allowed: {', '.join(sorted(_BLOCK_TAGS))}"
        return refuse(f"{path}.type", f"{path}.type is {_shown(kind)}: {reason}")
    if path.startswith("tools[") and last == "type":
        return refuse(path, f"{path} is {_shown(given)}: {_OTHER_TOOLS}", code="unsupported_parameter")
    message = _MESSAGES.get(item["type"]) or item["msg"][:1].lower() + item["msg"][1:]
    if item["type"] == "list_type" and last in ("content", "system"):
        message = "allowed: a text, or a list of blocks"
    reason = _REFUSED_BLOCKS.get(given, "") if last == "type" and isinstance(given, str) else ""
    return refuse(path, f"{path} is {_shown(given)}: {reason or message}")


def _path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", 1, "text", "text") -> messages[0].content[1].text: the block's kind, which
    pydantic puts after its place, is left out."""
    path = ""
    for place, part in enumerate(location):
        before = location[place - 1] if place else ""
        if isinstance(part, int):
            path += f"[{part}]"
        elif place == 0:
            path = part
        elif isinstance(before, int) and part in _BLOCK_TAGS and place + 1 < len(location):
            continue
        elif part not in ("float", "str") and not part.startswith("constrained-"):
            path += f".{part}"
    return path


def _shown(value: Any) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError, RecursionError):
        text = repr(type(value).__name__)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
