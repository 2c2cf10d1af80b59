"""What is sent: the loads with names, and how prompts and times of one come from its seed."""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from stoker.api.errors import RequestError

if TYPE_CHECKING:
    from stoker.bench.serve_target import Target

# Prompts are made before the run and held as JSON: about 6 bytes a token.
MOST_PROMPT_TOKENS = 50_000_000
MOST_CONCURRENCY = 4096
INTRUDER_OUTPUT_TOKENS = 16


@dataclass(frozen=True, slots=True)
class Load:
    """A number of requests alike in size. Every prompt's own part is different; the prefix is the same."""

    requests: int = 64
    concurrency: int = 32
    rate: float | None = None  # requests per second, Poisson; then `concurrency` bounds nothing
    prompt_tokens: int = 64  # of the own part
    output_tokens: int = 64
    shared_prefix_tokens: int = 0  # before the own part
    prefix_is_cached: bool = False  # the warm-up sends the same prefix
    warmup: int = 4  # requests that are not counted
    intruder_tokens: int = 0  # a longer prompt that arrives while all `concurrency` streams run

    def __post_init__(self) -> None:
        """Raise RequestError for what cannot be sent."""
        for name, least in (
            *(("requests", 1), ("concurrency", 1), ("prompt_tokens", 1), ("output_tokens", 1)),
            *(("shared_prefix_tokens", 0), ("warmup", 0), ("intruder_tokens", 0)),
        ):
            if getattr(self, name) < least:
                raise RequestError(f"{name} is {getattr(self, name)}; allowed: {least} or more")
        if self.concurrency > MOST_CONCURRENCY:
            raise RequestError(f"concurrency is {self.concurrency}; allowed: 1 to {MOST_CONCURRENCY}")
        if self.rate is not None and not 0 < self.rate <= 1e5:
            raise RequestError(f"rate is {self.rate}; allowed: more than 0, up to 100000 requests per second")
        each = self.prompt_tokens + self.shared_prefix_tokens
        total = (self.requests + self.warmup) * each + self.intruder_tokens
        if total > MOST_PROMPT_TOKENS:
            raise RequestError(f"the prompts have {total} tokens in all; allowed: {MOST_PROMPT_TOKENS}")
        if self.intruder_tokens:
            if self.rate is not None:
                raise RequestError("an intruder comes to running streams; a rate is not for it")
            if self.requests != self.concurrency:
                raise RequestError(
                    f"the intruder's load has {self.requests} requests at concurrency {self.concurrency};"
                    " allowed: one request for each stream, so the same number"
                )


SCENARIOS: Mapping[str, Load] = MappingProxyType(
    {
        "burst": Load(),
        "shared-prefix": Load(shared_prefix_tokens=1024),
        "cached-ttft": Load(
            requests=32,
            concurrency=1,
            prompt_tokens=16,
            output_tokens=4,
            shared_prefix_tokens=1024,
            prefix_is_cached=True,
        ),
        # 256 tokens: the streams outlast the intruder's prefill many times, as a stream in a chat does.
        "intruder": Load(requests=32, output_tokens=256, intruder_tokens=2000),
    }
)


@dataclass(frozen=True)
class Bodies:
    """Everything that is sent, ready to be written: making it takes no time from the run."""

    warmup: list[bytes]
    requests: list[bytes]
    intruder: bytes | None


def make_bodies(target: Target, load: Load, seed: int) -> Bodies:
    """The bodies of a load. Each part has a generator of its own, so that more warm-up changes no request."""
    make, prefix_tokens, own_tokens = target.prompts.make, load.shared_prefix_tokens, load.prompt_tokens

    def several(count: int, part: str, prefix: str) -> list[bytes]:
        chance = random.Random(f"{seed}/{part}")
        return [
            target.body(
                make(
                    chance,
                    prefix_seed=f"{seed}/{prefix}",
                    prefix_tokens=prefix_tokens,
                    own_tokens=own_tokens,
                ),
                load.output_tokens,
            )
            for _ in range(count)
        ]

    intruder = None
    if load.intruder_tokens:
        prompt = make(
            random.Random(f"{seed}/intruder"),
            prefix_seed="",
            prefix_tokens=0,
            own_tokens=load.intruder_tokens,
        )
        intruder = target.body(prompt, INTRUDER_OUTPUT_TOKENS)
    return Bodies(
        warmup=several(load.warmup, "warm-up", "prefix" if load.prefix_is_cached else "warm-up prefix"),
        requests=several(load.requests, "requests", "prefix"),
        intruder=intruder,
    )
