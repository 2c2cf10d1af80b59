"""POST /v1/chat/completions: messages in, an answer out."""

from __future__ import annotations

from stoker.api.protocols import ServedModel
from stoker.api.request import Prompt, Request, SamplingParams
from stoker.server.asked import Asked
from stoker.server.errors import refuse
from stoker.server.generation import Generation
from stoker.server.http import Scope, request_id, tenant
from stoker.server.sampling import messages_of, sampling_params, streams_usage
from stoker.server.schemas import ChatCompletionRequest, GenerationFields
from stoker.server.service import Service
from stoker.server.shapes import CHAT


def chat_endpoint(service: Service) -> Generation[ChatCompletionRequest]:
    """The handler of POST /v1/chat/completions."""
    return Generation(service, CHAT, ChatCompletionRequest, check, understand)


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
    _params(fields)


async def understand(
    service: Service, scope: Scope, fields: ChatCompletionRequest, model: ServedModel
) -> Asked:
    """One request to the engine. Raises `Refusal` for a model without a chat template."""
    if not model.has_chat_template:
        raise refuse(
            "messages",
            f"{model.card.name} has no chat template (it is a base model); allowed: POST /v1/completions",
        )
    include_usage, continuous_usage = streams_usage(fields)
    messages = messages_of(fields.messages)
    prompt_ids = None
    if continuous_usage or fields.return_token_ids:
        prompt_ids = (tuple(await model.encode(messages)),)
    return Asked(
        (engine_request(service, scope, fields, model, messages, _params(fields)),),
        stream=bool(fields.stream),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        return_token_ids=bool(fields.return_token_ids),
        prompt_ids=prompt_ids,
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
    who = "/".join(part for part in (tenant(scope), fields.user) if part)
    return Request(
        service.engine_id(request_id(scope), number),
        prompt,
        params,
        model=model.card.name,
        priority=fields.priority or 0,
        tenant=who,
        cache_salt=fields.cache_salt or "",
        deadline_ms=fields.deadline_ms,
    )


def _params(fields: ChatCompletionRequest) -> SamplingParams:
    max_tokens = fields.max_completion_tokens if fields.max_tokens is None else fields.max_tokens
    logprobs = (fields.top_logprobs or 0) if fields.logprobs else None
    return sampling_params(fields, max_tokens=max_tokens, logprobs=logprobs)
