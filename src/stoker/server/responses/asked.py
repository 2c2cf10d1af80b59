"""One call of POST /v1/responses, understood: what the model is shown, and the answer's unchanging fields."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import msgspec

from stoker.api.chat import Message, Tool
from stoker.api.constraint import Constraint
from stoker.api.errors import PromptTooLongError, RequestError
from stoker.api.protocols import ServedModel
from stoker.api.request import Request, SamplingParams
from stoker.server.conversation import MAX_TOOLS, Conversation, ToolChoice, prepare
from stoker.server.errors import refuse
from stoker.server.field_names import FieldNames
from stoker.server.responses import schemas
from stoker.server.responses.fields import checked
from stoker.server.responses.items import Item
from stoker.server.responses.schemas import REFUSED_TOOLS, InputFields, ResponseRequest
from stoker.tools import AnswerParser

LOGPROBS = "message.output_text.logprobs"
_SAME_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "seed",
    "stop",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
# What the errors of constraints that cannot be enforced speak of.
_OF_CONSTRAINTS = re.compile(r"\b(constraint|schema|regex|grammar|tags)\b", re.IGNORECASE)
_CHOICES: Mapping[str, ToolChoice] = MappingProxyType(
    {"auto": ToolChoice("auto"), "none": ToolChoice("none"), "required": ToolChoice("required")}
)
FIELDS = FieldNames(
    messages="input",
    tool_name="tools[{}].name",
    tool_parameters="tools[{}].parameters",
    tool_call_id="input",
    tool_calls="input",
    name="input",
    constraint="text.format",
    effort="reasoning.effort",
)


@dataclass(frozen=True, slots=True)
class Asked:
    """What one response is to be made from."""

    id: str
    items: list[Item]  # this response's own input
    request: Request
    parser: AnswerParser
    wants_logprobs: bool
    head: Mapping[str, Any]  # the response object before its answer


def blamed(error: RequestError, request: Request) -> Exception:
    """`error`, with the name of the field if it is about what the answer must be."""
    constraint = request.sampling.constraint
    if constraint is None or isinstance(error, PromptTooLongError):
        return error
    if not _OF_CONSTRAINTS.search(error.message):
        return error
    return refuse("tools" if constraint.kind == "tags" else FIELDS.constraint, str(error))


def check(fields: ResponseRequest) -> None:
    """Refuse what contradicts itself, or is not done here, before a model is loaded."""
    if fields.stream_options is not None and not fields.stream:
        raise refuse("stream_options", "stream_options is given, but stream is not true")
    for number, name in enumerate(fields.include or ()):
        if name != LOGPROBS:
            raise refuse(
                f"include[{number}]",
                f"include[{number}] is {name!r:.80}, which no answer here has; allowed: {LOGPROBS}",
                code="unsupported_parameter",
            )
    if fields.background and fields.store is False:
        raise refuse("background", "background is true, but store is false: allowed with store only")
    if (
        fields.user is not None
        and fields.safety_identifier is not None
        and fields.user != fields.safety_identifier
    ):
        raise refuse("user", "user and safety_identifier differ; allowed: one of them")
    check_input(fields)
    sampling_of(fields)


def check_input(fields: InputFields) -> None:
    """Refuse tools and formats that are not known."""
    tools = tools_of(fields)
    choice_of(fields, tools)
    constraint_of(fields)


def tools_of(fields: InputFields) -> tuple[schemas.FunctionTool, ...]:
    """The functions a model may call. Raises `Refusal` by name for tools that this server would have to run
    itself."""
    given = fields.tools or []
    if len(given) > MAX_TOOLS:
        raise refuse("tools", f"tools has {len(given)} entries; allowed: at most {MAX_TOOLS}")
    return tuple(_tool(value, f"tools[{i}]") for i, value in enumerate(given))


def _tool(value: dict[str, Any], where: str) -> schemas.FunctionTool:
    kind = value.get("type")
    if kind != "function":
        base = next((name for name in REFUSED_TOOLS if str(kind).startswith(name)), None)
        reason = f": {REFUSED_TOOLS[base]}" if base is not None else ""
        raise refuse(
            f"{where}.type",
            f"{where}.type is {kind!r:.80}{reason}; allowed: function",
            code="unsupported_tool",
        )
    plain = dict(value)
    # What these ask for in this form is how calls are made here anyway.
    for name, meaningless in (("async", False), ("defer_loading", False), ("allowed_callers", ["direct"])):
        if name in plain and plain[name] in (None, meaningless):
            del plain[name]
    return checked(plain, schemas.FunctionTool, where)


def choice_of(fields: InputFields, tools: Sequence[schemas.FunctionTool]) -> ToolChoice:
    """Which tools may or must be called. Raises `Refusal` for one that is not among `tools`."""
    given = fields.tool_choice
    if given is None:
        return ToolChoice("auto")
    if isinstance(given, str):
        if given not in _CHOICES:
            raise refuse(
                "tool_choice", f"tool_choice is {given!r:.80}; allowed: {', '.join(_CHOICES)}, an object"
            )
        if given == "required" and not tools:
            raise refuse("tool_choice", 'tool_choice is "required", but there are no tools')
        return _CHOICES[given]
    kind = given.get("type")
    if kind == "function":
        return ToolChoice("named", (_known(given.get("name"), tools, "tool_choice.name"),))
    if kind == "allowed_tools":
        mode, allowed = given.get("mode"), given.get("tools")
        if mode not in ("auto", "required"):
            raise refuse("tool_choice.mode", f"tool_choice.mode is {mode!r:.80}; allowed: auto, required")
        if not isinstance(allowed, list) or not allowed:
            raise refuse(
                "tool_choice.tools", "tool_choice.tools is missing or empty; allowed: one tool or more"
            )
        names = []
        for i, tool in enumerate(allowed):
            where = f"tool_choice.tools[{i}]"
            if not isinstance(tool, dict) or tool.get("type") != "function":
                raise refuse(where, f'{where} is {tool!r:.80}; allowed: {{"type": "function", "name": ...}}')
            names.append(_known(tool.get("name"), tools, f"{where}.name"))
        return ToolChoice(mode, tuple(names))
    raise refuse(
        "tool_choice.type",
        f"tool_choice.type is {kind!r:.80}; allowed: function, allowed_tools",
        code="unsupported_tool",
    )


def _known(name: Any, tools: Sequence[schemas.FunctionTool], where: str) -> str:
    known = [tool.name for tool in tools]
    if name not in known:
        raise refuse(
            where, f"{where} is {name!r:.80}; allowed: one of tools: {', '.join(known) or 'none'}"[:600]
        )
    return str(name)


def constraint_of(fields: InputFields) -> Constraint | None:
    """What the text must look like."""
    given = None if fields.text is None else fields.text.format
    if given is None:
        return None
    where = "text.format"
    match given.get("type"):
        case "text":
            checked(given, schemas.FormatText, where)
            return None
        case "json_object":
            checked(given, schemas.FormatObject, where)
            return Constraint("json_object")
        case "json_schema":
            format_ = checked(given, schemas.FormatSchema, where)
            return Constraint("json_schema", msgspec.json.encode(format_.schema_).decode())
        case kind:
            raise refuse(
                f"{where}.type", f"{where}.type is {kind!r:.80}; allowed: text, json_object, json_schema"
            )


def sampling_of(fields: ResponseRequest, *, seed: int | None = None) -> SamplingParams:
    """How tokens are chosen; `seed` where the body has none."""
    given = {name: value for name in _SAME_NAMES if (value := getattr(fields, name)) is not None}
    if seed is not None:
        given.setdefault("seed", seed)
    wants = bool(fields.top_logprobs) or LOGPROBS in (fields.include or ())
    return SamplingParams(
        **given, max_tokens=fields.max_output_tokens, logprobs=(fields.top_logprobs or 0) if wants else None
    )


def conversation_of(fields: InputFields, messages: tuple[Message, ...], budget: int | None) -> Conversation:
    """What is prepared for a model."""
    tools = tools_of(fields)
    return Conversation(
        messages,
        tools=tuple(
            Tool(
                tool.name,
                tool.description or "",
                msgspec.json.encode(tool.parameters or {}).decode(),
                bool(tool.strict),
            )
            for tool in tools
        ),
        tool_choice=choice_of(fields, tools),
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        constraint=constraint_of(fields),
        reasoning_effort=None if fields.reasoning is None else fields.reasoning.effort,
        thinking_budget_tokens=budget,
        fields=FIELDS,
    )


def understood(
    fields: ResponseRequest,
    model: ServedModel,
    *,
    response_id: str,
    items: list[Item],
    messages: tuple[Message, ...],
    engine_id: str,
    tenant: str,
    created_s: int,
    stores: bool,
    seed: int | None = None,
) -> Asked:
    """One request to the engine. Raises `Refusal` for what this model cannot do."""
    sampling = sampling_of(fields, seed=seed)
    prepared = prepare(model, conversation_of(fields, messages, fields.thinking_token_budget), sampling)
    request = Request(
        engine_id,
        prepared.chat,
        prepared.sampling,
        model=model.card.name,
        priority=fields.priority or 0,
        tenant="/".join(part for part in (tenant, fields.safety_identifier or fields.user) if part),
        cache_salt=fields.cache_salt or "",
        deadline_ms=fields.deadline_ms,
        background=fields.service_tier == "flex",
    )
    return Asked(
        response_id,
        items,
        request,
        prepared.parser(f"{response_id}/0"),
        sampling.logprobs is not None,
        head_of(fields, model.card.name, response_id, created_s=created_s, stores=stores, seed=seed),
    )


def head_of(
    fields: ResponseRequest,
    model: str,
    response_id: str,
    *,
    created_s: int,
    stores: bool,
    seed: int | None,
) -> dict[str, Any]:
    """The response object before there is an answer."""
    effort = None if fields.reasoning is None else fields.reasoning.effort
    format_ = None if fields.text is None else fields.text.format
    return {
        "id": response_id,
        "object": "response",
        "created_at": created_s,
        "completed_at": None,
        "status": "in_progress",
        "error": None,
        "incomplete_details": None,
        "background": bool(fields.background),
        "instructions": fields.instructions,
        "max_output_tokens": fields.max_output_tokens,
        "metadata": fields.metadata or {},
        "model": model,
        "output": [],
        "parallel_tool_calls": fields.parallel_tool_calls is not False,
        "previous_response_id": fields.previous_response_id,
        "prompt_cache_key": fields.prompt_cache_key,
        "reasoning": {"effort": effort, "summary": None},
        "safety_identifier": fields.safety_identifier,
        "seed": fields.seed if fields.seed is not None else seed,
        "service_tier": "flex" if fields.service_tier == "flex" else "default",
        "store": stores,
        "temperature": 1.0 if fields.temperature is None else fields.temperature,
        "text": {"format": format_ or {"type": "text"}},
        "tool_choice": fields.tool_choice or "auto",
        "tools": [
            {
                "type": "function",
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
                "strict": bool(tool.strict),
            }
            for tool in tools_of(fields)
        ],
        "top_logprobs": fields.top_logprobs or 0,
        "top_p": 1.0 if fields.top_p is None else fields.top_p,
        "truncation": "disabled",
        "usage": None,
        "user": fields.user,
        "warnings": [],
    }
