"""GET /stats: one object per model on offer, texts of hot prefixes, reasons where numbers are missing."""

from __future__ import annotations

import asyncio
import json

from tests.unit.telemetry.fake_host import FakeHost, FakeModel, ManualClock

from stoker.api import EngineStats, HotPrefix
from stoker.api.errors import UnavailableError
from stoker.telemetry import stats_json


def _script(request):
    raise AssertionError("nobody asks")


def _stats(*models: FakeModel, offered: tuple[str, ...] = ()) -> dict[str, object]:
    answer = asyncio.run(stats_json(FakeHost(*models, offered=offered), clock=ManualClock()))
    assert json.loads(json.dumps(answer)) == answer  # plain JSON values only
    return answer


def test_loaded_and_offered_models() -> None:
    answer = _stats(
        FakeModel("m", _script, stats=EngineStats(running=2, blocks=8, blocks_free=8)), offered=("x",)
    )
    assert answer["time_s"] == 100.0
    first, second = answer["models"]
    assert (first["name"], first["loaded"], first["ready"], first["has_chat_template"]) == (
        "m",
        True,
        True,
        True,
    )
    assert first["context_tokens"] == 2048
    assert first["stats"]["running"] == 2
    assert first["stats"]["blocks_free"] == 8
    assert "hottest" not in first["stats"]
    assert (second["name"], second["loaded"], second["stats"], second["has_chat_template"]) == (
        "x",
        False,
        None,
        None,
    )


def test_hot_prefixes_are_text_with_each_token_once() -> None:
    hottest = (
        HotPrefix(tokens=9, hits=5, head_ids=(0, 1, 2), tail_ids=(7, 8)),  # a gap between head and tail
        HotPrefix(tokens=4, hits=4, head_ids=(0, 1, 2), tail_ids=(2, 3)),  # they overlap
        HotPrefix(tokens=5, hits=3, head_ids=(0, 1, 2), tail_ids=(3, 4)),  # they meet
        HotPrefix(tokens=2, hits=2, head_ids=(0, 1), tail_ids=(0, 1)),  # the head is all
        HotPrefix(tokens=2, hits=1, head_ids=(0, 99), tail_ids=(0, 99)),  # an id without text
    )
    (model,) = _stats(FakeModel("m", _script, stats=EngineStats(hottest=hottest)))["models"]
    assert [(p["head"], p["tail"]) for p in model["hottest"]] == [
        ("abc", "hi"),
        ("abcd", ""),
        ("abcde", ""),
        ("ab", ""),
        ("token ids 0 99", ""),
    ]
    assert [p["hits"] for p in model["hottest"]] == [5, 4, 3, 2, 1]


def test_a_model_without_numbers_says_why() -> None:
    slow = FakeModel("slow", _script)
    slow.stats_delay_s = 30
    down, late = _stats(FakeModel("down", _script, stats=UnavailableError("it restarts")), slow)["models"]
    assert (down["stats"], down["error"]) == (None, "it restarts")
    assert (late["stats"], late["error"]) == (None, "slow did not answer within 3 s")
