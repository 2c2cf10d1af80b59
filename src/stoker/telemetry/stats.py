"""What GET /stats answers: every model on offer, and of the loaded ones their engine's counters and hottest
prefixes as text. Counters only; who reads them twice derives the rates from `time_s`.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import Callable

from stoker.api.errors import StokerError
from stoker.api.protocols import ModelCard, ModelHost, ServedModel
from stoker.api.stats import EngineStats, HotPrefix

# An engine answers between two steps, and its process gives the last known counters after a second. Beyond
# three, saying that it does not answer tells more than waiting; Prometheus gives up after ten.
STATS_TIMEOUT_S = 3.0


async def read_stats(model: ServedModel) -> EngineStats | str:
    """A model's counters, or in one sentence why there are none now. Takes at most `STATS_TIMEOUT_S`."""
    try:
        async with asyncio.timeout(STATS_TIMEOUT_S):
            return await model.stats()
    except TimeoutError:
        return f"{model.card.name} did not answer within {STATS_TIMEOUT_S:g} s"
    except StokerError as error:
        return str(error)


async def read_all_stats(host: ModelHost) -> list[tuple[ServedModel, EngineStats | str]]:
    """The loaded models with what `read_stats` says of each; they are asked at the same time."""
    models = host.loaded()
    return list(zip(models, await asyncio.gather(*map(read_stats, models)), strict=True))


async def stats_json(host: ModelHost, *, clock: Callable[[], float] = time.monotonic) -> dict[str, object]:
    """The answer to GET /stats, ready for a JSON encoder.

    `time_s` is a monotonic clock in seconds. Each of `models` has `name`, `loaded`, `context_tokens`,
    `ready`, `has_chat_template` (none while it is not loaded), `stats` (the fields of `EngineStats` without
    `hottest`, or none), `hottest` (`tokens`, `hits`, `head`, `tail`: the text's start and end, `tail` empty
    where `head` is all of it) and `error`, which says why `stats` is missing.
    """
    loaded = {model.card.name: (model, stats) for model, stats in await read_all_stats(host)}
    models = [
        _offered(card) if card.name not in loaded else _loaded(*loaded[card.name]) for card in host.cards()
    ]
    return {"time_s": clock(), "models": models}


def _offered(card: ModelCard) -> dict[str, object]:
    return {
        "name": card.name,
        "loaded": False,
        "context_tokens": card.context_tokens,
        "ready": False,
        "has_chat_template": None,
        "stats": None,
        "hottest": [],
        "error": None,
    }


def _loaded(model: ServedModel, stats: EngineStats | str) -> dict[str, object]:
    values = _offered(model.card) | {
        "loaded": True,
        "ready": model.ready,
        "has_chat_template": model.has_chat_template,
    }
    if isinstance(stats, str):
        return values | {"error": stats}
    fields = {
        f.name: _plain(getattr(stats, f.name)) for f in dataclasses.fields(stats) if f.name != "hottest"
    }
    return values | {"stats": fields, "hottest": [_hot_prefix(model, prefix) for prefix in stats.hottest]}


def _plain(value: float | tuple[int, ...]) -> float | list[int]:
    return list(value) if isinstance(value, tuple) else value


def _hot_prefix(model: ServedModel, prefix: HotPrefix) -> dict[str, object]:
    head_ids, tail_ids = list(prefix.head_ids[: prefix.tokens]), list(prefix.tail_ids)
    between = prefix.tokens - len(head_ids)
    if between <= len(tail_ids):  # the two meet or overlap: one text, each token once
        head_ids += tail_ids[len(tail_ids) - between :]
        tail_ids = []
    return {
        "tokens": prefix.tokens,
        "hits": prefix.hits,
        "head": _text(model, head_ids),
        "tail": _text(model, tail_ids),
    }


def _text(model: ServedModel, token_ids: list[int]) -> str:
    """The text of token ids; the ids themselves where the model does not know one of them."""
    if not token_ids:
        return ""
    try:
        return model.decode(token_ids)
    except StokerError:
        return "token ids " + " ".join(map(str, token_ids))
