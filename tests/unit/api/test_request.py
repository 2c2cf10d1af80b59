"""Sampling parameters and requests: what exists is valid, and what is not says why."""

from __future__ import annotations

import math
from typing import Any

import pytest

from stoker.api import Message, Request, SamplingParams
from stoker.api.errors import RequestError


def test_the_defaults_are_those_of_vllm() -> None:
    params = SamplingParams()
    assert (params.temperature, params.top_k, params.top_p, params.min_p) == (1.0, 0, 1.0, 0.0)
    assert (params.n, params.max_tokens, params.seed, params.logprobs) == (1, None, None, None)


def test_spellings_are_brought_to_one_form() -> None:
    params = SamplingParams(stop="\n", stop_token_ids=[1, 2], top_k=-1, logit_bias={3: -100})
    assert params.stop == ("\n",)
    assert params.stop_token_ids == (1, 2)
    assert params.top_k == 0
    assert params == SamplingParams(stop=["\n"], stop_token_ids=(1, 2), logit_bias={3: -100.0})
    assert hash(params) == hash(SamplingParams(stop=["\n"], stop_token_ids=(1, 2), logit_bias={3: -100.0}))


def test_none_means_no_stops_and_no_bias() -> None:
    params: Any = {"stop": None, "stop_token_ids": None, "logit_bias": None}
    assert SamplingParams(**params) == SamplingParams()


@pytest.mark.parametrize(
    ("field", "value"),
    [("stop", 5), ("stop", b"x"), ("stop_token_ids", 5), ("stop_token_ids", "5"), ("logit_bias", [1])],
)
def test_what_is_no_list_or_mapping_is_refused(field: str, value: Any) -> None:
    with pytest.raises(RequestError, match=f"{field} is .*; allowed: a (list|mapping)"):
        SamplingParams(**{field: value})


@pytest.mark.parametrize("fields", [{"prompt": None}, {"prompt": [1]}, {"prompt": "a", "sampling": {}}])
def test_a_request_of_the_wrong_type_is_refused(fields: Any) -> None:
    with pytest.raises(RequestError, match="; allowed: "):
        Request("id", **fields)


def test_the_callers_mapping_is_copied() -> None:
    bias = {1: 2.0}
    params = SamplingParams(logit_bias=bias)
    bias[2] = 3.0
    assert params.logit_bias == {1: 2.0}


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("temperature", -0.1, "a number from 0 to 1000"),
        ("temperature", math.nan, "temperature is nan"),
        ("temperature", "hot", "temperature is 'hot'"),
        ("temperature", True, "temperature is True"),
        ("top_p", 0.0, "more than 0 to 1"),
        ("top_p", 1.5, "more than 0 to 1"),
        ("typical_p", 0, "more than 0"),
        ("min_p", 1.01, "from 0 to 1"),
        ("repetition_penalty", 0.0, "more than 0"),
        ("frequency_penalty", 2.5, "from -2 to 2"),
        ("presence_penalty", -math.inf, "from -2 to 2"),
        ("top_k", -2, "0 keeps all"),
        ("top_k", 1.5, "a whole number"),
        ("seed", -1, "leave it out"),
        ("seed", 1 << 64, str((1 << 64) - 1)),
        ("n", 0, "from 1 to 128"),
        ("n", 129, "from 1 to 128"),
        ("max_tokens", 0, "from 1"),
        ("min_tokens", -1, "from 0"),
        ("logprobs", 129, "from 0 to 128"),
        ("stop", ("",), "non-empty"),
        ("stop", ("x",) * 65, "at most 64"),
        ("stop_token_ids", (-1,), "stop_token_ids is -1"),
        ("logit_bias", {-1: 0.0}, "token id is -1"),
        ("logit_bias", {1: math.inf}, "logit_bias[1] is inf"),
        ("logit_bias", {1: math.nan}, "logit_bias[1] is nan"),
    ],
)
def test_a_value_out_of_range_is_refused_by_name(field: str, value: Any, says: str) -> None:
    with pytest.raises(RequestError) as caught:
        SamplingParams(**{field: value})
    assert says in str(caught.value)


def test_a_token_may_be_banned_by_minus_infinity() -> None:
    assert SamplingParams(logit_bias={5: -math.inf}).logit_bias == {5: -math.inf}


def test_min_tokens_beyond_max_tokens_is_refused() -> None:
    with pytest.raises(RequestError, match="min_tokens is 5; allowed: at most max_tokens, which is 4"):
        SamplingParams(min_tokens=5, max_tokens=4)


def test_a_request_knows_its_kind() -> None:
    assert Request("a", "text").kind == "text"
    assert Request("a", (1, 2)).kind == "tokens"
    assert Request("a", ()).kind == "tokens"
    assert Request("a", (Message("user", "hello"),)).kind == "chat"


def test_a_message_holds_strings() -> None:
    with pytest.raises(RequestError, match="content is None"):
        Message("user", None)  # type: ignore[arg-type]
