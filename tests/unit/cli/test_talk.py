"""Conversations: what is remembered, and what an interruption leaves behind."""

from __future__ import annotations

import pytest

from stoker.api.chat import Message
from stoker.api.errors import EngineError, PromptTooLongError

from .fakes import FAILURE, ScriptedModel


def test_turns_follow_each_other_behind_the_system_message() -> None:
    model = ScriptedModel("one", "two")
    talker = model.talker(system="be brief")
    assert list(talker.answer("a")) == ["o", "n", "e"]
    list(talker.answer("b"))
    assert model.prompts[1] == (
        Message("system", "be brief"),
        Message("user", "a"),
        Message("assistant", "one"),
        Message("user", "b"),
    )
    talker.clear()
    assert talker.turns == (Message("system", "be brief"),)


def test_without_a_template_each_question_is_a_text_to_go_on_with() -> None:
    model = ScriptedModel("x", "y")
    talker = model.talker(is_chat=False)
    list(talker.answer("Once"))
    list(talker.answer("Twice"))
    assert model.prompts == ["Once", "Twice"]
    assert talker.turns == ()


def test_an_interrupted_answer_is_kept_as_far_as_it_came() -> None:
    model = ScriptedModel("half^C way", "rest")
    talker = model.talker()
    answer = talker.answer("go")
    assert "".join(answer) == "half"
    assert answer.finish_reason == "interrupted"
    assert not model.completed[0]
    assert talker.turns == (Message("user", "go"), Message("assistant", "half"))


def test_an_interruption_while_printing_ends_the_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    model = ScriptedModel("abc")
    talker = model.talker()

    class InterruptedTerminal:
        def write(self, text: str) -> None:
            if text == "b":
                raise KeyboardInterrupt

        def flush(self) -> None:
            pass

    monkeypatch.setattr("sys.stdout", InterruptedTerminal())
    answer = talker.answer("go")
    answer.print_text()
    assert answer.finish_reason == "interrupted"
    assert not model.completed[0]
    assert talker.turns[-1] == Message("assistant", "ab")


def test_a_refused_question_leaves_the_conversation_as_it_was() -> None:
    model = ScriptedModel("fine", PromptTooLongError("the prompt has 9 tokens; allowed: at most 8"), "again")
    talker = model.talker()
    list(talker.answer("a"))
    before = talker.turns
    with pytest.raises(PromptTooLongError):
        list(talker.answer("far too long"))
    assert talker.turns == before
    assert "".join(talker.answer("b")) == "again"


def test_the_finished_answer_has_everything_for_json() -> None:
    answer = ScriptedModel("hi").talker().answer("a")
    list(answer)
    shown = answer.as_dict()
    assert shown["text"] == "hi"
    assert shown["token_ids"] == [ord("h"), ord("i")]
    assert (shown["finish_reason"], shown["seed"]) == ("stop", 7)
    assert (shown["prompt_tokens"], shown["completion_tokens"]) == (5, 2)
    assert shown["time_to_first_token_s"] >= 0
    assert shown["stop_reason"] is None
    answer.check()


def test_a_failure_of_the_model_says_why_and_is_not_remembered(capsys: pytest.CaptureFixture[str]) -> None:
    talker = ScriptedModel("par^E", "^E").talker()
    answer = talker.answer("a")
    answer.print_text()
    assert capsys.readouterr().out == "par\n"
    assert (answer.as_dict()["finish_reason"], answer.as_dict()["stop_reason"]) == ("error", FAILURE)
    with pytest.raises(EngineError, match=FAILURE):
        answer.check()
    assert talker.turns == ()
    talker.answer("b").print_text()
    assert capsys.readouterr().out == ""
