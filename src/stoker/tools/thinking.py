"""How a template's model marks its thoughts, and whether a prompt ends inside them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stoker.api.constraint import Thinking

_MARKS = (("<think>", "</think>"), ("[THINK]", "[/THINK]"), ("<thinking>", "</thinking>"))
# Written before the end mark when the budget is used up, so that the last thought does not break off.
_CLOSING = "\n\nThat is all the thinking there is room for; now the answer.\n"
# The variable that templates ask for, most by the first of these names; the second is also a common word.
_SWITCHES = (
    ("enable_thinking", re.compile(r"\benable_thinking\b")),
    ("thinking", re.compile(r"\b(?:if|not|and|or)\s+thinking\b")),
)
_LITERAL = re.compile(r"'((?:[^'\\]|\\.)*)'|\"((?:[^\"\\]|\\.)*)\"|[%}]\}([^{]*)")


@dataclass(frozen=True, slots=True)
class ThinkingMarks:
    """The marks, and how the prompt's end depends on the template's variables."""

    begin: str
    end: str
    switch: str | None = None  # the variable that turns thinking on and off: enable_thinking, thinking
    on_by_default: bool = True
    opens: bool = False  # with thinking on, the prompt ends inside the thoughts
    takes_effort: bool = False  # the template has a variable reasoning_effort

    def thinking(self, variables: Mapping[str, Any], budget_tokens: int | None) -> Thinking:
        """For a prompt that is made with `variables`."""
        return Thinking(
            self.begin,
            self.end,
            begun=self.opens and self.is_on(variables),
            budget_tokens=budget_tokens,
            closing=_CLOSING,
        )

    def is_on(self, variables: Mapping[str, Any]) -> bool:
        """False if `variables` turn thinking off."""
        if self.switch is None:
            return True
        return bool(variables.get(self.switch, self.on_by_default))


def thinking_marks(template: str) -> ThinkingMarks | None:
    """What a template's source tells; none if its model does not think aloud."""
    for begin, end in _MARKS:
        if end not in template:
            continue
        _, found, tail = template.rpartition("add_generation_prompt")
        literals = ["".join(match.groups("")) for match in _LITERAL.finditer(tail)] if found else []
        opens = any(text.rpartition(begin)[1] and end not in text.rpartition(begin)[2] for text in literals)
        switch = next((name for name, use in _SWITCHES if use.search(template)), None)
        return ThinkingMarks(
            begin,
            end,
            switch=switch,
            on_by_default=switch != "thinking",
            opens=opens,
            takes_effort=re.search(r"\breasoning_effort\b", template) is not None,
        )
    return None
