"""How a worker is watched and restarted."""

from __future__ import annotations

from dataclasses import dataclass

from stoker.api.errors import RequestError
from stoker.api.request import check_int


@dataclass(frozen=True, slots=True)
class ProcessOptions:
    """Limits of one worker. Raises `RequestError` for a value outside its range."""

    max_waiting: int = 1024  # most requests that have no token yet; one more is refused with QueueFullError
    heartbeat_ms: int = 500  # how often the worker says that it lives
    # Without a word for so long, it is taken to hang. It loses nothing by a restart but a second, so the only
    # harm of a small number is on a machine so loaded that a thread waits this long for its turn.
    silence_s: float = 10.0
    step_limit_s: float = 300.0  # longest step: 512 tokens of a 70B model on few cores take about a minute
    load_limit_s: float = 900.0  # longest start: 100 GB from a slow disk
    max_restarts: int = 5  # in a row, without a token in between; then the model is given up

    def __post_init__(self) -> None:
        check_int("max_waiting", self.max_waiting, 1, 1 << 20)
        check_int("heartbeat_ms", self.heartbeat_ms, 10, 60_000)
        check_int("max_restarts", self.max_restarts, 0, 100)
        for name in ("silence_s", "step_limit_s", "load_limit_s"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value <= 86_400:
                raise RequestError(f"{name} is {value!r}; allowed: more than 0, at most 86400 seconds")
        if self.silence_s * 1000 < 2 * self.heartbeat_ms:
            raise RequestError(
                f"silence_s is {self.silence_s}; allowed: at least two heartbeats of {self.heartbeat_ms} ms"
            )
