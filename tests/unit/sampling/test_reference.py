"""What the definition says, on rows small enough to check by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.sampling import ReferenceSampler, SampleResult, SampleRow, pack_params
from stoker.sampling.reference import process_logits
from stoker.sampling.rows import pack_rows

NAN, INF = np.nan, np.inf


def sample(
    logits: list[float], seed: int = 0, position: int = 0, row: dict[str, Any] | None = None, **params: Any
) -> SampleResult:
    x = np.array([logits], np.float32)
    packed = pack_params(SamplingParams(**params), seed, len(logits))
    return ReferenceSampler().sample(x, [SampleRow(packed, position, **(row or {}))])


def tokens(logits: list[float], draws: int = 300, **params: Any) -> set[int]:
    """All tokens met in `draws` seeds."""
    x = np.tile(np.array(logits, np.float32), (draws, 1))
    rows = [SampleRow(pack_params(SamplingParams(**params), s, len(logits)), 0) for s in range(draws)]
    return set(ReferenceSampler().sample(x, rows).token_ids.tolist())


def processed(logits: list[float], row: dict[str, Any] | None = None, **params: Any) -> list[float]:
    packed = pack_rows(
        [SampleRow(pack_params(SamplingParams(**params), 0, len(logits)), 0, **(row or {}))], len(logits)
    )
    return process_logits(np.array(logits, np.float32), packed.tasks[0], packed).tolist()


@pytest.mark.parametrize(
    ("logits", "token"),
    [
        ([1, 3, 2], 1),
        ([3, 1, 3], 0),
        ([NAN, -INF, -5], 2),
        ([-INF, NAN], -1),
        ([1, INF, INF], 1),
        ([-0.0, 0.0], 0),
        ([7], 0),
    ],
)
def test_temperature_zero_is_argmax(logits: list[float], token: int) -> None:
    assert sample(logits, temperature=0.0).token_ids.tolist() == [token]


def test_tiny_temperature_is_argmax_too() -> None:
    assert tokens([0, 1e-3, 0], temperature=1e-30) == {1}


def test_nothing_left_and_infinity_at_a_temperature() -> None:
    assert tokens([-INF, NAN], draws=3, temperature=1.0) == {-1}
    assert tokens([1, INF, INF], draws=9, temperature=1.0) == {1}
    assert tokens([NAN, 0, -INF], draws=9, temperature=1.0) == {1}


def test_each_filter_keeps_what_it_says() -> None:
    p = [0.5, 0.25, 0.15, 0.06, 0.04]
    logits = [float(v) for v in np.log(p)]
    assert tokens(logits) == {0, 1, 2, 3, 4}
    assert tokens(logits, top_k=2) == {0, 1}
    assert tokens(logits, top_p=0.76) == {0, 1, 2}
    assert tokens(logits, top_p=0.74) == {0, 1}
    assert tokens(logits, top_p=1e-9) == {0}
    assert tokens(logits, min_p=0.29) == {0, 1, 2}
    # surprises 0.69 1.39 1.90 2.81 3.22, entropy 1.28: nearest is token 1, then 0 (together 0.75), then 2
    assert tokens(logits, typical_p=0.2) == {1}
    assert tokens(logits, typical_p=0.7) == {0, 1}
    assert tokens(logits, typical_p=0.8) == {0, 1, 2}


def test_filters_chain_in_the_documented_order() -> None:
    logits = [float(v) for v in np.log([0.5, 0.25, 0.15, 0.06, 0.04])]
    # After top_k=2 the rest is 2/3, 1/3: top_p sees those.
    assert tokens(logits, top_k=2, top_p=0.6) == {0}
    # typical_p=0.2 leaves token 1 alone, so min_p compares with it.
    assert tokens(logits, typical_p=0.2, min_p=0.9) == {1}
    # Temperature comes first: 0.5 squares the probabilities, and 0.5^2 is 72 % of the sum.
    assert tokens(logits, temperature=0.5, top_p=0.7) == {0}


def test_top_k_breaks_ties_by_id() -> None:
    assert tokens([1, 1, 1, 1], top_k=2) == {0, 1}
    assert tokens([0, 1, 1, 1], top_p=0.5, top_k=3) == {1, 2}


def test_penalties_are_those_of_vllm() -> None:
    row = {"history": np.array([0, 1, 2, 2, 1, 2], np.int32), "prompt_tokens": 3}
    logits = [2.0, -2.0, 4.0, 1.0]
    assert processed(logits, row, repetition_penalty=2.0) == [1, -4, 2, 1]
    assert processed(logits, row, frequency_penalty=0.5) == [2, -2.5, 3, 1]
    assert processed(logits, row, presence_penalty=0.5) == [2, -2.5, 3.5, 1]
    every = {"repetition_penalty": 2.0, "frequency_penalty": 0.5, "presence_penalty": 0.25}
    assert processed(logits, row, **every) == [1, -4.75, 0.75, 1]
    assert processed(logits, row, logit_bias={0: 2.0}, repetition_penalty=2.0) == [2, -4, 2, 1]


def test_bans_and_mask_take_tokens_out() -> None:
    logits = [0.0] * 40
    assert processed(logits, {"banned_ids": (3, 39)})[3::36] == [-INF, -INF]
    mask = np.array([1 << 5, 1 << 7], np.uint32)
    assert [i for i, x in enumerate(processed(logits, {"allowed_mask": mask})) if x == 0] == [5, 39]
    assert sample(logits, row={"allowed_mask": mask, "banned_ids": (5,)}).token_ids.tolist() == [39]
    assert sample(logits, row={"allowed_mask": mask, "banned_ids": (5, 39)}).token_ids.tolist() == [-1]
    assert processed([0.0, 5.0], logit_bias={1: -INF}) == [0, -INF]


def test_logprobs_ignore_temperature_penalties_and_masks() -> None:
    logits = [0.0, np.log(2.0), np.log(5.0)]
    result = sample(logits, row={"banned_ids": (2,)}, temperature=0.0, logprobs=2)
    assert result.token_ids.tolist() == [1]
    assert result.logprobs[0] == pytest.approx(np.log(2 / 8), abs=1e-6)
    assert result.top_ids.tolist() == [[2, 1]]
    assert result.top_logprobs[0] == pytest.approx(np.log([5 / 8, 2 / 8]), abs=1e-6)
    forced = sample(logits, row={"forced_token": 0}, logprobs=0)
    assert forced.token_ids.tolist() == [0]
    assert forced.logprobs[0] == pytest.approx(np.log(1 / 8), abs=1e-6)
    assert np.isnan(sample(logits).logprobs[0])


def test_logprobs_of_odd_logits() -> None:
    result = sample([NAN, 0.0, -INF], temperature=0.0, logprobs=3)
    assert result.logprobs.tolist() == [0]
    assert result.top_ids.tolist() == [[1, -1, -1]]
    assert sample([INF, 0.0, INF], temperature=0.0, logprobs=2).top_ids.tolist() == [[0, 2]]
    assert sample([INF, 0.0], row={"forced_token": 1}, logprobs=0).logprobs.tolist() == [-INF]


def test_same_key_same_token() -> None:
    logits = [float(v) for v in np.random.default_rng(0).standard_normal(50)]
    first = [sample(logits, seed=s, position=p).token_ids[0] for s in range(5) for p in range(5)]
    again = [sample(logits, seed=s, position=p).token_ids[0] for s in range(5) for p in range(5)]
    assert first == again
    assert len(set(first)) > 5


@pytest.mark.parametrize(
    ("row", "params", "message"),
    [
        ({"banned_ids": (4,)}, {}, "banned_ids"),
        ({"banned_ids": (-1,)}, {}, "banned_ids"),
        ({"forced_token": 4}, {}, "forced_token"),
        ({"allowed_mask": np.zeros(2, np.uint32)}, {}, "allowed_mask"),
        ({"allowed_mask": np.zeros(1, np.int32)}, {}, "allowed_mask"),
        ({}, {"presence_penalty": 1.0}, "history"),
        ({"history": np.array([4], np.int32)}, {"presence_penalty": 1.0}, "history"),
        (
            {"history": np.array([1], np.int32), "prompt_tokens": 2},
            {"presence_penalty": 1.0},
            "prompt_tokens",
        ),
        ({}, {"logit_bias": {4: 1.0}}, "logit_bias"),
    ],
)
def test_rows_that_do_not_fit_are_refused(row: dict[str, Any], params: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        sample([0.0, 1.0, 2.0, 3.0], row=row, **params)


def test_wrong_shapes_and_seeds_are_refused() -> None:
    packed = pack_params(SamplingParams(), 0, 4)
    for logits in (np.zeros((2, 4), np.float32), np.zeros((1, 4)), np.zeros(4, np.float32)):
        with pytest.raises(RequestError, match="logits"):
            ReferenceSampler().sample(logits, [SampleRow(packed, 0)])
    with pytest.raises(RequestError, match="seed"):
        pack_params(SamplingParams(), 2**64, 4)


@pytest.mark.parametrize("bias", [-1e300, -(10**400)])
@pytest.mark.filterwarnings("error")
def test_a_bias_below_float32_is_its_least_number(bias: float) -> None:
    packed = pack_params(SamplingParams(logit_bias={0: bias, 1: -math.inf}), 0, 3)
    assert packed.bias_values.tolist() == [np.finfo(np.float32).min, -INF]
    assert tokens([5.0, 5.0, 0.0], draws=20, logit_bias={0: bias, 1: -math.inf}) == {2}
