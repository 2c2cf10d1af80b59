"""`stoker bench speculation`: streams with and without drafts, side by side, on four kinds of work.

For each kind and concurrency there is an engine for each drafter, on the same loaded model, with the same
prompts. They take turns of a fraction of a second, so that all of them meet the machine's faster and slower
moments alike. The answers must be equal, or the measurement fails.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from stoker.api.chat import Message
from stoker.api.errors import EngineError, RequestError
from stoker.api.events import DoneEvent, TokensEvent
from stoker.api.request import Request, SamplingParams
from stoker.bench.speculation_prompts import WORKLOADS, prompts_of
from stoker.engine import Engine
from stoker.engine.load import DEFAULT_KV_BYTES, LoadOptions, load_text_engine
from stoker.engine.text import TextEngine
from stoker.speculation import AUTO, BOUND, DRAFTERS, Drafters, drafters_of

PLAIN = "plain"
CONCURRENCIES = (1, 4, 16, 32)
ANSWER_TOKENS = 128
# Of a workload, one after the other where the concurrency is 1. Each run begins with drafters that know
# nothing, and learning what pays should not be most of it.
LEAST_PROMPTS = 12
_WARMING_PROMPTS = 2
# What an engine writes before it is another's turn, at least: an answer where there is one stream. The first
# step of a turn finds the CPU's caches full of another engine's work, so a turn should have many.
_TURN_TOKENS = 128
_TURN_STEPS = 16
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

    def add(self, answering: _Answering) -> None:
        """A run that is done."""
        stats = answering.engine.engine.stats()
        self.tokens_per_s.append(answering.tokens / answering.elapsed_s)
        decode_s = answering.decode_s
        self.decode_tokens_per_s.append(answering.decode_tokens / decode_s if decode_s else 0.0)
        self.drafted += stats.drafted_tokens
        self.accepted += stats.accepted_tokens
        self.tokens += answering.tokens
        self.stream_steps += answering.stream_steps


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
    # Engines side by side, each with no fewer KV blocks than a server's.
    kv_bytes = DEFAULT_KV_BYTES * (len(DRAFTERS) + len(BOUND) + 2)
    options = LoadOptions(threads, kv_bytes=kv_bytes, draft_model=draft_model)
    loaded = load_text_engine(model, options, seeds=_OneSeed())
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
        alone = _engines(loaded, (PLAIN,), bound)[PLAIN]
        _take_turns([_Answering(alone, prompts[:_WARMING_PROMPTS], concurrency, temperature)])
        for run in range(runs):
            first = run % len(names)  # nobody always follows the same one
            engines = _engines(loaded, (*names[first:], *names[:first]), bound)
            answering = {
                name: _Answering(engine, prompts, concurrency, temperature)
                for name, engine in engines.items()
            }
            _take_turns(tuple(answering.values()))
            expected = expected or answering[PLAIN].answers
            if not any(expected.values()):
                raise RequestError(f"{model.name} writes nothing; allowed: a model that answers")
            for name, one in answering.items():
                if one.answers != expected:
                    raise EngineError(f"{name} changed an answer of {workload} at concurrency {concurrency}")
                measured[name].add(one)
        rows += _rows(workload, concurrency, measured)
    return {
        "model": model.name,
        "runs": runs,
        "temperature": temperature,
        "answer_tokens": ANSWER_TOKENS,
        "rows": rows,
    }


def _engines(
    loaded: TextEngine, names: Sequence[str], bound: Mapping[str, Drafters]
) -> dict[str, TextEngine]:
    """New engines on the same weights: empty caches, and drafters that know nothing yet."""
    old = loaded.engine
    share = old.interpreter.num_blocks // len(names)
    return {
        name: loaded.with_engine(
            Engine(
                old.interpreter,
                old.sampler,
                replace(old.options, blocks=range(place * share, (place + 1) * share)),
                drafters=drafters_of("off" if name == PLAIN else name, bound),
                clock_ms=lambda: time.perf_counter() * 1000,
            )
        )
        for place, name in enumerate(names)
    }


def _take_turns(answering: Sequence[_Answering]) -> None:
    """Until all is answered. Whoever has written least is next, so that all are at the same place."""
    while unfinished := [one for one in answering if not one.done]:
        one = min(unfinished, key=lambda one: one.tokens)
        end = one.tokens + max(_TURN_TOKENS, _TURN_STEPS * one.concurrency)
        while not one.done and one.tokens < end:
            one.step()


class _Answering:
    """An engine's way through all prompts, so many at once. Counts the time of its own steps only."""

    def __init__(
        self, engine: TextEngine, prompts: Sequence[str], concurrency: int, temperature: float
    ) -> None:
        self.engine = engine
        self.concurrency = concurrency
        requests = [
            Request(
                str(number),
                (Message("user", prompt),),
                SamplingParams(temperature=temperature, max_tokens=ANSWER_TOKENS, seed=number),
            )
            for number, prompt in enumerate(prompts)
        ]
        self._waiting = [(request, engine.encode(request)) for request in reversed(requests)]
        self._opened = 0
        self.answers: dict[str, list[int]] = {request.request_id: [] for request in requests}
        self.tokens = 0
        self.elapsed_s = 0.0
        self.decode_tokens = 0  # of steps in which no answer began
        self.decode_s = 0.0
        self.stream_steps = 0

    @property
    def done(self) -> bool:
        """Whether all is answered."""
        return not self._waiting and not self._opened

    def step(self) -> None:
        """One step, of as many streams as there may be."""
        started_s = time.perf_counter()
        while self._waiting and self._opened < self.concurrency:
            self.engine.open(*self._waiting.pop())
            self._opened += 1
        step_s = time.perf_counter()
        events = self.engine.step()
        self.engine.engine.observe((time.perf_counter() - step_s) * 1000)
        written, begins = 0, False
        for event in events:
            if isinstance(event, TokensEvent):
                answer = self.answers[event.request_id]
                begins |= not answer
                written += len(event.token_ids)
                answer += event.token_ids
                self.stream_steps += bool(event.token_ids)
            elif isinstance(event, DoneEvent):
                self._opened -= 1
        ended_s = time.perf_counter()
        self.tokens += written
        self.elapsed_s += ended_s - started_s
        if written and not begins:
            self.decode_tokens += written
            self.decode_s += ended_s - step_s


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
