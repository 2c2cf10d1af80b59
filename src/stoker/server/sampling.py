"""From validated fields to what the engine is asked: `SamplingParams`, durations, a stream's usage."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from stoker.api.constraint import Constraint
from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.server.errors import refuse
from stoker.server.schemas import GenerationFields

# Fields whose names and meaning are those of `SamplingParams`; left out, they take its defaults, which are
# OpenAI's where OpenAI has the field.
_SAME_NAMES = (
    "temperature",
    "top_p",
    "top_k",
    "min_p",
    "typical_p",
    "n",
    "seed",
    "stop",
    "stop_token_ids",
    "min_tokens",
    "include_stop_str_in_output",
    "ignore_eos",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
    "prompt_logprobs",
    "skip_special_tokens",
)
_SECONDS_PER_UNIT: Mapping[str, float] = MappingProxyType({"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0})


def sampling_params(
    fields: GenerationFields,
    *,
    max_tokens: int | None,
    logprobs: int | None,
    constraint: Constraint | None = None,
) -> SamplingParams:
    """How tokens are chosen. Raises `Refusal` for values that contradict each other (min_ and max_tokens)."""
    given = {name: value for name in _SAME_NAMES if (value := getattr(fields, name)) is not None}
    if fields.logit_bias is not None:
        given["logit_bias"] = {int(token_id): bias for token_id, bias in fields.logit_bias.items()}
    try:
        return SamplingParams(**given, max_tokens=max_tokens, logprobs=logprobs, constraint=constraint)
    except RequestError as error:
        # Its messages begin with the name of the field.
        named = re.match(r"[a-z_]+", error.message)
        param = named.group() if named and named.group() in type(fields).model_fields else None
        raise refuse(param, str(error), code="invalid_value") from error


def seconds_of(keep_alive: float | str | None) -> float | None:
    """Seconds of a `keep_alive`, whose text form is that of Ollama: 300, "300", "5m", "-1"."""
    if not isinstance(keep_alive, str):
        return keep_alive
    for unit in ("ms", "s", "m", "h"):
        if keep_alive.endswith(unit):
            return float(keep_alive.removesuffix(unit)) * _SECONDS_PER_UNIT[unit]
    return float(keep_alive)


def streams_usage(fields: GenerationFields) -> tuple[bool, bool]:
    """(a last chunk with the usage, the usage in each chunk). Raises `Refusal` without `stream`."""
    options = fields.stream_options
    if options is None:
        return False, False
    if not fields.stream:
        raise refuse("stream_options", "stream_options is given, but stream is not true")
    continuous = bool(options.continuous_usage_stats)
    if continuous and not options.include_usage:
        raise refuse(
            "stream_options",
            "stream_options.continuous_usage_stats is true, but include_usage is not: allowed with it",
        )
    return bool(options.include_usage), continuous
