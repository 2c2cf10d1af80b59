"""`stoker bench speculation`: streams with and without drafts, side by side, on four kinds of work.

For each kind and concurrency all drafters take turns, run by run, on the same prompts and the same loaded
model; the answers must be equal, or the measurement fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from stoker.api.chat import Message
from stoker.api.errors import EngineError, RequestError
from stoker.api.events import DoneEvent, TokensEvent
from stoker.api.request import Request, SamplingParams
from stoker.bench.speculation_prompts import WORKLOADS, prompts_of
from stoker.engine import Engine
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.engine.text import TextEngine
from stoker.speculation import AUTO, BOUND, DRAFTERS, Drafters, drafters_of

PLAIN = "plain"
CONCURRENCIES = (1, 4, 16, 32)
ANSWER_TOKENS = 128
# Of a workload, one after the other where the concurrency is 1. Each run begins with drafters that know
# nothing, and learning what pays should not be most of it.
LEAST_PROMPTS = 12
_WARMING_PROMPTS = 2
Progress = Callable[[int, int, str], None]  # (measurements done, of how many, the one under way)


@dataclass(slots=True)
class _Measured:
    """One drafter at one workload and concurrency; one number for each run."""

    tokens_per_s: list[float] = field(default_factory=list)
    decode_tokens_per_s: list[float] = field(default_factory=list)  # without steps in which an answer began
    drafted: int = 0
    accepted: int = 0
    tokens: int = 0
    stream_steps: int = 0  # steps, each counted once for every stream in it


def measure_speculation(
    model: Path,
    *,
    threads: int | None,
    runs: int,
    concurrencies: Sequence[int],
    temperature: float,
    draft_model: str | None = None,
    progress: Progress,
) -> dict[str, Any]:
    """What `stoker bench speculation` prints: `rows` of workload, concurrency, drafter, tokens_per_s, speedup
    (over plain, run by run, median), decode_speedup (the same without the steps that computed a prompt and
    began its answer, which drafts cannot help), acceptance (of drafted tokens), tokens_per_step (of one
    stream).

    Raises `RequestError` for a model without a chat template or answers, `EngineError` if drafts changed an
    answer.
    """
    loaded = load_text_engine(model, LoadOptions(threads, draft_model=draft_model), seeds=_OneSeed())
    if not loaded.tokenizer.chat_template:
        raise RequestError(f"{model.name} has no chat template; allowed: a model that chats")
    bound = {one.name: one for one in loaded.engine.offered if one.name in BOUND}
    # No prompt brings a prediction.
    names = (PLAIN, *(name for name in (*DRAFTERS, *bound) if name != "prediction"), AUTO)
    total = len(WORKLOADS) * len(concurrencies)
    rows = []
    for done, (workload, concurrency) in enumerate((w, c) for w in WORKLOADS for c in concurrencies):
        progress(done, total, f"{workload} x {concurrency}")
        prompts = prompts_of(workload, max(LEAST_PROMPTS, 2 * concurrency))
        measured: dict[str, _Measured] = {name: _Measured() for name in names}
        expected: dict[str, list[int]] | None = None
        warming = _engine(loaded, "off", bound)
        _run(warming, prompts[:_WARMING_PROMPTS], concurrency, temperature, _Measured())
        for run in range(runs):
            first = run % len(names)  # nobody always follows the same one
            for name in (*names[first:], *names[:first]):
                engine = _engine(loaded, "off" if name == PLAIN else name, bound)
                answers = _run(engine, prompts, concurrency, temperature, measured[name])
                expected = expected or answers
                if not any(expected.values()):
                    raise RequestError(f"{model.name} writes nothing; allowed: a model that answers")
                if answers != expected:
                    raise EngineError(f"{name} changed an answer of {workload} at concurrency {concurrency}")
        rows += _rows(workload, concurrency, measured)
    return {
        "model": model.name,
        "runs": runs,
        "temperature": temperature,
        "answer_tokens": ANSWER_TOKENS,
        "rows": rows,
    }


def _engine(loaded: TextEngine, drafters: str, bound: Mapping[str, Drafters]) -> TextEngine:
    """A new engine on the same weights: empty caches, and drafters that know nothing yet."""
    old = loaded.engine
    engine = Engine(
        old.interpreter,
        old.sampler,
        old.options,
        drafters=drafters_of(drafters, bound),
        clock_ms=lambda: time.perf_counter() * 1000,
    )
    return loaded.with_engine(engine)


def _run(
    engine: TextEngine,
    prompts: Sequence[str],
    concurrency: int,
    temperature: float,
    measured: _Measured,
) -> dict[str, list[int]]:
    """Answer all prompts, so many at once; token ids by request."""
    requests = [
        Request(
            str(number),
            (Message("user", prompt),),
            SamplingParams(temperature=temperature, max_tokens=ANSWER_TOKENS, seed=number),
        )
        for number, prompt in enumerate(prompts)
    ]
    waiting = [(request, engine.encode(request)) for request in reversed(requests)]
    answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
    opened = stream_steps = decode_tokens = 0
    decode_s = 0.0
    started_s = time.perf_counter()
    while waiting or opened:
        while waiting and opened < concurrency:
            engine.open(*waiting.pop())
            opened += 1
        step_s = time.perf_counter()
        events = engine.step()
        engine.engine.observe((time.perf_counter() - step_s) * 1000)
        written, begins = 0, False
        for event in events:
            if isinstance(event, TokensEvent):
                begins |= not answers[event.request_id]
                written += len(event.token_ids)
                answers[event.request_id] += event.token_ids
                stream_steps += bool(event.token_ids)
            elif isinstance(event, DoneEvent):
                opened -= 1
        if written and not begins:
            decode_tokens += written
            decode_s += time.perf_counter() - step_s
    elapsed_s = time.perf_counter() - started_s
    stats = engine.engine.stats()
    tokens = sum(map(len, answers.values()))
    measured.tokens_per_s.append(tokens / elapsed_s)
    measured.decode_tokens_per_s.append(decode_tokens / decode_s if decode_s else 0.0)
    measured.drafted += stats.drafted_tokens
    measured.accepted += stats.accepted_tokens
    measured.tokens += tokens
    measured.stream_steps += stream_steps
    return answers


def _rows(workload: str, concurrency: int, measured: dict[str, _Measured]) -> list[dict[str, Any]]:
    plain = measured[PLAIN]
    return [
        {
            "workload": workload,
            "concurrency": concurrency,
            "drafter": name,
            "tokens_per_s": round(statistics.median(one.tokens_per_s), 1),
            "speedup": _speedup(one.tokens_per_s, plain.tokens_per_s),
            "decode_speedup": _speedup(one.decode_tokens_per_s, plain.decode_tokens_per_s),
            "acceptance": round(one.accepted / one.drafted, 3) if one.drafted else None,
            "tokens_per_step": round(one.tokens / one.stream_steps, 2),
        }
        for name, one in measured.items()
    ]


def _speedup(ours: Sequence[float], plain: Sequence[float]) -> float | None:
    """Run by run, median; none where plain has no such steps."""
    ratios = [a / b for a, b in zip(ours, plain, strict=True) if b]
    return round(statistics.median(ratios), 3) if ratios else None


class _OneSeed:
    """Requests bring their seeds; nothing is drawn."""

    def draw(self) -> int:
        """Never asked for."""
        return 0
