"""The fields that say what an answer must be, as pydantic models."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from stoker.server.chat_schemas import Fields


class JsonSchemaFormat(Fields):
    """A schema for the answer."""

    name: str | None = Field(None, max_length=256, description="Shown to nobody.")
    description: str | None = Field(None, description="Shown to nobody.")
    json_schema: dict[str, Any] | None = Field(None, alias="schema", description="Default: any object.")
    strict: bool | None = Field(None, description="The schema is enforced in any case.")


class ResponseFormat(Fields):
    """What the answer must be."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchemaFormat | None = Field(None, description="Needed by type json_schema.")


class StructuredOutputs(Fields):
    """What the answer must be, in vLLM's words: one of these."""

    json_: dict[str, Any] | str | None = Field(None, alias="json", description="A JSON Schema.")
    regex: str | None = Field(None, min_length=1)
    choice: Annotated[list[str], Field(min_length=1)] | None = Field(None, description="One of these texts.")
    grammar: str | None = Field(None, min_length=1, description="In Lark's notation, as llguidance has it.")
    json_object: Literal[True] | None = None
    structural_tag: dict[str, Any] | str | None = Field(
        None, description="Text in which tags begin and end so, with JSON between: structures, triggers."
    )
    disable_fallback: Literal[False] | None = Field(None, description="There is one way to enforce it.")
    disable_any_whitespace: Literal[False] | None = Field(
        None, description="White space in JSON is the model's choice."
    )
    disable_additional_properties: Literal[False] | None = Field(
        None, description="The schema says it: additionalProperties."
    )


class TagStructure(Fields):
    """A tag of `structural_tag`."""

    begin: str = Field(min_length=1)
    schema_: dict[str, Any] = Field(alias="schema")
    end: str


class StructuralTag(Fields):
    """The value of `structural_tag`."""

    type: Literal["structural_tag"] | None = None
    structures: list[TagStructure] = Field(min_length=1)
    triggers: list[Annotated[str, Field(min_length=1)]] = Field(min_length=1)
