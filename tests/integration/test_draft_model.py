"""A real model drafts for itself: right every time, at every temperature. What does not fit is refused."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("stoker._native", reason="the native core is not built")

from tests.drafts import FreeCost
from tests.fakes import CountingSeeds

from stoker import LLM
from stoker.api import Constraint, Message, SamplingParams
from stoker.api.errors import ModelFormatError, ModelNotFoundError, RequestError
from stoker.bench.speculation_prompts import prompts_of
from stoker.engine.load import LoadOptions, load_text_engine
from stoker.speculation.draft_file import _check_rows

pytestmark = pytest.mark.model

KV_BYTES = 1 << 26
CHOICES = Constraint("regex", "the (boiler|engine) room, and so is the (cook|captain)")


@pytest.fixture(scope="module")
def drafting(smollm2_path: Path) -> LLM:
    options = LoadOptions(1, kv_bytes=KV_BYTES, speculation="model", draft_model=str(smollm2_path))
    text = load_text_engine(smollm2_path, options, seeds=CountingSeeds())
    speculator = text.engine._speculator
    assert speculator is not None
    # It costs what its target does, so it would soon be asked no more.
    speculator._cost, speculator._clock_ms = FreeCost(), None
    return LLM(text)


@pytest.fixture(scope="module")
def plain(smollm2_path: Path) -> LLM:
    options = LoadOptions(1, kv_bytes=KV_BYTES, speculation="off")
    return LLM(load_text_engine(smollm2_path, options, seeds=CountingSeeds()))


@pytest.mark.parametrize(
    "sampling",
    [
        {"temperature": 0},
        {"temperature": 0.7, "presence_penalty": 0.6, "repetition_penalty": 1.1},
        {"temperature": 1.0, "top_p": 0.9, "frequency_penalty": 0.4, "logit_bias": {100: 1.0}},
    ],
)
def test_the_target_as_its_own_draft_model_is_always_right(
    drafting: LLM, plain: LLM, sampling: dict[str, Any]
) -> None:
    prompts = prompts_of("chat", 2)
    params = SamplingParams(max_tokens=32, seed=7, **sampling)
    before = drafting.text_engine.engine.stats()
    for prompt in prompts:
        found = drafting.chat([Message("user", prompt)], params)
        assert (
            found.choices[0].token_ids == plain.chat([Message("user", prompt)], params).choices[0].token_ids
        )
    after = drafting.text_engine.engine.stats()
    drafted = after.drafted_tokens - before.drafted_tokens
    assert drafted == after.accepted_tokens - before.accepted_tokens
    assert drafted >= 8
    drafting.text_engine.engine.check()


def test_under_a_grammar_too(drafting: LLM, plain: LLM) -> None:
    params = SamplingParams(max_tokens=16, seed=7, constraint=CHOICES)
    prompts = ["Where is the stoker? He is in", "Where is the engineer?"]
    assert [c.choices[0].token_ids for c in drafting.generate(prompts, params)] == [
        c.choices[0].token_ids for c in plain.generate(prompts, params)
    ]


def test_one_cap_holds_the_blocks_of_both(drafting: LLM, plain: LLM) -> None:
    alone, both = plain.text_engine.engine, drafting.text_engine.engine
    assert both.pool.num_blocks == alone.pool.num_blocks // 2
    assert 2 * both.pool.num_blocks * both.block_bytes <= KV_BYTES


def test_rows_that_are_no_token_are_refused() -> None:
    _check_rows(100, 100)
    with pytest.raises(ModelFormatError, match="scores 128 tokens, but names 100"):
        _check_rows(128, 100)


def test_another_vocabulary_is_refused_or_noted(smollm2_path: Path, gemma3_path: Path) -> None:
    with pytest.raises(ModelFormatError) as caught:
        LLM(smollm2_path, threads=1, draft_model=gemma3_path)
    assert str(caught.value) == (
        f"draft model {gemma3_path}: token 0 is '<pad>', and '<|endoftext|>' in {smollm2_path.name}; "
        "allowed: a draft model of the same vocabulary"
    )
    for speculation in ("auto", "model", "ngram,model"):
        options = LoadOptions(
            1, kv_bytes=KV_BYTES, speculation=speculation, draft_model=str(gemma3_path), draft_may_fail=True
        )
        engine = load_text_engine(smollm2_path, options, seeds=CountingSeeds())
        (note,) = engine.notes
        assert note == f"no drafts by a draft model: {caught.value}"
        assert "model" not in [one.name for one in engine.engine.offered]


def test_a_broken_file_is_refused_or_noted(smollm2_path: Path, tmp_path: Path) -> None:
    broken = tmp_path / "broken.gguf"
    shutil.copy(smollm2_path, broken)
    with broken.open("r+b") as file:
        file.truncate(smollm2_path.stat().st_size // 2)
    with pytest.raises(ModelFormatError, match=f"^draft model {broken}: ") as caught:
        LLM(smollm2_path, threads=1, draft_model=broken)
    assert str(caught.value).count(str(broken)) == 1
    options = LoadOptions(1, kv_bytes=KV_BYTES, draft_model=str(broken), draft_may_fail=True)
    llm = LLM(load_text_engine(smollm2_path, options, seeds=CountingSeeds()))
    assert llm.generate("One, two,", SamplingParams(max_tokens=4, temperature=0))[0].text
    with pytest.raises(ModelNotFoundError, match=r"^draft model .*none.gguf: no such file"):
        LLM(smollm2_path, threads=1, draft_model=tmp_path / "none.gguf")


def test_options_that_contradict_each_other() -> None:
    with pytest.raises(RequestError, match="speculation is 'model', but no draft model is given"):
        LoadOptions(speculation="model")
    with pytest.raises(RequestError, match="draft_model is 'x', but speculation is 'off'; allowed: auto"):
        LoadOptions(speculation="off", draft_model="x")
    with pytest.raises(RequestError, match="draft_head is 'x', but speculation is 'ngram'; allowed: auto"):
        LoadOptions(speculation="ngram", draft_head="x")
    with pytest.raises(RequestError, match=r"allowed: auto, off, or of prediction, .*, model some"):
        LoadOptions(speculation="nobody", draft_model="x")
