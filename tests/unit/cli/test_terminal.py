"""The program on a terminal of its own, with keys pressed at bad moments."""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest

from .test_app import ROOT

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")

CTRL_A, CTRL_C, CTRL_D = b"\x01", b"\x03", b"\x04"  # A: to the beginning of the line
REST_S = 0.55  # a little more than the chat ignores Ctrl-C for after it has stopped


class Terminal:
    """A program on a pseudo-terminal; `shown` is all that it has written."""

    def __init__(self, *arguments: str) -> None:
        self._keys, inner = pty.openpty()
        self.shown = ""
        self.process = subprocess.Popen(
            [sys.executable, *arguments],
            stdin=inner,
            stdout=inner,
            stderr=inner,
            start_new_session=True,
            preexec_fn=_own_terminal,
            env={**os.environ, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}", "TERM": "dumb"},
        )
        os.close(inner)

    def press(self, keys: bytes) -> None:
        os.write(self._keys, keys)

    def wait_for(self, *texts: str, start: int = 0, timeout_s: float = 30) -> str:
        """The first of `texts` that shows behind character `start`."""
        end_s = time.monotonic() + timeout_s
        while time.monotonic() < end_s:
            for text in texts:
                if text in self.shown[start:]:
                    return text
            if select.select([self._keys], [], [], 0.02)[0]:
                try:
                    self.shown += os.read(self._keys, 65536).decode(errors="replace")
                except OSError:  # how a pseudo-terminal says that the other side is gone
                    break
        raise AssertionError(f"none of {texts} in {self.shown[start:]!r}; status {self.process.poll()}")

    def interrupt(self, *texts: str) -> str:
        """Ctrl-C, and the first of `texts` that shows then.

        Python loses a signal that comes just before readline begins to wait. And where the terminal throws
        away a line that readline has seen but not read yet, readline reads on through every signal, until a
        key comes. So a person, and this, presses a key that changes nothing and then again.
        """
        start = len(self.shown)
        for _ in range(5):
            self.press(CTRL_C)
            try:
                return self.wait_for(*texts, start=start, timeout_s=2)
            except AssertionError:
                if self.process.poll() is not None:
                    raise
            self.press(CTRL_A)
            time.sleep(0.1)
        return self.wait_for(*texts, start=start, timeout_s=1)

    def leave(self) -> int:
        """Ctrl-D; the exit status."""
        self.press(CTRL_D)
        try:
            return self.process.wait(timeout=20)
        finally:
            os.close(self._keys)


def _own_terminal() -> None:
    import fcntl
    import termios

    fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C arrives as a signal


def _stop_soon_after(terminal: Terminal, question: bytes, delay_s: float) -> str:
    start = len(terminal.shown)
    terminal.press(question + b"\n")
    terminal.wait_for(question.decode(), start=start)
    time.sleep(delay_s)
    # "again": it came before the line was read, and the terminal threw the line away.
    said = terminal.interrupt("stopped", "again, or")
    time.sleep(REST_S)
    terminal.press(b"\n")  # an empty question, so that no Ctrl-C counts as the first of two
    time.sleep(0.2)
    return said


SLOW_CHAT = """
import time
from tests.unit.cli.fakes import ScriptedModel
from stoker.cli.chat import chat
from stoker.cli.talk import Talker

class Slow(ScriptedModel):
    def generate(self, prompt):
        pieces = super().generate(prompt)
        time.sleep(0.02)  # as the template and the tokenizer do, before there is an iterator
        return self.slowly(pieces)
    def slowly(self, pieces):
        for piece in pieces:
            time.sleep(0.02)
            yield piece

chat(Slow(*["hoot " * 100] * 20).talker())
print("left as it should")
"""
DELAYS_S = (0.0, 0.003, 0.01, 0.03, 0.1)


def test_ctrl_c_soon_after_a_question_stops_only_the_answer() -> None:
    terminal = Terminal("-c", SLOW_CHAT)
    terminal.wait_for("> ")
    said = [_stop_soon_after(terminal, f"question {i}".encode(), delay) for i, delay in enumerate(DELAYS_S)]
    assert "stopped" in said
    start = len(terminal.shown)
    terminal.press(b"one more\n")
    terminal.wait_for("hoot", start=start)
    terminal.interrupt("stopped")
    for _ in range(5):  # a key that is held down
        terminal.press(CTRL_C)
        time.sleep(0.03)
    time.sleep(REST_S)
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.shown


def test_ctrl_c_twice_at_the_prompt_leaves() -> None:
    terminal = Terminal("-c", SLOW_CHAT)
    terminal.wait_for("> ")
    time.sleep(0.2)
    terminal.interrupt("again, or")
    time.sleep(0.2)
    terminal.interrupt("left as it should")
    assert terminal.process.wait(timeout=20) == 0


@pytest.mark.model
def test_ctrl_c_soon_after_a_question_to_a_model(smollm2_path: Path) -> None:
    terminal = Terminal("-m", "stoker", "run", str(smollm2_path), "-t", "1")
    terminal.wait_for("> ")
    question = b"Count to ten thousand."
    said = [_stop_soon_after(terminal, question, delay) for delay in DELAYS_S]
    assert "stopped" in said
    assert terminal.leave() == 0
    assert "Traceback" not in terminal.shown
