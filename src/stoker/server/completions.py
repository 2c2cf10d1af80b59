"""POST /v1/completions: texts or token ids in, their continuations out."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

from stoker.api.constraint import Constraint
from stoker.api.protocols import ServedModel
from stoker.api.request import SamplingParams
from stoker.server.asked import Asked
from stoker.server.chat import engine_request, tier_of
from stoker.server.constraints import closed, constraint_of
from stoker.server.errors import refuse
from stoker.server.generation import Generation
from stoker.server.http import Scope
from stoker.server.sampling import sampling_params, streams_usage
from stoker.server.schemas import DEFAULT_COMPLETION_TOKENS, CompletionRequest
from stoker.server.service import Service
from stoker.server.shapes import TEXT


def completions_endpoint(service: Service) -> Generation[CompletionRequest]:
    """The handler of POST /v1/completions."""
    return Generation(service, TEXT, CompletionRequest, check, understand)


def check(fields: CompletionRequest) -> None:
    """Refuse what contradicts itself."""
    streams_usage(fields)
    n = fields.n or 1
    if fields.best_of is not None and fields.best_of != n:
        raise refuse(
            "best_of",
            f"best_of is {fields.best_of}; allowed: n, which is {n} (no draw is thrown away)",
        )
    _params(fields, constraint_of(fields)[0])


async def understand(service: Service, scope: Scope, fields: CompletionRequest, model: ServedModel) -> Asked:
    """A request to the engine for each prompt. Raises `RequestError` for token ids the model has not."""
    include_usage, continuous_usage = streams_usage(fields)
    prompts = _prompts(fields)
    constraint, constraint_field = constraint_of(fields)
    params = _params(fields, None if constraint is None else closed(constraint))
    echo_logprobs = bool(fields.echo) and fields.logprobs is not None
    prompt_ids = None
    if continuous_usage or fields.return_token_ids or echo_logprobs:
        prompt_ids = tuple([tuple(await model.encode(prompt)) for prompt in prompts])
    echoes = None
    if fields.echo:
        echoes = tuple(p if isinstance(p, str) else model.decode(list(p)) for p in prompts)
    return Asked(
        tuple(
            engine_request(service, scope, fields, model, prompt, params, number=number)
            for number, prompt in enumerate(prompts)
        ),
        stream=bool(fields.stream),
        include_usage=include_usage,
        continuous_usage=continuous_usage,
        return_token_ids=bool(fields.return_token_ids),
        prompt_ids=prompt_ids,
        echoes=echoes,
        echo_logprobs=echo_logprobs,
        prompt_logprobs=fields.prompt_logprobs is not None,
        service_tier=tier_of(fields),
        field_to_blame=lambda message: constraint_field,
    )


def _prompts(fields: CompletionRequest) -> list[str | tuple[int, ...]]:
    prompt = fields.prompt
    if isinstance(prompt, str):
        return [prompt]
    if isinstance(prompt[0], int):
        return [tuple(prompt)]
    return [item if isinstance(item, str) else tuple(item) for item in cast("list[str | list[int]]", prompt)]


def _params(fields: CompletionRequest, constraint: Constraint | None) -> SamplingParams:
    max_tokens = DEFAULT_COMPLETION_TOKENS if fields.max_tokens is None else fields.max_tokens
    # A default must not contradict what was asked for.
    if fields.max_tokens is None and fields.min_tokens is not None:
        max_tokens = max(max_tokens, fields.min_tokens)
    params = sampling_params(fields, max_tokens=max_tokens, logprobs=fields.logprobs, constraint=constraint)
    if fields.echo and fields.logprobs is not None and fields.prompt_logprobs is None:
        params = replace(params, prompt_logprobs=fields.logprobs)
    return params
