"""Measuring: a model's speed, as other engines are measured, its start, and the machine's limits."""

from __future__ import annotations

from stoker.bench.measure import Stepper, median_rates
from stoker.bench.workload import WORKLOADS, Decode, Prefill

__all__ = ["WORKLOADS", "Decode", "Prefill", "Stepper", "median_rates"]
