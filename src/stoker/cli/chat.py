"""The chat on a terminal: a loop of questions and answers that Ctrl-C interrupts but does not end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stoker.api.errors import CapacityError, EngineError, RequestError
from stoker.cli.interrupt import SingleInterrupt
from stoker.cli.output import say
from stoker.cli.talk import INTERRUPTED

if TYPE_CHECKING:
    from stoker.cli.talk import Talker

HELP = """\
/clear   forget the conversation so far
/help    this text
/exit    leave (so do Ctrl-D, and Ctrl-C twice)
A line that ends in \\ goes on in the next one. Ctrl-C stops an answer."""


def chat(talker: Talker, *, show_timing: bool = True) -> None:
    """Read questions from the terminal and stream answers until the user leaves.

    A question that is refused (too long) or fails is taken back out of the conversation, which then goes on.
    Ctrl-C anywhere between a question and the next prompt stops that answer and nothing else.
    """
    _enable_line_editing()
    say(
        f"{talker.name}: /help for help, Ctrl-D to leave"
        + ("" if talker.is_chat else "; no chat template: plain text")
    )
    interrupted_at_prompt = False
    with SingleInterrupt() as interrupt:
        while True:
            question = None
            try:
                interrupt.arm()
                question = _read_question()
                interrupted_at_prompt = False
                if not _carry_out(question, talker, interrupt, show_timing):
                    return
            except EOFError:
                print(file=sys.stderr)
                return
            except KeyboardInterrupt:
                if question is not None:
                    _say_stopped(interrupt)
                    continue
                print(file=sys.stderr)
                if interrupted_at_prompt:
                    return
                interrupted_at_prompt = True
                say("Ctrl-C again, or Ctrl-D, to leave")


def _carry_out(question: str, talker: Talker, interrupt: SingleInterrupt, show_timing: bool) -> bool:
    """Answer, or do what a line with "/" says; false if that is to leave."""
    if question.startswith("/"):
        return not _run_command(question.strip(), talker)
    if question.strip():
        _answer(talker, question, interrupt, show_timing)
    return True


def _answer(talker: Talker, question: str, interrupt: SingleInterrupt, show_timing: bool) -> None:
    try:
        answer = talker.answer(question)
        answer.print_text()
        answer.check()
    except (RequestError, CapacityError, EngineError) as error:
        say(f"error: {error}")
        return
    if answer.finish_reason == INTERRUPTED:
        _say_stopped(interrupt)
    if show_timing:
        say(answer.timing.sentence())


def _say_stopped(interrupt: SingleInterrupt) -> None:
    interrupt.rest()
    say("stopped")


def _run_command(command: str, talker: Talker) -> bool:
    """Carry out a line that starts with "/"; true if it asks to leave."""
    if command in {"/exit", "/quit", "/bye"}:
        return True
    if command == "/clear":
        talker.clear()
        say("conversation cleared")
    elif command == "/help":
        print(HELP, file=sys.stderr)
    else:
        say(f"{command.split()[0]} is no command; known: /clear, /help, /exit")
    return False


def _read_question() -> str:
    # The prompt goes to stderr by hand: input() would write it to stdout, which may be a file.
    lines = []
    print("> ", end="", file=sys.stderr, flush=True)
    while (line := input()).endswith("\\"):
        lines.append(line[:-1])
        print(". ", end="", file=sys.stderr, flush=True)
    return "\n".join([*lines, line])


def _enable_line_editing() -> None:
    """Arrow keys and history, where Python was built with readline; the chat works without it too."""
    try:
        import readline
    except ImportError:
        return
    readline.set_history_length(1000)
