"""The engine: plan, run, commit. `Engine` speaks token ids."""

from stoker.engine.engine import Engine, EngineOptions, StepLog
from stoker.engine.plan import Chunk, Scores, StepPlan
from stoker.engine.scheduler import Output, Scheduler, SchedulerOptions
from stoker.engine.sequence import Sequence

__all__ = [
    "Chunk",
    "Engine",
    "EngineOptions",
    "Output",
    "Scheduler",
    "SchedulerOptions",
    "Scores",
    "Sequence",
    "StepLog",
    "StepPlan",
]
