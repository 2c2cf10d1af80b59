"""llama.cpp's prompt lookup as a measuring worker: one JSON request a line on stdin, one answer on stdout.

Runs in bench/.venv-llama and imports nothing of Stoker's. Through llama-cpp-python's own loop, as its users
have it: `Llama.generate`, with `LlamaPromptLookupDecoding` or without. Request:
{"token_ids": [...], "answer_tokens": 128}. Answer: {"tokens": [...], "seconds": ...}; greedy, from the
prompt's first token to the answer's last, without the token that ends it.
Usage: python llama_cpp_speculation_worker.py MODEL.gguf THREADS LOOKUP_TOKENS (0: without lookup)
"""

from __future__ import annotations

import json
import sys
import time

import llama_cpp as lib
from llama_cpp.llama_speculative import LlamaPromptLookupDecoding

CONTEXT_TOKENS = 4096
UBATCH_TOKENS = 512  # llama.cpp's own default


def open_model(path: str, threads: int, lookup_tokens: int) -> lib.Llama:
    """The model with or without drafts of so many tokens."""
    draft = LlamaPromptLookupDecoding(num_pred_tokens=lookup_tokens) if lookup_tokens else None
    return lib.Llama(
        path,
        n_ctx=CONTEXT_TOKENS,
        n_batch=UBATCH_TOKENS,
        n_threads=threads,
        n_threads_batch=threads,
        draft_model=draft,
        verbose=False,
    )


def answer(model: lib.Llama, token_ids: list[int], answer_tokens: int) -> tuple[list[int], float]:
    """The greedy answer, and the seconds it took."""
    vocabulary = lib.llama_model_get_vocab(model.model)
    found: list[int] = []
    started = time.perf_counter()
    for token in model.generate(token_ids, temp=0.0, repeat_penalty=1.0):
        if lib.llama_vocab_is_eog(vocabulary, token):
            break
        found.append(int(token))
        if len(found) == answer_tokens:
            break
    return found, time.perf_counter() - started


def main() -> None:
    """Answer requests until stdin ends."""
    model = open_model(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
    print(json.dumps({"ready": True, "version": f"llama-cpp-python {lib.__version__}"}), flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        tokens, seconds = answer(model, request["token_ids"], request["answer_tokens"])
        print(json.dumps({"tokens": tokens, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
