"""A model under measurement: loaded as the engine loads it, driven without the engine, and with it."""

from __future__ import annotations

import platform
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from stoker import __version__
from stoker.api.request import SamplingParams
from stoker.bench.cold_start import measure_cold_start
from stoker.bench.machine import describe_machine, kernel_target, measure_limits
from stoker.bench.measure import Stepper, engine_rate, median_rates
from stoker.bench.workload import CHUNK_TOKENS, WORKLOADS, Decode, Prefill
from stoker.engine.engine import Engine, EngineOptions
from stoker.engine.scheduler import SchedulerOptions
from stoker.kernels.cores import physical_cores
from stoker.kernels.native import NativeInterpreter
from stoker.kernels.program import BLOCK_TOKENS, Float32, Int32
from stoker.models.load import load_native
from stoker.sampling import SampleRow, pack_params
from stoker.sampling.native import native_sampler
from stoker.weights.gguf import GGUFFile

# The largest workload's KV slots, and a tenth for the engine's own run; reserved, and touched only as used.
KV_BYTES = 1 << 30

ENGINE_DECODE = Decode(sequences=32, context=64, steps=32)  # as decode_32

Progress = Callable[[int, int, str], None]  # (workloads done, of how many, the one under way)


def open_interpreter(path: Path, threads: int) -> NativeInterpreter:
    """The model of the file at `path`, its weights packed. Raises ModelFormatError."""
    with GGUFFile.open(path) as file:
        return load_native(file, threads=threads, kv_bytes=KV_BYTES, batch_tokens=CHUNK_TOKENS)


def open_stepper(interpreter: NativeInterpreter) -> Stepper:
    """`interpreter` under the timed loop, with the native sampler at temperature 0."""
    sampler = native_sampler(interpreter.pool)
    packed = pack_params(SamplingParams(temperature=0.0), 0, interpreter.vocabulary)
    row = SampleRow(packed, 0)

    def choose(logits: Float32) -> Int32:
        return sampler.sample(logits, [row] * len(logits)).token_ids

    return Stepper(interpreter, choose, context_tokens=interpreter.context_tokens)


def open_engine(interpreter: NativeInterpreter) -> Engine:
    """An engine on `interpreter`, for `engine_rate`. Nobody else may use the interpreter meanwhile."""
    options = EngineOptions(interpreter.context_tokens, scheduler=SchedulerOptions(batch_tokens=CHUNK_TOKENS))
    return Engine(interpreter, native_sampler(interpreter.pool), options)


def measure_model(path: Path, *, threads: int | None, runs: int, progress: Progress) -> dict[str, Any]:
    """What `stoker bench` prints: medians in tokens per second (None: does not fit the model's context), cold
    start in seconds, the machine's limits."""
    threads = physical_cores() if threads is None else threads
    interpreter = open_interpreter(path, threads)
    medians = _measure_rates(interpreter, runs, progress)
    weight_bytes = interpreter.weight_bytes
    del interpreter  # so that the cold start has the machine's memory to itself
    progress(1, 1, "cold start")
    cold = measure_cold_start(path, threads=threads, runs=max(3, runs))
    return {
        "model": path.name,
        **{name: _rounded(medians.get(name)) for name in [*WORKLOADS, "engine_decode_32"]},
        "cold_start_s": round(cold.first_token_s, 3),
        "peak_memory_bytes": cold.peak_memory_bytes,
        **{name: round(value, 3) for name, value in measure_limits(threads).items()},
        "file_bytes": path.stat().st_size,
        "weight_bytes": weight_bytes,
        "threads": threads,
        "target": kernel_target(),
        "runs": runs,
        "machine": describe_machine(),
        "versions": {"stoker": __version__, "python": platform.python_version(), "numpy": np.__version__},
    }


def _measure_rates(interpreter: NativeInterpreter, runs: int, progress: Progress) -> dict[str, float]:
    stepper, engine = open_stepper(interpreter), open_engine(interpreter)

    def through_engine() -> float:
        stepper.forget()  # the engine writes to the same blocks
        return engine_rate(engine, ENGINE_DECODE)

    measures: dict[str, Callable[[], float]] = {
        name: partial(stepper.rate, workload)
        for name, workload in WORKLOADS.items()
        if fits(workload, interpreter.context_tokens)
    }
    measures["engine_decode_32"] = through_engine
    return median_rates(measures, runs=runs, progress=progress)


def fits(workload: Prefill | Decode, context_tokens: int) -> bool:
    """Whether a model of `context_tokens` can run the workload."""
    longest = workload.tokens if isinstance(workload, Prefill) else workload.context + workload.steps
    return longest <= context_tokens - context_tokens % BLOCK_TOKENS


def _rounded(rate: float | None) -> float | None:
    return None if rate is None else round(rate, 1)
