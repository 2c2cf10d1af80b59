"""Logits to tokens by keyed noise: the token depends on logits, seed, position and parameters only (E2)."""

from stoker.sampling.reference import ReferenceSampler
from stoker.sampling.rows import PackedParams, SampleResult, SampleRow, pack_params
from stoker.sampling.sampler import Sampler

__all__ = ["PackedParams", "ReferenceSampler", "SampleResult", "SampleRow", "Sampler", "pack_params"]
