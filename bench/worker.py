"""A measuring program in a process of its own: one JSON request a line to it, one JSON answer a line back."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


class WorkerError(Exception):
    """A measuring program ended or answered nonsense; says which one."""


class Worker:
    """Owns one child process; a context manager that ends it. The child is idle between requests."""

    def __init__(self, name: str, command: Sequence[str]) -> None:
        self.name = name
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1, cwd=ROOT
        )
        self.facts = self._answer()

    def rate(self, request: dict[str, Any]) -> float:
        """Tokens per second of one run of the workload in `request`."""
        return float(self.ask(request)["tokens_per_s"])

    def ask(self, request: dict[str, Any]) -> dict[str, Any]:
        """The worker's answer to one request. Raises WorkerError if it ends or answers nonsense."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError as error:
            raise WorkerError(f"{self.name} ended with status {self._process.wait()}") from error
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        try:
            answer = json.loads(line)
        except json.JSONDecodeError as error:
            raise WorkerError(
                f"{self.name} answered {line!r}; its status is {self._process.poll()}"
            ) from error
        if not isinstance(answer, dict):
            raise WorkerError(f"{self.name} answered {line!r}; expected a JSON object")
        return answer

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.close()
        self._process.stdout.close()
        self._process.wait(timeout=60)
