"""From the fields that say what an answer must be to a `Constraint`: OpenAI's, vLLM's, vLLM's older ones."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import msgspec
from pydantic import ValidationError

from stoker.api.constraint import Constraint, Tag, Tags
from stoker.api.errors import RequestError
from stoker.server.errors import refuse
from stoker.server.output_schemas import ResponseFormat, StructuralTag, StructuredOutputs
from stoker.server.schemas import GenerationFields
from stoker.tools import closed_schema

_GUIDED = ("guided_json", "guided_regex", "guided_choice", "guided_grammar")


def constraint_of(fields: GenerationFields) -> tuple[Constraint | None, str]:
    """What the answer must be, and the field that says so. Raises `Refusal`, also for two of them."""
    given = [name for name in _GUIDED if getattr(fields, name) is not None]
    outputs = fields.structured_outputs
    if outputs is not None:
        given += [f"structured_outputs.{name}" for name in _kinds(outputs)]
        if not _kinds(outputs):
            raise refuse(
                "structured_outputs",
                "structured_outputs is empty; allowed: one of json, regex, choice, grammar, json_object, "
                "structural_tag",
            )
    form = fields.response_format
    if form is not None and form.type != "text":
        given.append("response_format")
    if len(given) > 1:
        raise refuse(given[1], f"{' and '.join(given)} are given; allowed: one of them")
    if not given:
        return None, "response_format"
    name = given[0]
    if form is not None and name == "response_format":
        return _of_format(form), name
    kind = name.rpartition(".")[2].removeprefix("guided_")
    value = getattr(fields, name) if name in _GUIDED else _kinds(outputs)[kind]
    return made(name, lambda: _of_kind(name, kind, value)), name


def closed(constraint: Constraint) -> Constraint:
    """`constraint`, without properties that its schema does not name, unless that says others may come."""
    if constraint.kind != "json_schema":
        return constraint
    schema = json.loads(constraint.text)
    if not isinstance(schema, dict):
        return constraint
    return Constraint("json_schema", json.dumps(closed_schema(schema), ensure_ascii=False))


def _kinds(outputs: StructuredOutputs | None) -> dict[str, Any]:
    if outputs is None:
        return {}
    given = outputs.model_dump(by_alias=True, exclude_none=True)
    return {name: value for name, value in given.items() if not name.startswith("disable_")}


def _of_format(form: ResponseFormat) -> Constraint:
    if form.type == "json_object":
        if form.json_schema is not None:
            raise refuse(
                "response_format.json_schema",
                "response_format.json_schema is given, but type is json_object; allowed: json_schema",
            )
        return Constraint("json_object")
    if form.json_schema is None:
        raise refuse(
            "response_format.json_schema", "response_format.json_schema is missing: type is json_schema"
        )
    schema = form.json_schema.json_schema
    if schema is None:
        return Constraint("json_object")
    where = "response_format.json_schema.schema"
    return made(where, lambda: Constraint("json_schema", schema_text(where, schema)))


def _of_kind(name: str, kind: str, value: Any) -> Constraint:
    if kind == "json":
        schema = _object(name, value) if isinstance(value, str) else value
        return Constraint("json_schema", schema_text(name, schema))
    if kind == "json_object":
        return Constraint("json_object")
    if kind == "regex":
        return Constraint("regex", value)
    if kind == "choice":
        return Constraint("choice", choices=tuple(value))
    if kind == "grammar":
        return Constraint("lark", value)
    return Constraint("tags", tags=_structural_tag(name, value))


def made(where: str, make: Callable[[], Constraint]) -> Constraint:
    """What `make` makes; its `RequestError` becomes a `Refusal` that names `where`."""
    try:
        return make()
    except RequestError as error:
        raise refuse(where, f"{where}: {error}") from None


def schema_text(where: str, schema: dict[str, Any]) -> str:
    """A schema as JSON text. Raises `Refusal` for what JSON has not, or what nests too deeply."""
    try:
        return json.dumps(schema, ensure_ascii=False, allow_nan=False)
    except (ValueError, RecursionError) as error:
        raise refuse(where, f"{where} is no JSON Schema: {error}") from None


def _object(where: str, text: str) -> dict[str, Any]:
    try:
        value = msgspec.json.decode(text)
    except (msgspec.MsgspecError, RecursionError, UnicodeError) as error:
        raise refuse(where, f"{where} is {text!r:.80}: not JSON: {error}") from None
    if not isinstance(value, dict):
        raise refuse(where, f"{where} is {text!r:.80}; allowed: the JSON of an object")
    return value


def _structural_tag(where: str, value: dict[str, Any] | str) -> Tags:
    given = _object(where, value) if isinstance(value, str) else value
    try:
        tag = StructuralTag.model_validate(given)
    except ValidationError as error:
        item = error.errors(include_url=False)[0]
        place = ".".join(str(part) for part in item["loc"])
        raise refuse(
            where,
            f"{where}.{place}: {item['msg']}; allowed: structures (begin, schema, end) and triggers",
        ) from None
    for structure in tag.structures:
        if not any(structure.begin.startswith(trigger) for trigger in tag.triggers):
            raise refuse(
                where, f"{where}: the begin {structure.begin!r:.80} starts with none of the triggers"
            )
    return Tags(
        tuple(Tag(s.begin, schema_text(where, s.schema_), s.end) for s in tag.structures),
        triggers=tuple(tag.triggers),
        text=True,
    )
