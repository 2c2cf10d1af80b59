"""What a server tells of itself. Above the waist: it sees requests, events and counters, never a tensor."""

from stoker.telemetry.stats import stats_json

__all__ = ["stats_json"]
