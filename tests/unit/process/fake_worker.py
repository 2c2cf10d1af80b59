"""A real worker around a fake model. The model's file is JSON and says what goes wrong, if anything."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from tests.fakes import ByteTokenizer, ScriptedInterpreter, text_engine

from stoker.api.errors import ModelFormatError
from stoker.engine.load import LoadOptions
from stoker.engine.text import TextEngine
from stoker.kernels.program import Batch, Float32
from stoker.process.worker import main

POISON = 263  # a token that ends the process that reads it


class TroubledInterpreter(ScriptedInterpreter):
    """Takes `step_ms` for each step, and does what the file says."""

    def __init__(self, trouble: dict[str, Any]) -> None:
        super().__init__(vocabulary=ByteTokenizer.vocab_size)
        self._trouble = trouble

    def run(self, batch: Batch) -> Float32:
        """As the scripted model, unless there is trouble."""
        time.sleep(self._trouble.get("step_ms", 0) / 1000)
        if POISON in batch.token_ids:
            print("the boiler burst", file=sys.stderr, flush=True)
            os._exit(7)
        if self._trouble.get("fails") and len(self.batches) == self._trouble["fails"]:
            raise RuntimeError("the model fails")
        logits = super().run(batch)
        logits[:, POISON] = -100.0  # not to be said by itself
        return logits


def load(model: str, options: LoadOptions) -> TextEngine:
    """The engine that the file asks for."""
    trouble = json.loads(Path(model).read_text())
    if trouble.get("refused"):
        raise ModelFormatError(f"{model} is no model", hint="take another")
    cold = trouble.get("cold_while")
    if cold and Path(cold).exists():
        print("line one", file=sys.stderr)
        print("the boiler is cold", file=sys.stderr, flush=True)
        os._exit(9)
    print("chatter of a library on standard output")
    return text_engine(TroubledInterpreter(trouble))


if __name__ == "__main__":
    os._exit(main(load))
