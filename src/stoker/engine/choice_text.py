"""The text of one choice as its tokens come: whole characters, up to a stop string."""

from __future__ import annotations

from stoker.api.request import SamplingParams
from stoker.tokenizer import Detokenizer, StopStrings, Tokenizer


class ChoiceText:
    """Takes tokens, gives text that is certain. Stop strings count from the min_tokens-th token on."""

    __slots__ = ("_detokenizer", "_params", "_plain", "_ready", "_stops", "_tokens")

    def __init__(self, tokenizer: Tokenizer, params: SamplingParams) -> None:
        # An answer follows its prompt: a leading space is part of it.
        self._detokenizer = Detokenizer(tokenizer, continuation=True)
        self._params = params
        self._stops = StopStrings(params.stop)
        self._plain = not params.stop  # all text is certain as soon as its characters are whole
        self._tokens = 0  # pushed so far
        self._ready = ""  # certain, not yet taken

    @property
    def stop_string(self) -> str | None:
        """The stop string that ended the text, if one did."""
        return self._stops.matched

    def push(self, token_ids: list[int]) -> None:
        """Add tokens. Once a stop string is complete, what follows it is dropped."""
        if self._plain:
            self._ready += self._detokenizer.push(token_ids)
            return
        free = max(min(len(token_ids), self._params.min_tokens - 1 - self._tokens), 0)
        self._tokens += len(token_ids)
        if free:  # too early to stop
            self._ready += self._detokenizer.push(token_ids[:free])
        if free < len(token_ids):
            self._add(self._detokenizer.push(token_ids[free:]))

    def finish(self) -> None:
        """No token follows: what was held back is certain now."""
        if self.stop_string is not None:
            return
        self._add(self._detokenizer.flush())
        if self.stop_string is None:
            self._ready += self._stops.flush()

    def take(self) -> str:
        """The text that became certain since the last time."""
        text, self._ready = self._ready, ""
        return text

    def _add(self, text: str) -> None:
        if self.stop_string is not None:
            return
        emitted, stopped = self._stops.push(text)
        self._ready += emitted
        if stopped and self._params.include_stop_str_in_output:
            self._ready += self._stops.matched or ""
