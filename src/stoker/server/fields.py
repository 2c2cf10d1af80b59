"""From a body's bytes to validated fields, or to a refusal that names the field and what is allowed."""

from __future__ import annotations

import gc
import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from stoker.server.chat_schemas import ChatMessage
from stoker.server.errors import Refusal, refuse
from stoker.server.first_mistake import MOST_OBJECTS

F = TypeVar("F", bound=BaseModel)

_TEXT_ONLY = "only text goes in and comes out"
_WHITE_SPACE = "white space in JSON is the model's choice"

# Fields that clients know and this server has not: why. A value in the second table asks for nothing that is
# not done anyway, and is let through.
REFUSED_FIELDS: Mapping[str, str] = MappingProxyType(
    {
        "functions": "they were replaced; allowed: tools",
        "function_call": "it was replaced; allowed: tool_choice, and tool_calls of a message",
        "guided_decoding_backend": "there is one way to enforce a grammar",
        "guided_whitespace_pattern": _WHITE_SPACE,
        "whitespace_pattern": _WHITE_SPACE,
        "moderation": "nothing here moderates",
        "prompt_cache_options": "prompts are cached as long as there is room for them",
        "prompt_cache_breakpoint": "prompts are cached to their last token",
        "prompt_cache_retention": "prompts are cached as long as there is room for them; allowed: in_memory",
        "audio": _TEXT_ONLY,
        "modalities": f'{_TEXT_ONLY}; allowed: ["text"]',
        "verbosity": "no model here takes it; allowed: medium",
        "web_search_options": "this server searches nothing",
        "suffix": "text in the middle of two others is not supported",
        "use_beam_search": "answers are sampled; allowed: false",
        "chat_template": "the model's own template is used",
        "documents": "not supported",
        "truncate_prompt_tokens": "prompts are never cut; one that is too long is a 400",
        "spaces_between_special_tokens": "allowed: true",
        "length_penalty": "answers are sampled; allowed: 1.0",
        "normalize": "embeddings have length 1; allowed: true",
        "embed_dtype": "embeddings are of 32-bit floats; allowed: float32",
        "endianness": "base64 is of little-endian numbers; allowed: little",
    }
)
_ACCEPTED_VALUES: Mapping[str, tuple[Any, ...]] = MappingProxyType(
    {
        "functions": ([],),
        "function_call": ("none",),
        "modalities": (["text"],),
        "verbosity": ("medium",),
        "prompt_cache_retention": ("in_memory",),
        "use_beam_search": (False,),
        "spaces_between_special_tokens": (True,),
        "length_penalty": (1.0, 1),
        "annotations": ([],),
        "normalize": (True,),
        "embed_dtype": ("float32",),
        "endianness": ("little",),
    }
)
_MOST_SHOWN = 80  # characters of a wrong value in a message
_LARGE_BODY_BYTES = 1 << 20
_MOST_FIELDS = 256  # of a body; a request has less than 60, and each that is not known is looked at


def parse(body: bytes, model: type[F]) -> F:
    """The fields of a JSON body. Raises `Refusal`.

    Null means left out, for known and unknown fields alike: clients send the answers' own objects back,
    whose empty fields are nulls.
    """
    given = body_object(body)
    known = model.model_fields
    cleaned = _without_defaults(given, known)
    messages = cleaned.get("messages")
    if "messages" in known and isinstance(messages, list) and len(messages) <= MOST_OBJECTS:
        cleaned["messages"] = [
            _without_defaults(m, ChatMessage.model_fields) if isinstance(m, dict) else m for m in messages
        ]
    try:
        return model.model_validate(cleaned)
    except ValidationError as error:
        raise _refusal_of(error, known) from None


def body_object(body: bytes) -> dict[str, Any]:
    """The JSON object that a body is. Raises `Refusal`."""
    try:
        given = _decoded(body)
    except UnicodeDecodeError as error:
        raise refuse(None, f"the body is not UTF-8: {error.reason}", code="invalid_json") from None
    except msgspec.MsgspecError as error:
        raise refuse(None, f"the body is not valid JSON: {error}", code="invalid_json") from None
    except RecursionError:
        raise refuse(None, "the body nests too deeply; allowed: some hundred levels") from None
    if not isinstance(given, dict):
        raise refuse(None, f"the body is a JSON {_kind(given)}; allowed: an object", code="invalid_json")
    if len(given) > _MOST_FIELDS:
        raise refuse(None, f"the body has {len(given)} fields; allowed: at most {_MOST_FIELDS}")
    return given


def _decoded(body: bytes) -> Any:
    """A large body without collections of garbage on the way: ten million lists took four times as long."""
    pauses = len(body) > _LARGE_BODY_BYTES and gc.isenabled()
    if pauses:
        gc.disable()
    try:
        return msgspec.json.decode(body)
    finally:
        if pauses:
            gc.enable()


def _without_defaults(given: dict[str, Any], known: Any) -> dict[str, Any]:
    """`given` without nulls and without fields that ask for what is done anyway."""
    return {
        name: value
        for name, value in given.items()
        if value is not None and (name in known or not _is_accepted(name, value))
    }


def _is_accepted(name: str, value: Any) -> bool:
    # `==` alone would take 1 for true; a bool only equals a bool here.
    return any(
        value == accepted and isinstance(value, bool) == isinstance(accepted, bool)
        for accepted in _ACCEPTED_VALUES.get(name, ())
    )


def _refusal_of(error: ValidationError, known: Any) -> Refusal:
    """One sentence for the first thing that is wrong."""
    errors = error.errors(include_url=False, include_context=False)
    of_field = _of_likeliest_form([e for e in errors if e["loc"][:1] == errors[0]["loc"][:1]])
    item = max(of_field, key=lambda e: (len(e["loc"]), e["type"] != "extra_forbidden"))
    param = _path(item["loc"])[:_MOST_SHOWN]
    last = str(item["loc"][-1]) if item["loc"] else ""
    if item["type"] == "extra_forbidden":
        if last in REFUSED_FIELDS:
            return refuse(param, f"{param}: {REFUSED_FIELDS[last]}", code="unsupported_parameter")
        is_top = len(item["loc"]) == 1
        allowed = f"; allowed: {', '.join(sorted(known))}" if is_top else ""
        return refuse(param, f"{param} is not a field of this request{allowed}", code="unknown_parameter")
    if item["type"] == "missing":
        return refuse(param, f"{param} is missing", code="missing_parameter")
    messages = sorted({e["msg"] for e in of_field if _path(e["loc"])[:_MOST_SHOWN] == param})
    message = "; or: ".join(text[:1].lower() + text[1:] for text in messages)  # several: a union's forms
    return refuse(param, f"{param} is {_shown(item['input'])}: {message}")


def _of_likeliest_form(errors: list[Any]) -> list[Any]:
    """Of a union's errors those of the form that was meant: its type fits, it fits furthest (a list is read
    up to its first mistake), and the least is wrong with it."""
    by_form: dict[tuple[int | str, ...], list[Any]] = {}
    for item in errors:
        location = item["loc"]
        place = next((i for i, part in enumerate(location[1:], 1) if _is_form(part)), None)
        if place is None:
            return errors  # wrong before any union, or in a field of one form
        by_form.setdefault(location[: place + 1], []).append(item)
    fitting = [
        (-_items_that_fit(group[0]["loc"][len(form) :]), len(group), group)
        for form, group in by_form.items()
        if not (len(group) == 1 and group[0]["loc"] == form and group[0]["type"].endswith("_type"))
    ]
    if not fitting:
        return errors
    best = min(rank[:2] for rank in fitting)
    return [item for *rank, group in fitting if tuple(rank) == best for item in group]


def _items_that_fit(location: tuple[int | str, ...]) -> float:
    """Before the mistake; of a list that is too long or too short, which is said of the list, all."""
    if not location:
        return math.inf
    return location[0] if isinstance(location[0], int) else 0


def _is_form(part: int | str) -> bool:
    """True for what pydantic puts into a location to name a union's form: str, list[TextPart], ..."""
    if isinstance(part, int):
        return False
    # A model's name begins with a capital letter, as no field's does.
    return (
        part in ("str", "int", "float")
        or "[" in part
        or part.startswith("constrained-")
        or part[:1].isupper()
    )


def _path(location: tuple[int | str, ...]) -> str:
    """("messages", 0, "content", "list[TextPart]", 1, "type") -> messages[0].content[1].type."""
    path = ""
    for place, part in enumerate(location):
        if isinstance(part, int):
            path += f"[{part}]"
        elif place == 0:
            path = part
        elif not _is_form(part):
            path += f".{part}"
    return path


def _shown(value: Any) -> str:
    if isinstance(value, str | list):
        value = value[: _MOST_SHOWN + 1]  # the whole may be megabytes
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."


def _kind(value: Any) -> str:
    for kind, name in ((bool, "boolean"), (str, "string"), (int | float, "number"), (list, "array")):
        if isinstance(value, kind):
            return name
    return "null"
