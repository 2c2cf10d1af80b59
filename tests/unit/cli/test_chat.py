"""The chat loop, with typed lines and key presses played by a script."""

from __future__ import annotations

import signal
from collections.abc import Iterator

import pytest

from stoker.api.chat import Message
from stoker.api.errors import PromptTooLongError
from stoker.cli import chat as chat_module
from stoker.cli.chat import chat
from stoker.cli.interrupt import SingleInterrupt
from stoker.cli.talk import Talker
from stoker.llm import Piece

from .fakes import FAILURE, ScriptedModel


def _type(monkeypatch: pytest.MonkeyPatch, *lines: str | type[BaseException]) -> Iterator[object]:
    """Each call of input() gives the next line, or raises the next exception; returns what is left."""
    left = iter(lines)

    def read() -> str:
        line = next(left)
        if isinstance(line, str):
            return line
        raise line

    monkeypatch.setattr("builtins.input", read)
    return left


def test_answers_go_to_stdout_and_the_rest_to_stderr(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _type(monkeypatch, "hello", EOFError)
    chat(ScriptedModel("good day").talker())
    shown = capsys.readouterr()
    assert shown.out == "good day\n"
    assert "answer 8 tokens" in shown.err


def test_ctrl_c_stops_the_answer_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _type(monkeypatch, "a", "b", EOFError)
    model = ScriptedModel("long^C answer", "next")
    chat(model.talker())
    shown = capsys.readouterr()
    assert shown.out == "long\nnext\n"
    assert "stopped" in shown.err
    assert len(model.prompts) == 2


def test_ctrl_c_twice_at_the_prompt_leaves_but_not_when_a_question_came_between(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = _type(monkeypatch, KeyboardInterrupt, "a", KeyboardInterrupt, KeyboardInterrupt, "never read")
    chat(ScriptedModel("x").talker())
    assert list(left) == ["never read"]
    assert capsys.readouterr().out == "x\n"


def test_a_refused_question_is_one_line_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _type(monkeypatch, "too long", "short", EOFError)
    chat(ScriptedModel(PromptTooLongError("the prompt has 9 tokens; allowed: at most 8"), "ok").talker())
    shown = capsys.readouterr()
    assert "stoker: error: the prompt has 9 tokens; allowed: at most 8\n" in shown.err
    assert shown.out == "ok\n"


def test_commands(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    left = _type(monkeypatch, "a", "/clear", "/nonsense", "/help", "   ", "b", "/exit", "never read")
    model = ScriptedModel("x", "y")
    chat(model.talker(), show_timing=False)
    assert list(left) == ["never read"]
    assert len(model.prompts[1]) == 1  # the first question was forgotten
    shown = capsys.readouterr().err
    assert "/nonsense is no command; known: /clear, /help, /exit" in shown
    assert "Ctrl-C stops an answer" in shown
    assert "tokens/s" not in shown


def test_a_backslash_goes_on_in_the_next_line(monkeypatch: pytest.MonkeyPatch) -> None:
    _type(monkeypatch, "first\\", "second", EOFError)
    model = ScriptedModel("x")
    chat(model.talker(is_chat=False))
    assert model.prompts == ["first\nsecond"]


def test_a_failure_of_the_model_is_one_line_and_the_chat_goes_on(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    _type(monkeypatch, "a", "b", EOFError)
    chat(ScriptedModel("par^E", "ok").talker())
    shown = capsys.readouterr()
    assert f"stoker: error: {FAILURE}\n" in shown.err
    assert shown.out == "par\nok\n"


def test_ctrl_c_before_the_first_token_stops_the_answer(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Where the template and the tokenizer work: outside of the answer's own iteration."""
    _type(monkeypatch, "a", "b", EOFError)
    model = ScriptedModel("never", "ok")
    generate = model.generate

    def interrupted(prompt: str | tuple[Message, ...]) -> Iterator[Piece]:
        if not model.prompts:
            model.prompts.append(prompt)
            model.answers.pop(0)
            raise KeyboardInterrupt
        return generate(prompt)

    chat(Talker("scripted", interrupted, is_chat=True))
    shown = capsys.readouterr()
    assert "stoker: stopped\n" in shown.err
    assert shown.out == "ok\n"
    assert len(model.prompts[1]) == 1  # the question that was stopped is not part of the conversation


@pytest.mark.parametrize("where", ["stopped", "tokens"])
def test_ctrl_c_while_a_line_is_written_does_not_leave(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], where: str
) -> None:
    """A signal, since what counts is that a second one does not raise while the first is dealt with."""
    _type(monkeypatch, "a", "b", EOFError)
    say = chat_module.say

    def say_with_key_press(text: str) -> None:
        if where in text:
            signal.raise_signal(signal.SIGINT)
        say(text)

    monkeypatch.setattr(chat_module, "say", say_with_key_press)
    chat(ScriptedModel("x^C", "ok").talker())
    shown = capsys.readouterr()
    assert shown.out == "x\nok\n"
    assert "stopped" in shown.err
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_an_interrupt_raises_once_for_each_arming() -> None:
    with SingleInterrupt() as interrupt:
        signal.raise_signal(signal.SIGINT)  # nobody is ready for it
        interrupt.arm()
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        interrupt.arm()
        interrupt.rest()
        signal.raise_signal(signal.SIGINT)
