"""The sampler of the native core."""

from __future__ import annotations

from stoker import _native
from stoker.sampling.sampler import Sampler


def native_sampler(pool: _native.ThreadPool) -> Sampler:
    """A sampler that works on the threads of `pool`, the interpreter's own: the two take turns."""
    return Sampler(_native.SampleWorkspace(pool))
