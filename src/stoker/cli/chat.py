"""The chat on a terminal: a loop of questions and answers that Ctrl-C interrupts but does not end."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from stoker.api.errors import RequestError
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

    A question that is refused (too long) is taken back out of the conversation, which then goes on.
    """
    _enable_line_editing()
    say(
        f"{talker.name}: /help for help, Ctrl-D to leave"
        + ("" if talker.is_chat else "; no chat template: plain text")
    )
    interrupted_at_prompt = False
    while True:
        try:
            question = _read_question()
        except EOFError:
            print(file=sys.stderr)
            return
        except KeyboardInterrupt:
            print(file=sys.stderr)
            if interrupted_at_prompt:
                return
            interrupted_at_prompt = True
            say("Ctrl-C again, or Ctrl-D, to leave")
            continue
        interrupted_at_prompt = False
        if question.startswith("/") and _run_command(question.strip(), talker):
            return
        if question.strip() and not question.startswith("/"):
            _answer(talker, question, show_timing)


def _answer(talker: Talker, question: str, show_timing: bool) -> None:
    try:
        answer = talker.answer(question)
        answer.print_text()
    except RequestError as error:
        say(f"error: {error}")
        return
    if answer.finish_reason == INTERRUPTED:
        say("stopped")
    if show_timing:
        say(answer.timing.sentence())


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
