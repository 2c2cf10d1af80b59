"""JSON read in pieces: every value is told of once, when its last byte has come."""

from __future__ import annotations

import json
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from stoker.grammar.schema.reader import Reader

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-99, 99) | st.floats(-9, 9) | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=2), inner, max_size=3),
    max_leaves=8,
)


class Told:
    """Writes down what it is told."""

    def __init__(self) -> None:
        self.events: list[tuple[str, Any]] = []

    def opened(self, reader: Reader, kind: str) -> bool:
        self.events.append(("opened", kind))
        return True

    def named(self, reader: Reader, name: str) -> bool:
        self.events.append(("named", name))
        return True

    def continued(self, reader: Reader) -> bool:
        self.events.append(("continued", len(reader.frames)))
        return True

    def completed(self, reader: Reader, value: Any) -> bool:
        self.events.append(("completed", json.dumps(value)))
        return True


def _completed(value: Any) -> list[str]:
    inner = value if isinstance(value, list) else value.values() if isinstance(value, dict) else []
    return [text for item in inner for text in _completed(item)] + [json.dumps(value)]


@given(VALUES, st.integers(1, 9))
def test_all_values_are_told_of_inner_ones_first(value: Any, size: int) -> None:
    data, reader, told = json.dumps(value, ensure_ascii=False).encode(), Reader(), Told()
    for at in range(0, len(data), size):
        assert reader.feed(data[at : at + size], told)
    assert reader.end(told)
    assert reader.done
    assert [text for event, text in told.events if event == "completed"] == _completed(value)


@given(VALUES, st.integers(0, 60))
def test_a_copy_goes_its_own_way(value: Any, at: int) -> None:
    data, reader = json.dumps([value, 1]).encode(), Reader()
    reader.feed(data[:at], Told())
    copy, told, told_copy = reader.copy(), Told(), Told()
    copy.feed(data[at:], told_copy)
    reader.feed(data[at:], told)
    assert told.events == told_copy.events


def test_what_cannot_begin_a_value_is_refused() -> None:
    for text in (b"<", b"x", b"nul1", b"]", b"}", b",", b'{"a",', b"[1:"):
        assert not Reader().feed(text, Told()), text


def test_a_number_at_the_top_is_complete_at_the_end() -> None:
    reader, told = Reader(), Told()
    assert reader.feed(b"-1.5e1", told)
    assert not reader.done
    assert reader.end(told)
    assert told.events[-1] == ("completed", "-15.0")
