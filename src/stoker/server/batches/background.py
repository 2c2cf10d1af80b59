"""A host whose models answer in the background: each request only takes part in steps nobody else needs."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Callable
from typing import Any, cast

from stoker.api.events import Event
from stoker.api.protocols import ModelCard, ModelHost, ServedModel
from stoker.api.request import Request

_LOOK_S = 0.05


class BackgroundModel:
    """`model`, with `Request.background` set on whatever it is asked."""

    def __init__(self, model: ServedModel) -> None:
        self._model = model

    def generate(self, request: Request) -> AsyncIterator[Event]:
        """As the model's."""
        return self._model.generate(dataclasses.replace(request, background=True))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)


class BackgroundHost:
    """`host`, whose models are `BackgroundModel`s. Closing it is its owner's part."""

    def __init__(self, host: ModelHost, is_busy: Callable[[], bool]) -> None:
        """`is_busy` tells whether anybody waits for an answer of any model."""
        self._host = host
        self._is_busy = is_busy

    def cards(self) -> tuple[ModelCard, ...]:
        """As the host's."""
        return self._host.cards()

    @contextlib.asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[ServedModel]:
        """As the host's, once nobody waits for another model.

        An engine lets what is in the background wait for its own calls; it does not know of other models',
        which may need its memory, and its cores.
        """
        while self._is_busy() and len(self._host.cards()) > 1:
            await asyncio.sleep(_LOOK_S)
        async with self._host.use(name, keep_alive_s=keep_alive_s) as model:
            yield cast(ServedModel, BackgroundModel(model))

    def loaded(self) -> tuple[ServedModel, ...]:
        """As the host's."""
        return self._host.loaded()

    async def close(self, *, drain_s: float) -> None:
        """Does nothing: this is a view of a host that others use."""
