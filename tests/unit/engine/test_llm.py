"""`LLM`, the synchronous face, on a fake model."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from tests.fakes import ByteTokenizer, ScriptedInterpreter, text_engine

from stoker import LLM, SamplingParams
from stoker.api.errors import CapacityError, EngineError, PromptTooLongError, RequestError
from stoker.engine.interrupt import DeferredInterrupt
from stoker.kernels.program import Batch, Float32

SHORT = SamplingParams(max_tokens=8, seed=5, ignore_eos=True)


@pytest.fixture
def llm() -> LLM:
    return LLM(text_engine())


def test_importing_stoker_does_no_work() -> None:
    code = "import sys, stoker; print(sorted(m for m in sys.modules if m.startswith(('stoker.', 'numpy'))))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_prompts_of_every_form_give_one_completion_each(llm: LLM) -> None:
    ids = list(b"hello")
    single = llm.generate("hello", SHORT)
    assert len(single) == 1
    assert llm.generate(ids, SHORT) == single
    assert llm.generate(tuple(ids), SHORT) == single
    assert llm.generate(np.array(ids), SHORT) == single
    assert llm.generate(["hello", ids, np.array(ids)], SHORT) == single * 3  # type: ignore[list-item]
    assert llm.generate([], SHORT) == []
    assert single[0].prompt_token_ids == tuple(ids)
    assert len(single[0].token_ids) == 8
    assert single[0].finish_reason == "length"
    assert (single[0].logprobs, single[0].top, single[0].num_cached_tokens, single[0].seed) == (
        None,
        None,
        0,
        5,
    )


def test_sampling_params_for_each_prompt(llm: LLM) -> None:
    params = [SamplingParams(max_tokens=i + 1, ignore_eos=True) for i in range(3)]
    assert [len(c.token_ids) for c in llm.generate(["a", "b", "c"], params)] == [1, 2, 3]
    with pytest.raises(RequestError, match="2 sampling params for 3 prompts"):
        llm.generate(["a", "b", "c"], params[:2])


def test_a_drawn_seed_replays(llm: LLM) -> None:
    params = SamplingParams(max_tokens=20, ignore_eos=True, n=2)
    first = llm.generate("hello", params)[0]
    assert llm.generate("hello", params)[0].token_ids != first.token_ids
    for choice in first.choices:
        again = llm.generate("hello", SamplingParams(max_tokens=20, ignore_eos=True, seed=choice.seed))[0]
        assert again.token_ids == choice.token_ids


def test_choices_are_in_order_and_share_the_prompt(llm: LLM) -> None:
    completion = llm.generate("x" * 50, SamplingParams(max_tokens=5, n=4, seed=11, ignore_eos=True))[0]
    assert [choice.seed for choice in completion.choices] == [11, 12, 13, 14]
    assert [choice.num_cached_tokens for choice in completion.choices] == [0, 49, 49, 49]
    assert completion.text == completion.choices[0].text


def test_logprobs_of_an_answer_are_its_scores(llm: LLM) -> None:
    completion = llm.generate("hello", SamplingParams(max_tokens=20, seed=1, logprobs=3, ignore_eos=True))[0]
    assert completion.logprobs is not None
    assert completion.top is not None
    score = llm.score([[*completion.prompt_token_ids, *completion.token_ids]], top_k=3)[0]
    assert score.logprobs[-20:] == completion.logprobs
    assert score.top[-20:] == completion.top
    assert len(score.logprobs) == len(score.top) == len(score.token_ids) - 1


def test_scores_of_many_lengths(llm: LLM) -> None:
    scores = llm.score(["a", "ab", "x" * 200], top_k=0)
    assert [len(score.logprobs) for score in scores] == [0, 1, 199]
    assert scores[2].top == ((),) * 199
    with pytest.raises(RequestError, match="prompt is empty"):
        llm.score(["a", ""])


def test_a_refused_prompt_stops_the_call_and_leaves_nothing_open(llm: LLM) -> None:
    with pytest.raises(PromptTooLongError, match="2000 tokens; allowed: at most 1000"):
        llm.generate(["fine", "x" * 2000], SHORT)
    with pytest.raises(PromptTooLongError, match="1001 tokens"):
        llm.score(["fine", "x" * 1001])
    for wrong in ([1.5], [None], [["a"]], [True], 7, None, b"bytes", [b"bytes"], [[["a"]]]):
        with pytest.raises(RequestError):
            llm.generate(wrong, SHORT)  # type: ignore[arg-type]
    assert not llm.text_engine.busy
    llm.text_engine.engine.check()


def test_stream_pieces_make_the_completion(llm: LLM) -> None:
    completion = llm.generate("hello", SHORT)[0]
    pieces = list(llm.stream("hello", SHORT))
    assert "".join(map(str, pieces)) == completion.text
    assert tuple(t for piece in pieces for t in piece.token_ids) == completion.token_ids
    assert [piece.finish_reason for piece in pieces] == [None] * 8 + ["length"]
    assert (pieces[-1].seed, pieces[-1].prompt_tokens) == (5, 5)


def test_a_stream_is_checked_at_once_and_aborted_when_left(llm: LLM) -> None:
    with pytest.raises(PromptTooLongError):
        llm.stream("x" * 2000)
    stream = llm.stream("hello", SHORT)
    assert llm.text_engine.busy
    stream.close()  # never started
    assert not llm.text_engine.busy
    stream = llm.stream("hello", SHORT)
    next(stream)
    del stream
    assert not llm.text_engine.busy
    llm.text_engine.engine.check()


def test_other_calls_may_come_between_the_pieces(llm: LLM) -> None:
    expected = llm.generate("hello", SHORT)[0].token_ids
    tokens: list[int] = []
    for piece in llm.stream("hello", SHORT):
        tokens += piece.token_ids
        assert llm.generate("other", SHORT)[0].text == llm.generate("other", SHORT)[0].text
        llm.score("between")
    assert tuple(tokens) == expected


def test_threads_share_one_model(llm: LLM) -> None:
    expected = [llm.generate(f"number {i}", SHORT)[0] for i in range(8)]
    found: dict[int, object] = {}

    def ask(i: int) -> None:
        found[i] = llm.generate(f"number {i}", SHORT)[0]

    threads = [threading.Thread(target=ask, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert [found[i] for i in range(8)] == expected
    llm.text_engine.engine.check()


def test_chat(llm: LLM) -> None:
    completion = llm.chat([{"role": "user", "content": "hi"}], SHORT)
    assert completion.prompt_token_ids == (ByteTokenizer.TURN, *b"user: hi", ByteTokenizer.TURN)
    pieces = list(llm.stream([{"role": "user", "content": "hi"}], SHORT))
    assert "".join(piece.text for piece in pieces) == completion.text
    for wrong in ([], [{"role": "user"}], ["hi"], [{"role": "user", "content": None}]):
        with pytest.raises(RequestError):
            llm.chat(wrong, SHORT)  # type: ignore[arg-type]


def test_tokenize_and_back(llm: LLM) -> None:
    assert llm.tokenize("aé") == [0x61, 0xC3, 0xA9]
    assert llm.tokenize("<turn>") != [ByteTokenizer.TURN]
    assert llm.tokenize("<turn>", parse_special=True) == [ByteTokenizer.TURN]
    assert llm.detokenize(llm.tokenize("aé")) == "aé"
    assert llm.detokenize([ByteTokenizer.TURN]) == ""


def test_ctrl_c_aborts_the_call_between_steps_and_leaves_the_engine_usable() -> None:
    interpreter = ScriptedInterpreter(vocabulary=ByteTokenizer.vocab_size)
    llm = LLM(text_engine(interpreter))
    whole = llm.generate(["hello", "other"], SHORT)
    runs = len(interpreter.batches)
    plain = interpreter.run

    def run_and_interrupt(batch):  # type: ignore[no-untyped-def]
        if len(interpreter.batches) == runs + 3:
            os.kill(os.getpid(), signal.SIGINT)  # in the middle of a step
        return plain(batch)

    interpreter.run = run_and_interrupt  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt):
        llm.generate(["hello", "other"], SHORT)
    assert not llm.text_engine.busy
    llm.text_engine.engine.check()
    interpreter.run = plain  # type: ignore[method-assign]
    assert llm.generate(["hello", "other"], SHORT) == whole
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_is_not_lost_and_comes_after() -> None:
    reached = []

    def interrupted() -> None:
        with DeferredInterrupt():
            os.kill(os.getpid(), signal.SIGINT)
            reached.append(sum(range(1000)))

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert reached


def test_a_failing_model_says_so_and_recovers() -> None:
    interpreter = ScriptedInterpreter(vocabulary=ByteTokenizer.vocab_size)
    llm = LLM(text_engine(interpreter))
    whole = llm.generate("hello", SHORT)
    interpreter.fail_at_run = len(interpreter.batches) + 2
    stream = llm.stream("other", SHORT)
    with pytest.raises(EngineError, match="scripted failure"):
        llm.generate("hello", SHORT)
    with pytest.raises(EngineError, match="was dropped"):
        list(stream)
    llm.text_engine.engine.check()
    assert llm.generate("hello", SHORT) == whole


class _BrokenInterpreter(ScriptedInterpreter):
    """Its logits are not numbers."""

    def run(self, batch: Batch) -> Float32:
        logits = super().run(batch)
        logits[:] = np.nan
        return logits


def test_scores_that_are_not_finite_are_an_error() -> None:
    llm = LLM(text_engine(_BrokenInterpreter(vocabulary=ByteTokenizer.vocab_size)))
    with pytest.raises(EngineError, match=r"token 98 at position 1 is (nan|-inf); allowed: finite"):
        llm.score("abc")
    assert not llm.text_engine.busy


@pytest.mark.parametrize("top_k", [None, -1, 129, 1.5, True, "2"])
@pytest.mark.parametrize("prompt", ["abc", "a"])
def test_score_checks_top_k(llm: LLM, prompt: str, top_k: Any) -> None:
    with pytest.raises(RequestError, match=r"top_k is .*; allowed: a whole number from 0 to 128"):
        llm.score(prompt, top_k)
    assert not llm.text_engine.busy


def test_a_text_that_must_be_too_long_is_refused_before_it_is_encoded(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = llm.text_engine.tokenizer
    monkeypatch.setattr(tokenizer, "encode", lambda text: pytest.fail("was encoded"))
    for call in (llm.generate, llm.stream, llm.score):
        with pytest.raises(PromptTooLongError, match="at least 1001 tokens; allowed: at most 1000"):
            call("é" * 3500 + "x")  # 7001 bytes, at most 7 a token
    monkeypatch.undo()
    with pytest.raises(PromptTooLongError, match="the prompt has 7000 tokens"):
        llm.generate("x" * 7000)


WRONG_CALLS: dict[str, Callable[[Any], object]] = {
    "mapping for sampling": lambda llm: llm.generate("a", {"max_tokens": 3}),
    "empty mapping for sampling": lambda llm: llm.generate("a", {}),
    "list of mappings for sampling": lambda llm: llm.generate(["a"], [{}]),
    "number for sampling": lambda llm: llm.generate("a", 5),
    "mapping to stream": lambda llm: llm.stream("a", {"max_tokens": 3}),
    "ragged prompt": lambda llm: llm.generate([[1, [2, 3]]]),
    "matrix prompt": lambda llm: llm.stream(np.zeros((2, 2), int)),
    "no messages": lambda llm: llm.chat(None),
    "number for messages": lambda llm: llm.chat(5),
    "text for messages": lambda llm: llm.chat("hello"),
    "no prompt to stream": lambda llm: llm.stream(None),
    "number to stream": lambda llm: llm.stream(5),
    "bytes to stream": lambda llm: llm.stream(b"x"),
    "no text": lambda llm: llm.tokenize(None),
    "bytes for text": lambda llm: llm.tokenize(b"x"),
    "text for ids": lambda llm: llm.detokenize("abc"),
    "list of text for ids": lambda llm: llm.detokenize(["a"]),
    "fraction for an id": lambda llm: llm.detokenize([1.5]),
    "none for an id": lambda llm: llm.detokenize([None]),
    "none for ids": lambda llm: llm.detokenize(None),
    "number for ids": lambda llm: llm.detokenize(5),
}


@pytest.mark.parametrize("call", WRONG_CALLS.values(), ids=WRONG_CALLS.keys())
def test_what_is_of_the_wrong_type_is_refused(llm: LLM, call: Callable[[Any], object]) -> None:
    with pytest.raises(RequestError, match="; allowed: "):
        call(llm)
    assert not llm.text_engine.busy


def test_memory_that_runs_out_in_a_step_is_a_capacity_error() -> None:
    class Hungry(ScriptedInterpreter):
        def run(self, batch: Batch) -> Float32:
            raise MemoryError

    llm = LLM(text_engine(Hungry(vocabulary=ByteTokenizer.vocab_size)))
    with pytest.raises(CapacityError, match="not enough memory for step 1 of 3 tokens"):
        llm.generate("abc", SHORT)
    assert not llm.text_engine.busy


def test_close_aborts_what_is_open() -> None:
    with LLM(text_engine()) as llm:
        stream = llm.stream("hello", SHORT)
        next(stream)
    assert not llm.text_engine.busy
    with pytest.raises(EngineError, match="was dropped"):
        list(stream)
