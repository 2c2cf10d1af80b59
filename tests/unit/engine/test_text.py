"""Text of answers: whole characters, stop strings across tokens, what counts and what is cut off."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from tests.fakes import ByteTokenizer, RecitingInterpreter, ScriptedInterpreter, text_engine

from stoker.api import DoneEvent, Event, Message, Request, SamplingParams, TokensEvent
from stoker.api.errors import ModelFormatError, PromptTooLongError, RequestError
from stoker.engine.text import ScoresEvent, TextEngine

PROMPT = "say:"
WORD = {word: 258 + i for i, word in enumerate(ByteTokenizer.WORDS)}


def recite(
    script: Sequence[int] | str, *, streams: bool = True, **params: object
) -> list[Event | ScoresEvent]:
    """The events of a model that says `script`, sampled greedily."""
    token_ids = list(script.encode()) if isinstance(script, str) else list(script)
    engine = text_engine(RecitingInterpreter([*token_ids, ByteTokenizer.EOS], prompt_tokens=len(PROMPT)))
    request = Request("r", PROMPT, SamplingParams(temperature=0, **params))  # type: ignore[arg-type]
    engine.open(request, engine.encode(request), streams=streams)
    events = run(engine)
    engine.engine.check()
    assert engine.engine.pool.held == 0
    return events


def run(engine: TextEngine) -> list[Event | ScoresEvent]:
    events = []
    while engine.busy:
        events += engine.step()
    return events


def text_of(events: list[Event | ScoresEvent], choice: int = 0) -> str:
    return "".join(e.text for e in events if isinstance(e, TokensEvent) and e.choice == choice)


def tokens_of(events: list[Event | ScoresEvent], choice: int = 0) -> list[int]:
    return [t for e in events if isinstance(e, TokensEvent) and e.choice == choice for t in e.token_ids]


def done_of(events: list[Event | ScoresEvent]) -> DoneEvent:
    (done,) = (event for event in events if isinstance(event, DoneEvent))
    assert events[-1] is done
    return done


def test_eos_ends_an_answer_and_is_a_token_but_no_text() -> None:
    events = recite("coal")
    assert text_of(events) == "coal"
    assert tokens_of(events) == [*b"coal", ByteTokenizer.EOS]
    done = done_of(events)
    assert (done.finish_reason, done.stop_reason) == ("stop", None)
    assert (done.usage.prompt_tokens, done.usage.completion_tokens) == (4, 5)
    assert done.seed == 1000  # drawn, and reported


def test_a_character_comes_when_its_last_byte_does() -> None:
    events = recite("é€😀")
    pieces = [event.text for event in events if isinstance(event, TokensEvent)]
    assert pieces == ["", "é", "", "", "€", "", "", "", "😀", ""]


def test_half_a_character_at_the_end_becomes_a_replacement() -> None:
    assert text_of(recite("a€", max_tokens=3)) == "a\ufffd"


@pytest.mark.parametrize("streams", [True, False])
@pytest.mark.parametrize(
    ("script", "stop", "text", "matched", "tokens"),
    [
        ("one STOP two", ("STOP",), "one ", "STOP", 8),
        ("one STOP two", ("TOP t", "STOP two"), "one S", "TOP t", 10),
        ("SSTSTOSTOP!", ("STOP",), "SSTSTO", "STOP", 10),
        ("a\n\nb", ("\n\n",), "a", "\n\n", 3),
        ("abc", ("a",), "", "a", 1),
        ("ends in STO", ("STOP",), "ends in STO", None, 12),
    ],
)
def test_stop_strings_span_tokens(
    script: str, stop: tuple[str, ...], text: str, matched: str | None, tokens: int, streams: bool
) -> None:
    events = recite(script, stop=stop, streams=streams)
    assert text_of(events) == text
    assert done_of(events).stop_reason == matched
    assert done_of(events).finish_reason == "stop"
    assert len(tokens_of(events)) == tokens


def test_a_stop_string_in_the_middle_of_a_token() -> None:
    script = [*b"hot", WORD[" boiler"], *b"!"]
    events = recite(script, stop=("boi",))
    assert text_of(events) == "hot "
    assert tokens_of(events) == script[:4]
    events = recite(script, stop=("boi",), include_stop_str_in_output=True)
    assert text_of(events) == "hot boi"


def test_a_stop_string_completed_by_the_last_token_allowed_is_a_stop() -> None:
    done = done_of(recite("abcd", stop=("cd",), max_tokens=4))
    assert (done.finish_reason, done.stop_reason) == ("stop", "cd")


def test_stop_strings_wait_for_min_tokens() -> None:
    events = recite("xxSTOPyySTOPzz", stop=("STOP",), min_tokens=7)
    assert text_of(events) == "xxSTOPyy"
    # Ending at exactly min_tokens is allowed.
    assert text_of(recite("xxSTOPyy", stop=("P",), min_tokens=6)) == "xxSTO"
    assert text_of(recite("xxSTOPyy", stop=("P",), min_tokens=7)) == "xxSTOPyy"


def test_stop_tokens_are_no_text_unless_asked_for() -> None:
    script = [*b"hot", WORD[" coal"], *b"!"]
    events = recite(script, stop_token_ids=(WORD[" coal"],))
    assert text_of(events) == "hot"
    assert tokens_of(events) == script[:4]
    assert done_of(events).stop_reason == WORD[" coal"]
    events = recite(script, stop_token_ids=(WORD[" coal"],), include_stop_str_in_output=True)
    assert text_of(events) == "hot coal"


def test_min_tokens_masks_eos_and_stop_tokens() -> None:
    events = recite([ByteTokenizer.EOS], min_tokens=5, max_tokens=20)
    tokens = tokens_of(events)
    assert len(tokens) == 6
    assert tokens[5] == ByteTokenizer.EOS
    assert ByteTokenizer.EOS not in tokens[:5]


def test_ignore_eos_goes_on_to_max_tokens() -> None:
    events = recite("a", ignore_eos=True, max_tokens=6)
    assert tokens_of(events) == [ord("a"), *[ByteTokenizer.EOS] * 5]
    assert text_of(events) == "a"
    assert done_of(events).finish_reason == "length"


def test_without_max_tokens_the_context_is_the_end() -> None:
    engine = text_engine(context_tokens=50)
    engine.open(Request("r", PROMPT, SamplingParams(ignore_eos=True)), list(PROMPT.encode()))
    events = run(engine)
    assert len(tokens_of(events)) == 46
    assert done_of(events).finish_reason == "length"


def test_logprobs_come_with_their_tokens() -> None:
    for streams in (True, False):
        events = recite("coal", logprobs=2, streams=streams)
        entries = [x for e in events if isinstance(e, TokensEvent) and e.logprobs for x in e.logprobs]
        assert [entry.token_id for entry in entries] == tokens_of(events)
        assert all(
            len(entry.top) == 2 and entry.top[0] == (entry.token_id, entry.logprob) for entry in entries
        )
    assert all(e.logprobs is None for e in recite("coal") if isinstance(e, TokensEvent))
    zero = [e for e in recite("coal", logprobs=0) if isinstance(e, TokensEvent)]
    assert all(e.logprobs is not None and e.logprobs[0].top == () for e in zero)


def test_streamed_and_whole_are_the_same_text() -> None:
    for seed in range(5):
        found = []
        for streams in (True, False):
            engine = text_engine()
            params = SamplingParams(
                max_tokens=60, seed=seed, n=3, logprobs=1, ignore_eos=True, stop=("\x07",)
            )
            engine.open(Request("r", PROMPT, params), list(PROMPT.encode()), streams=streams)
            events = run(engine)
            found.append([(text_of(events, i), tokens_of(events, i)) for i in range(3)])
            assert sum(isinstance(event, DoneEvent) for event in events) == 3
        assert found[0] == found[1]


def test_a_chat_goes_through_the_template() -> None:
    engine = text_engine()
    ids = engine.encode(Request("r", (Message("user", "<turn>hi"),)))
    assert ids == [ByteTokenizer.TURN, *b"user: <turn>hi", ByteTokenizer.TURN]


def test_special_tokens_in_a_text_prompt_are_text() -> None:
    assert ByteTokenizer.TURN not in text_engine().encode(Request("r", "a<turn>b"))


def test_without_a_template_a_chat_is_refused() -> None:
    full = text_engine()
    plain = TextEngine(full.engine, full.tokenizer, seeds=full._seeds, name="base")
    with pytest.raises(RequestError, match="base has no chat template"):
        plain.encode(Request("r", (Message("user", "hi"),)))


@pytest.mark.parametrize(
    ("prompt", "params", "error", "says"),
    [
        ("", {}, RequestError, "prompt is empty"),
        ("x" * 100, {}, PromptTooLongError, "the prompt has 100 tokens; allowed: at most 100, with 1 more"),
        ("x" * 95, {"min_tokens": 6}, PromptTooLongError, "95 tokens; allowed: at most 100, with 6 more"),
        ("x", {"stop_token_ids": (265,)}, RequestError, "stop_token_ids has token id 265; allowed: 0 to 264"),
        ("x", {"logit_bias": {300: 1.0}}, RequestError, "300"),
        ("x", {"stop": ("y" * 5000,)}, RequestError, "5000 characters"),
    ],
)
def test_what_cannot_be_answered_is_refused_and_queues_nothing(
    prompt: str, params: dict[str, object], error: type[Exception], says: str
) -> None:
    engine = text_engine(context_tokens=100)
    with pytest.raises(error, match=says):
        engine.open(Request("r", prompt, SamplingParams(**params)), list(prompt.encode()))  # type: ignore[arg-type]
    assert not engine.busy
    assert engine.step() == []


def test_a_prediction_longer_than_the_context_is_refused_and_queues_nothing() -> None:
    engine = text_engine(context_tokens=100)
    for chars, says in ((101, "has 101 tokens; allowed: at most 100"), (100_000, "has at least ")):
        with pytest.raises(PromptTooLongError, match=f"the prediction {says}"):
            engine.open(Request("r", "x", SamplingParams(max_tokens=3), prediction="y" * chars), [120])
        assert not engine.busy
    engine.open(Request("r", "x", SamplingParams(max_tokens=3), prediction="y" * 100), [120])
    assert done_of(run(engine)).finish_reason == "length"


def test_token_ids_outside_the_vocabulary_are_refused() -> None:
    with pytest.raises(RequestError, match="token id 265; allowed: 0 to 264"):
        text_engine().open(Request("r", (1, 265)), [1, 265])
    with pytest.raises(RequestError, match="-1"):
        text_engine().open(Request("r", (1, -1)), [1, -1])


def test_a_request_id_is_taken_while_it_is_open() -> None:
    engine = text_engine()
    engine.open(Request("r", "a", SamplingParams(max_tokens=3, ignore_eos=True)), [1])
    with pytest.raises(RequestError, match="'r' is open already"):
        engine.open(Request("r", "b"), [2])
    assert len(tokens_of(run(engine))) == 3
    engine.open(Request("r", "b", SamplingParams(max_tokens=1)), [2])


def test_the_cache_bounds_the_context_and_says_so() -> None:
    engine = text_engine(ScriptedInterpreter(vocabulary=ByteTokenizer.vocab_size, num_blocks=4))
    with pytest.raises(PromptTooLongError, match="the KV cache holds 64 tokens, the model takes 1000"):
        engine.open(Request("r", "x" * 64), [1] * 64)


def test_a_tokenizer_of_another_size_is_refused() -> None:
    with pytest.raises(ModelFormatError, match="300 logits, its tokenizer 265"):
        text_engine(ScriptedInterpreter(vocabulary=300))


def test_all_tokens_banned_ends_in_error_and_spares_the_others() -> None:
    engine = text_engine()
    banned = {token: float("-inf") for token in range(ByteTokenizer.vocab_size)}
    engine.open(Request("bad", "x", SamplingParams(logit_bias=banned)), [1])
    engine.open(Request("good", "y", SamplingParams(max_tokens=4, ignore_eos=True)), [2])
    events = run(engine)
    done = {event.request_id: event for event in events if isinstance(event, DoneEvent)}
    assert done["bad"].finish_reason == "error"
    assert "no token was left" in str(done["bad"].stop_reason)
    assert done["bad"].usage.completion_tokens == 0
    assert done["good"].usage.completion_tokens == 4


def test_abort_leaves_no_trace() -> None:
    engine = text_engine()
    engine.open(Request("r", "x", SamplingParams(n=3, ignore_eos=True)), [1] * 40)
    for _ in range(4):
        engine.step()
    engine.abort("r")
    engine.abort("r")
    assert not engine.busy
    engine.engine.check()
    assert engine._choices == {}
    assert engine._requests == {}
