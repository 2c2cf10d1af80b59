"""The engine: plan, run, commit. `Engine` speaks token ids."""

from stoker.engine.engine import Engine, EngineOptions
from stoker.engine.journal import Entry, Journal
from stoker.engine.plan import Chunk, Scores, StepPlan
from stoker.engine.scheduler import Output, Scheduler, SchedulerOptions
from stoker.engine.sequence import Sequence, Standing

__all__ = [
    "Chunk",
    "Engine",
    "EngineOptions",
    "Entry",
    "Journal",
    "Output",
    "Scheduler",
    "SchedulerOptions",
    "Scores",
    "Sequence",
    "Standing",
    "StepPlan",
]
