"""JSON text read byte by byte, telling of every name and value as it is completed."""

from __future__ import annotations

import json
from dataclasses import dataclass
from enum import Enum, auto
from typing import Any, Protocol

_SPACE = b" \t\r\n"
_OPENING = b"{["
_CLOSING = b"}]"
MOST_OPEN = 100  # values inside one another; a text that would go deeper is refused
_WORDS = (b"null", b"true", b"false")


class Listener(Protocol):
    """Who is told. A call returns False to say that the text must not go on so."""

    def opened(self, reader: Reader, kind: str) -> bool:
        """A value begins whose JSON type is known by now; containers are on the reader's stack already."""
        ...

    def named(self, reader: Reader, name: str) -> bool:
        """A property's name is complete; its object is the last frame."""
        ...

    def continued(self, reader: Reader) -> bool:
        """A comma: the last frame gets another member."""
        ...

    def completed(self, reader: Reader, value: Any) -> bool:
        """A value is complete and belongs to the last frame, or is the whole text where there is none."""
        ...


@dataclass(slots=True)
class Frame:
    """An open object or array."""

    value: Any  # dict or list, of what is complete
    name: str | None = None  # of the property under way


class _State(Enum):
    VALUE = auto()  # a value comes, or the end of an empty array
    NAME = auto()  # a name comes, or the end of an empty object
    COLON = auto()
    AFTER = auto()  # a comma or the end of the container comes
    STRING = auto()
    NUMBER = auto()
    WORD = auto()  # null, true, false
    DONE = auto()


class Reader:
    """Reads one JSON text. Copied to try what would come of a token.

    That the text is well formed is a grammar's business: of what is not, only some is refused, among it what
    cannot be the beginning of a value.
    """

    def __init__(self) -> None:
        self.frames: list[Frame] = []
        self._state = _State.VALUE
        self._text = bytearray()  # of the string, number or word under way
        self._escaped = False
        self._is_name = False

    @property
    def done(self) -> bool:
        """Whether the whole value is there; a number at the top is only by its end."""
        return self._state is _State.DONE

    def copy(self) -> Reader:
        """A reader in the same state, free to go elsewhere."""
        other = Reader()
        other.frames = [Frame(frame.value.copy(), frame.name) for frame in self.frames]
        other._state, other._text = self._state, self._text.copy()
        other._escaped, other._is_name = self._escaped, self._is_name
        return other

    def feed(self, data: bytes, listener: Listener) -> bool:
        """Read on. False if the listener refuses something; then this reader is of no more use."""
        return all(self._byte(byte, listener) for byte in data)

    def end(self, listener: Listener) -> bool:
        """The text ends here."""
        if self._state is _State.NUMBER and not self.frames:
            return self._number(listener)
        return True

    def _number(self, listener: Listener) -> bool:
        try:
            value = json.loads(self._text)
        except ValueError:  # of thousands of digits, which Python does not read
            return False
        return self._complete(value, listener)

    def _byte(self, byte: int, listener: Listener) -> bool:
        state = self._state
        if state is _State.STRING:
            return self._string_byte(byte, listener)
        if state is _State.NUMBER:
            if byte in b"0123456789+-.eE":
                self._text.append(byte)
                return True
            if not self._number(listener):
                return False
            state = self._state
        if state is _State.WORD:
            self._text.append(byte)
            if self._text in _WORDS:
                return self._complete(json.loads(self._text), listener)
            return any(word.startswith(self._text) for word in _WORDS)
        if byte in _SPACE or state is _State.DONE:
            return True
        if byte in _CLOSING:
            return bool(self.frames) and self._complete(self.frames.pop().value, listener)
        if byte in b",:" and state is not (_State.AFTER if byte == ord(",") else _State.COLON):
            return False
        if state is _State.AFTER:
            self._state = _State.NAME if isinstance(self.frames[-1].value, dict) else _State.VALUE
            return listener.continued(self)
        if state is _State.COLON:
            self._state = _State.VALUE
            return True
        return self._begin(byte, state, listener)

    def _begin(self, byte: int, state: _State, listener: Listener) -> bool:
        if byte in _OPENING:
            if len(self.frames) == MOST_OPEN:
                return False
            self.frames.append(Frame({} if byte == ord("{") else []))
            self._state = _State.NAME if byte == ord("{") else _State.VALUE
            return listener.opened(self, "object" if byte == ord("{") else "array")
        self._text = bytearray([byte])
        if byte == ord('"'):
            self._state, self._is_name, self._escaped = _State.STRING, state is _State.NAME, False
            return self._is_name or listener.opened(self, "string")
        if byte in b"-0123456789":
            self._state = _State.NUMBER
            return listener.opened(self, "number")
        if byte not in b"ntf":
            return False
        self._state = _State.WORD
        return listener.opened(self, "null" if byte == ord("n") else "boolean")

    def _string_byte(self, byte: int, listener: Listener) -> bool:
        self._text.append(byte)
        if self._escaped:
            self._escaped = False
        elif byte == ord("\\"):
            self._escaped = True
        elif byte == ord('"'):
            value = json.loads(bytes(self._text), strict=False)
            if not self._is_name:
                return self._complete(value, listener)
            self.frames[-1].name = value
            self._state = _State.COLON
            return listener.named(self, value)
        return True

    def _complete(self, value: Any, listener: Listener) -> bool:
        if not self.frames:
            self._state = _State.DONE
            return listener.completed(self, value)
        frame = self.frames[-1]
        self._state = _State.AFTER
        allowed = listener.completed(self, value)
        if isinstance(frame.value, dict):
            frame.value[frame.name] = value
        else:
            frame.value.append(value)
        return allowed
