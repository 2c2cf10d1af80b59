"""POST /v1/chat/completions: messages in, an answer out."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING

from stoker.api.constraint import Constraint
from stoker.api.protocols import ServedModel
from stoker.api.request import Prompt, Request, SamplingParams
from stoker.server.asked import Asked
from stoker.server.chat_messages import messages_of, tool_choice_of, tools_of
from stoker.server.constraints import constraint_of
from stoker.server.continuation import open_prompt
from stoker.server.conversation import Conversation, FieldNames, prepare
from stoker.server.errors import refuse
from stoker.server.generation import Generation
from stoker.server.http import Scope, owner, request_id, tenant
from stoker.server.sampling import sampling_params, streams_usage
from stoker.server.schemas import ChatCompletionRequest, GenerationFields
from stoker.server.service import Service
from stoker.server.shapes import CHAT

if TYPE_CHECKING:
    from stoker.server.stored_chats import ChatStore


def chat_endpoint(service: Service, store: ChatStore | None = None) -> Generation[ChatCompletionRequest]:
    """The handler of POST /v1/chat/completions. Without `store` no answer can be kept."""
    return Generation(service, CHAT, ChatCompletionRequest, check, functools.partial(understand, store=store))


def check(fields: ChatCompletionRequest) -> None:
    """Refuse what contradicts itself."""
    streams_usage(fields)
    both = (fields.max_tokens, fields.max_completion_tokens)
    if None not in both and both[0] != both[1]:
        raise refuse(
            "max_completion_tokens",
            f"max_completion_tokens is {both[1]}, but max_tokens is {both[0]}: allowed: one of them",
        )
    if fields.top_logprobs is not None and not fields.logprobs:
        raise refuse("top_logprobs", "top_logprobs is given, but logprobs is not true")
    if fields.continue_final_message and fields.add_generation_prompt:
        raise refuse(
            "continue_final_message",
            "continue_final_message is true, but so is add_generation_prompt: allowed: one of them",
        )
    if fields.metadata and not fields.store:
        raise refuse("metadata", "metadata is given, but store is not true: nothing would carry it")
    _params(fields, constraint_of(fields)[0])


async def understand(
    service: Service,
    scope: Scope,
    fields: ChatCompletionRequest,
    model: ServedModel,
    *,
    store: ChatStore | None = None,
) -> Asked:
    """One request to the engine. Raises `Refusal` for a model without a chat template."""
    include_usage, continuous_usage = streams_usage(fields)
    constraint, constraint_field = constraint_of(fields)
    conversation = conversation_of(fields, constraint, constraint_field)
    prepared = prepare(model, conversation, _params(fields, constraint))
    prompt: Prompt = prepared.chat
    if fields.continue_final_message:
        prompt = await open_prompt(model, prepared.chat)
    prompt_ids = None
    if continuous_usage or fields.return_token_ids:
        prompt_ids = (tuple(await model.encode(prompt)),)
    answer_id, keep = None, None
    if fields.store:
        if store is None:
            raise refuse("store", "store is true, but this server keeps nothing; allowed: false")
        answer_id = await store.new_id(owner(scope), request_id(scope))
        keep = functools.partial(
            store.keep,
            owner(scope),
            messages=[message.model_dump(exclude_none=True) for message in fields.messages],
            metadata=fields.metadata or {},
        )
    request = engine_request(service, scope, fields, model, prompt, prepared.sampling)
    if fields.prediction is not None:
        request = dataclasses.replace(request, prediction=fields.prediction.text)
    return Asked(
        (request,),
        stream=bool(fields.stream),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        return_token_ids=bool(fields.return_token_ids),
        prompt_ids=prompt_ids,
        prompt_logprobs=fields.prompt_logprobs is not None,
        parser=None if prepared.is_plain else prepared.parser,
        answer_id=answer_id,
        keep=keep,
        service_tier=tier_of(fields),
        field_to_blame=prepared.field_to_blame,
    )


def conversation_of(
    fields: ChatCompletionRequest, constraint: Constraint | None, constraint_field: str
) -> Conversation:
    """What `fields` ask for, apart from how tokens are chosen. Raises `Refusal`."""
    return Conversation(
        messages_of(fields.messages),
        tools=tools_of(fields.tools),
        tool_choice=tool_choice_of(fields.tool_choice),
        parallel_tool_calls=fields.parallel_tool_calls is not False,
        constraint=constraint,
        reasoning_effort=fields.reasoning_effort,
        thinking_budget_tokens=fields.thinking_token_budget,
        variables=fields.chat_template_kwargs or {},
        add_generation_prompt=fields.add_generation_prompt is not False and not fields.continue_final_message,
        fields=FieldNames(constraint=constraint_field),
    )


def engine_request(
    service: Service,
    scope: Scope,
    fields: GenerationFields,
    model: ServedModel,
    prompt: Prompt,
    params: SamplingParams,
    *,
    number: int = 0,
) -> Request:
    """A request to the engine, with an id of its own and the tenant that the key and `user` make."""
    user = fields.user or fields.safety_identifier
    who = "/".join(part for part in (tenant(scope), user) if part)
    return Request(
        service.engine_id(request_id(scope), number),
        prompt,
        params,
        model=model.card.name,
        priority=fields.priority or 0,
        tenant=who,
        cache_salt=fields.cache_salt or "",
        deadline_ms=fields.deadline_ms,
        background=fields.service_tier == "flex",
    )


def tier_of(fields: GenerationFields) -> str | None:
    """The tier that answers, if one was asked for."""
    if fields.service_tier is None:
        return None
    return "flex" if fields.service_tier == "flex" else "default"


def _params(fields: ChatCompletionRequest, constraint: Constraint | None) -> SamplingParams:
    max_tokens = fields.max_completion_tokens if fields.max_tokens is None else fields.max_tokens
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    return sampling_params(fields, max_tokens=max_tokens, logprobs=logprobs, constraint=constraint)
