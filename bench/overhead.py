"""What Python costs between two native runs: microseconds of each decode step outside of the native calls.

Usage: python -m bench.overhead MODEL.gguf [--threads N] [--steps N] [--json]

Steps go through `TextEngine.step`, streaming, greedily, so that planning, building and checking the batch,
packing the sampler's rows, committing, detokenizing and making events are all in it. Timed with the clock of
the thread's own CPU time, which other programs on the machine disturb little; medians of all steps. The
share compares wall-clock times, since the native calls run on several threads.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from pathlib import Path
from typing import Any

from stoker import _native
from stoker.api.request import Request, SamplingParams
from stoker.bench.model import open_interpreter
from stoker.engine import Engine, EngineOptions
from stoker.engine.text import TextEngine
from stoker.kernels.cores import physical_cores
from stoker.sampling import Sampler
from stoker.tokenizer import Tokenizer, load_tokenizer
from stoker.weights.gguf import GGUFFile

SEQUENCES = (1, 8, 32, 64)
PROMPT = "Once upon a time, far away in the north, there lived an old man and his cat. "


class Watch:
    """Sums the time spent in the methods of native objects that were wrapped by `around`."""

    def __init__(self) -> None:
        self.cpu_s = 0.0
        self.wall_s = 0.0

    def around(self, method: Any) -> Any:
        """`method`, timed."""

        def timed(*arguments: Any) -> Any:
            wall, cpu = time.perf_counter(), time.thread_time()
            try:
                return method(*arguments)
            finally:
                self.cpu_s += time.thread_time() - cpu
                self.wall_s += time.perf_counter() - wall

        return timed


class _Methods:
    """An object with just these methods."""

    def __init__(self, **methods: Any) -> None:
        self.__dict__.update(methods)


class _Seeds:
    def draw(self) -> int:
        return 0


def open_watched(path: Path, threads: int) -> tuple[TextEngine, Watch]:
    """The model of the file at `path` under an engine that speaks text; the watch sums its native calls."""
    watch = Watch()
    interpreter = open_interpreter(path, threads)
    native: Any = interpreter._program
    interpreter._program = _Methods(run=watch.around(native.run))  # type: ignore[assignment]
    workspace = _native.SampleWorkspace(interpreter.pool)
    sampler = Sampler(_Methods(sample=watch.around(workspace.sample)))  # type: ignore[arg-type]
    engine = Engine(interpreter, sampler, EngineOptions(interpreter.context_tokens))
    return TextEngine(engine, _tokenizer(path), seeds=_Seeds(), name=path.stem), watch


def _tokenizer(path: Path) -> Tokenizer:
    with GGUFFile.open(path) as file:
        return load_tokenizer(file.metadata, file.header_digest())


def measure(engine: TextEngine, watch: Watch, sequences: int, steps: int) -> dict[str, float]:
    """Medians over `steps` decode steps of so many sequences, in microseconds; and the share of the step."""
    params = SamplingParams(temperature=0.0, ignore_eos=True, max_tokens=steps + sequences + 10)
    for number in range(sequences):
        request = Request(f"overhead-{number}", PROMPT, params)
        engine.open(request, engine.encode(request))
    while len(engine.step()) < sequences:
        continue
    python_us: list[float] = []
    outside_us: list[float] = []
    step_us: list[float] = []
    for _ in range(steps):
        watch.cpu_s = watch.wall_s = 0.0
        wall, cpu = time.perf_counter(), time.thread_time()
        engine.step()
        cpu, wall = time.thread_time() - cpu, time.perf_counter() - wall
        python_us.append((cpu - watch.cpu_s) * 1e6)
        outside_us.append((wall - watch.wall_s) * 1e6)
        step_us.append(wall * 1e6)
    engine.abort_all()
    return {
        "sequences": sequences,
        "python_us": round(statistics.median(python_us), 1),
        "outside_native_us": round(statistics.median(outside_us), 1),
        "step_us": round(statistics.median(step_us), 1),
        "share": round(statistics.median(outside_us) / statistics.median(step_us), 4),
    }


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="Python's microseconds per decode step")
    parser.add_argument("model", type=Path)
    parser.add_argument("--threads", type=int, default=physical_cores())
    parser.add_argument("--steps", type=int, default=100)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    engine, watch = open_watched(arguments.model, arguments.threads)
    measure(engine, watch, 2, 10)  # warms caches; not counted
    found = [measure(engine, watch, sequences, arguments.steps) for sequences in SEQUENCES]
    if arguments.json:
        print(
            json.dumps(
                {"model": arguments.model.name, "threads": arguments.threads, "decode": found}, indent=2
            )
        )
        return
    print("sequences  python us  outside native us  step us   share")
    for row in found:
        print(
            f"{row['sequences']:9.0f} {row['python_us']:10.1f} {row['outside_native_us']:18.1f}"
            f" {row['step_us']:8.0f} {row['share']:7.1%}"
        )


if __name__ == "__main__":
    main()
