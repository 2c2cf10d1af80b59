"""llama.cpp as a measuring worker: one JSON request a line on stdin, one JSON answer a line on stdout.

Runs in bench/.venv-llama and imports nothing of Stoker's. Requests:
{"kind": "prefill", "tokens": 512} and {"kind": "decode", "sequences": 8, "context": 64, "steps": 32}.
Answer: {"tokens_per_s": ...}. Usage: python llama_cpp_worker.py MODEL.gguf THREADS
"""

from __future__ import annotations

import ctypes
import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import llama_cpp as lib
import numpy as np

UBATCH_TOKENS = 512  # llama.cpp's own default
LARGEST_BATCH_TOKENS = 4096


class Worker:
    """One model, and the context of the last workload; owns both."""

    def __init__(self, path: str, threads: int) -> None:
        lib.llama_backend_init()
        self.threads = threads
        self.model = lib.llama_model_load_from_file(path.encode(), lib.llama_model_default_params())
        if not self.model:
            raise SystemExit(f"llama.cpp cannot load {path}")
        self.vocabulary = lib.llama_vocab_n_tokens(lib.llama_model_get_vocab(self.model))
        self.random = np.random.default_rng(0)
        self.context: Any = None
        self.context_holds: tuple[int, int] | None = (
            None  # (sequences, tokens of each), kept between decode runs
        )

    def measure(self, request: dict[str, Any]) -> float:
        """Tokens per second of one run of `request`."""
        if request["kind"] == "prefill":
            return self._prefill(request["tokens"])
        return self._decode(request["sequences"], request["context"], request["steps"])

    def _prefill(self, tokens: int) -> float:
        self._open(1, tokens, None)
        token_ids = self._draw(tokens)
        started = time.perf_counter()
        self._run(token_ids, range(tokens), [0] * tokens, only_last=True)
        return tokens / (time.perf_counter() - started)

    def _decode(self, sequences: int, context: int, steps: int) -> float:
        if self.context_holds != (sequences, context):
            self._open(sequences, sequences * (context + steps), (sequences, context))
            for sequence in range(sequences):
                self._run(self._draw(context), range(context), [sequence] * context, only_last=True)
        started = time.perf_counter()
        for step in range(steps):
            token_ids = self._draw(sequences)
            self._run(token_ids, [context + step] * sequences, range(sequences), only_last=False)
        seconds = time.perf_counter() - started
        memory = lib.llama_get_memory(self.context)
        for sequence in range(sequences):
            lib.llama_memory_seq_rm(memory, sequence, context, -1)
        return sequences * steps / seconds

    def _open(self, sequences: int, tokens: int, holds: tuple[int, int] | None) -> None:
        if self.context is not None:
            lib.llama_free(self.context)
        params = lib.llama_context_default_params()
        params.n_ctx = tokens + 256
        params.n_batch = LARGEST_BATCH_TOKENS
        params.n_ubatch = UBATCH_TOKENS
        params.n_seq_max = sequences
        params.n_threads = params.n_threads_batch = self.threads
        params.kv_unified = True
        self.context = lib.llama_init_from_model(self.model, params)
        if not self.context:
            raise SystemExit(f"llama.cpp cannot make a context of {tokens} tokens")
        self.context_holds = holds

    def _run(
        self, token_ids: Sequence[int], positions: Sequence[int], sequences: Sequence[int], *, only_last: bool
    ) -> None:
        count = len(token_ids)
        batch = lib.llama_batch_init(count, 0, 1)
        batch.n_tokens = count
        for i in range(count):
            batch.token[i] = token_ids[i]
            batch.pos[i] = positions[i]
            batch.n_seq_id[i] = 1
            batch.seq_id[i][0] = sequences[i]
            batch.logits[i] = i == count - 1 or not only_last
        status = lib.llama_decode(self.context, batch)
        lib.llama_get_logits(self.context)  # waits until they are there
        lib.llama_batch_free(batch)
        if status != 0:
            raise SystemExit(f"llama_decode returned {status}")

    def _draw(self, count: int) -> list[int]:
        return [int(token) for token in self.random.integers(100, self.vocabulary - 100, count)]


@lib.llama_log_callback
def _drop_log(level: int, text: bytes, user_data: ctypes.c_void_p) -> None:
    """llama.cpp logs every tensor it loads; the measurement does not want it."""


def main() -> None:
    """Answer requests until stdin ends."""
    lib.llama_log_set(_drop_log, None)
    worker = Worker(sys.argv[1], int(sys.argv[2]))
    print(json.dumps({"ready": True, "version": lib.__version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"tokens_per_s": worker.measure(json.loads(line))}), flush=True)


if __name__ == "__main__":
    main()
