"""Where options become objects. The only place that knows both a flag's value and what it is for."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Iterator
from typing import Any

from stoker.api.errors import RequestError
from stoker.api.request import Message, SamplingParams
from stoker.cli.talk import Talker

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


def open_talker(
    model: str,
    *,
    sampling: SamplingParams,
    threads: int | None,
    context_tokens: int | None,
    system: str | None,
    raw: bool,
) -> Talker:
    """Load `model` for a conversation, or for plain completion if it has no chat template or `raw` is given.

    Raises RequestError for a system message that nothing would read.
    """
    from stoker.llm import LLM, Piece

    started = time.perf_counter()
    llm = LLM(model, threads=threads, context_tokens=context_tokens)
    load_s = time.perf_counter() - started
    has_template = llm.text_engine.tokenizer.chat_template is not None
    is_chat = has_template and not raw
    if system is not None and not is_chat:
        why = "--raw leaves the chat template out" if has_template else f"{llm.name} has no chat template"
        raise RequestError(f"--system is given, but {why}", hint="put the text into the prompt")
    if not is_chat and sampling.max_tokens is None:
        sampling = dataclasses.replace(sampling, max_tokens=PLAIN_MAX_TOKENS)

    def generate(prompt: str | tuple[Message, ...]) -> Iterator[Piece]:
        return llm.stream(prompt, sampling)

    facts = (f"context {llm.context_tokens} tokens", f"loaded in {load_s:.2f} s", f"target {native_target()}")
    return Talker(llm.name, generate, is_chat=is_chat, system=system, facts=facts)


def native_target() -> str:
    """The instruction set that the kernels use here, as `STOKER_TARGET` names it."""
    from stoker.bench.machine import kernel_target

    return kernel_target()


def bench_model(
    model: str, *, threads: int | None, runs: int, progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Everything `stoker bench` prints, in its order; see docs/guides/measure.md."""
    from stoker.bench.model import measure_model
    from stoker.weights.store import resolve

    return measure_model(resolve(model), threads=threads, runs=runs, progress=progress)
