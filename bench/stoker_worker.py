"""Stoker as a measuring worker, the counterpart of peers/llama_cpp_worker.py: same requests, same answers.

Usage: python -m bench.stoker_worker MODEL.gguf THREADS
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from stoker import __version__
from stoker.bench import Decode, Prefill
from stoker.bench.model import open_interpreter, open_stepper


def workload_of(request: dict[str, Any]) -> Prefill | Decode:
    """The workload that a request of the protocol means."""
    if request["kind"] == "prefill":
        return Prefill(request["tokens"])
    return Decode(request["sequences"], request["context"], request["steps"])


def main() -> None:
    """Answer requests until stdin ends."""
    stepper = open_stepper(open_interpreter(Path(sys.argv[1]), threads=int(sys.argv[2])))
    print(json.dumps({"ready": True, "version": __version__}), flush=True)
    for line in sys.stdin:
        print(json.dumps({"tokens_per_s": stepper.rate(workload_of(json.loads(line)))}), flush=True)


if __name__ == "__main__":
    main()
