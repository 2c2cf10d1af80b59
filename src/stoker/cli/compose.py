"""Where options become objects. The only place that knows both a flag's value and what it is for."""

from __future__ import annotations

from stoker.api.request import SamplingParams

# A base model seldom ends by itself; without a bound `stoker run` would fill the whole context.
PLAIN_MAX_TOKENS = 256


def sampling_params(
    *,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int | None,
) -> SamplingParams:
    """Sampling parameters as the options say; raises RequestError for a value out of range."""
    return SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
    )
