"""From a body's bytes to validated fields, or to a refusal that names the place and what is allowed."""

from __future__ import annotations

from typing import Any, TypeVar

import msgspec
from pydantic import BaseModel, ValidationError

from stoker.server.errors import Refusal, refuse
from stoker.server.fields import body_object
from stoker.server.responses.schemas import REFUSED

F = TypeVar("F", bound=BaseModel)

_MOST_SHOWN = 80  # characters of a wrong value in a message


def parse(body: bytes, model: type[F]) -> F:
    """The fields of a JSON body. Null means left out. Raises `Refusal`."""
    given = body_object(body)
    for name, value in list(given.items()):
        if name in REFUSED and value is not None:
            reason, accepted = REFUSED[name]
            if value not in accepted:
                raise refuse(name, f"{name} is {_shown(value)}: {reason}", code="unsupported_parameter")
            del given[name]
    return checked(given, model, "")


def checked(value: Any, model: type[F], where: str) -> F:
    """`value` as fields of `model`, nulls left out. `where`: its place in the body. Raises `Refusal`."""
    if not isinstance(value, dict):
        raise refuse(where, f"{where} is {_shown(value)}; allowed: an object")
    try:
        return model.model_validate({name: given for name, given in value.items() if given is not None})
    except ValidationError as error:
        raise _refusal_of(error, model, where) from None


def _refusal_of(error: ValidationError, model: type[BaseModel], where: str) -> Refusal:
    # Of a union's forms the one that came furthest; of several that came as far, all.
    errors = error.errors(include_url=False, include_context=False)
    first = [item for item in errors if item["loc"][:1] == errors[0]["loc"][:1]]
    longest = max(len(_steps(item["loc"])) for item in first)
    furthest = [item for item in first if len(_steps(item["loc"])) == longest]
    item = furthest[0]
    path = where
    for step in _steps(item["loc"]):
        path += f"[{step}]" if isinstance(step, int) else f".{step}" if path else step
    if item["type"] == "extra_forbidden":
        names = sorted(field.alias or name for name, field in model.model_fields.items())
        allowed = f"; allowed: {', '.join(names)}" if len(item["loc"]) == 1 else ""
        return refuse(path, f"{path} is not a known field{allowed}", code="unknown_parameter")
    if item["type"] == "missing":
        return refuse(path, f"{path} is missing", code="missing_parameter")
    messages = dict.fromkeys(_said(complaint) for complaint in furthest)
    text = "; or: ".join(message[:1].lower() + message[1:] for message in messages)
    return refuse(path, f"{path} is {_shown(item['input'])}: {text}")


def _said(complaint: Any) -> str:
    if complaint["type"] == "none_required":
        return "not supported here; allowed: null"
    return str(complaint["msg"]).replace("a valid dictionary", "an object").replace("be False", "be false")


def _steps(location: tuple[int | str, ...]) -> list[int | str]:
    """The place without what pydantic puts into it to name a union's form: str, list[...], ..."""
    return [
        step
        for step in location
        if isinstance(step, int)
        or not (step in ("str", "int", "float", "bool") or "[" in step or step.startswith("constrained-"))
    ]


def _shown(value: Any) -> str:
    try:
        text = msgspec.json.encode(value).decode()
    except (TypeError, ValueError, msgspec.MsgspecError):
        text = repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[:_MOST_SHOWN]}..."
