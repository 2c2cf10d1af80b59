"""A model that says what a test wants, one token for each character."""

from __future__ import annotations

from collections.abc import Iterator

from stoker.api.chat import Message
from stoker.cli.talk import Talker
from stoker.llm import Piece

FAILURE = "no token was left to choose"


class ScriptedModel:
    """Answers each prompt with the next of `answers`; remembers the prompts, and how each stream ended.

    An answer that holds "^C" raises KeyboardInterrupt there, as Python does when the user presses it; one
    that holds "^E" ends there because the model fails.
    """

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.prompts: list[str | tuple[Message, ...]] = []
        self.completed: list[bool] = []

    def generate(self, prompt: str | tuple[Message, ...]) -> Iterator[Piece]:
        self.prompts.append(prompt)
        answer = self.answers.pop(0)
        self.completed.append(False)
        if isinstance(answer, Exception):
            raise answer
        shown, failure, _ = answer.partition("^E")
        shown, interrupt, _ = shown.partition("^C")
        for character in shown:
            yield Piece(character, (ord(character),))
        if interrupt:
            raise KeyboardInterrupt
        if failure:
            yield Piece("", (), finish_reason="error", stop_reason=FAILURE, seed=7, prompt_tokens=5)
            return
        self.completed[-1] = True
        yield Piece("", (), finish_reason="stop", seed=7, prompt_tokens=5)

    def talker(self, *, is_chat: bool = True, system: str | None = None) -> Talker:
        """A conversation with this model."""
        return Talker("scripted", self.generate, is_chat=is_chat, system=system, facts=("2 threads",))
