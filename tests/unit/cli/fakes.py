"""A model that says what a test wants, one token for each character."""

from __future__ import annotations

from collections.abc import Iterator

from stoker.api.events import DoneEvent, Event, TokensEvent, Usage
from stoker.api.request import Prompt
from stoker.cli.talk import Talker


class ScriptedModel:
    """Answers each prompt with the next of `answers`; remembers the prompts, and how each stream ended.

    An answer that holds "^C" raises KeyboardInterrupt there, as Python does when the user presses it.
    """

    def __init__(self, *answers: str | Exception) -> None:
        self.answers = list(answers)
        self.prompts: list[Prompt] = []
        self.completed: list[bool] = []

    def generate(self, prompt: Prompt) -> Iterator[Event]:
        self.prompts.append(prompt)
        answer = self.answers.pop(0)
        self.completed.append(False)
        if isinstance(answer, Exception):
            raise answer
        shown, interrupt, _ = answer.partition("^C")
        for character in shown:
            yield TokensEvent("r", 0, (ord(character),), character)
        if interrupt:
            raise KeyboardInterrupt
        self.completed[-1] = True
        yield DoneEvent("r", 0, "stop", None, 7, Usage(prompt_tokens=5, completion_tokens=len(shown)))

    def talker(self, *, is_chat: bool = True, system: str | None = None) -> Talker:
        """A conversation with this model."""
        return Talker("scripted", self.generate, is_chat=is_chat, system=system, facts=("2 threads",))
