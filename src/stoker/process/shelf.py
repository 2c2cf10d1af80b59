"""Several models on one machine: each loaded on first use, and unloaded when another needs its memory.

One event loop; each model has a process of its own. What a model takes is counted as the resident memory of
its worker after loading plus the cap of its KV cache, which it may fill at any time without asking. Before it
was ever loaded, the file's size x 1.7 stands for the resident part, and a draft model's beside it.
"""

from __future__ import annotations

import asyncio
import math
import os
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from stoker.api.errors import (
    CapacityError,
    ModelNotFoundError,
    RequestError,
    UnavailableError,
)
from stoker.api.protocols import ModelCard, SeedSource, ServedModel
from stoker.process.endpoint import ProcessEndpoint
from stoker.process.options import ProcessOptions
from stoker.weights.store import resolve

# Packed weights, the interpreter and its buffers, as measured: 1.27 to 1.64 x the file at batches of 1 to 64.
# More than any, as a cap is a promise.
_RESIDENT_PER_FILE_BYTE = 1.7


class KvSized(Protocol):
    """What the shelf reads of a `LoadOptions`; the rest is the worker's."""

    @property
    def kv_bytes(self) -> int:
        """Cap of the KV cache, a draft model's included."""
        ...

    @property
    def draft_model(self) -> str | None:
        """Name or path of the model that drafts for each of them, if one does."""
        ...


class HeldModel(ServedModel, Protocol):
    """A served model as the shelf handles it; `ProcessEndpoint` is one."""

    @property
    def memory_bytes(self) -> int:
        """What it takes at most."""
        ...

    @property
    def is_down(self) -> bool:
        """True when it will not answer again: the next use loads it anew."""
        ...

    async def close(self, *, drain_s: float) -> None:
        """Let open requests finish, end the engine."""
        ...


@dataclass(frozen=True, slots=True)
class ShelfOptions:
    """How many models may be loaded, and for how long. Raises `RequestError` for a wrong value."""

    memory_bytes: int | None = None  # of all loaded models together; none: no cap
    room_wait_s: float = (
        30.0  # how long a model may wait for others to be out of use, if it needs their memory
    )
    keep_alive_s: float = -1.0  # after the last use; negative: until its memory is needed; 0: at once
    process: ProcessOptions = field(default_factory=ProcessOptions)

    def __post_init__(self) -> None:
        if self.memory_bytes is not None and self.memory_bytes < 1:
            raise RequestError(
                f"memory_bytes is {self.memory_bytes}; allowed: 1 and more, or none for no cap"
            )
        check_keep_alive(self.keep_alive_s)
        if not 0 <= self.room_wait_s <= 86_400:
            raise RequestError(f"room_wait_s is {self.room_wait_s}; allowed: 0 to 86400 seconds")


def check_keep_alive(seconds: float) -> None:
    """Raise `RequestError` unless it is a number of seconds (negative: for ever)."""
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or math.isnan(seconds):
        raise RequestError(f"keep_alive is {seconds!r}; allowed: seconds, or a negative number for ever")


class _Place:
    """One model of the shelf. Its fields are written by the shelf only."""

    def __init__(self, name: str, path: Path, kv_bytes: int, draft_bytes: int = 0) -> None:
        """`draft_bytes`: size of a draft model's file."""
        self.name = name
        self.path = path
        status = path.stat()
        self.created_s = int(status.st_mtime)
        # Of a split file the parts weigh about the same; here only the first is known.
        self.expected_bytes = int((status.st_size + draft_bytes) * _RESIDENT_PER_FILE_BYTE) + kv_bytes
        self.model: HeldModel | None = None
        self.loading: asyncio.Task[HeldModel] | None = None
        self.starting = False  # there was room for it, and its worker is on the way
        self.closing: asyncio.Task[None] | None = None
        self.users = 0
        self.last_use = 0  # of a counter of uses
        self.keep_alive_s = 0.0  # as its last use wished
        self.unload_at: asyncio.TimerHandle | None = None
        self.last_card: ModelCard | None = None  # as it was when it was last loaded

    @property
    def card(self) -> ModelCard:
        if self.model is not None:
            return self.model.card
        known = self.last_card
        if known is None:
            return ModelCard(self.name, False, created_s=self.created_s)
        return ModelCard(self.name, False, known.context_tokens, known.digest, self.created_s)

    @property
    def taken_bytes(self) -> int:
        """What it takes now: all of it from the moment its worker starts until that has ended."""
        if self.model is not None:
            return self.model.memory_bytes
        return self.expected_bytes if self.starting or self.closing is not None else 0


class ModelShelf:
    """A `ModelHost` of the models it was given. Use it in one event loop."""

    def __init__(
        self,
        models: Iterable[str | os.PathLike[str]],
        load_options: KvSized,
        options: ShelfOptions | None = None,
        *,
        seeds: SeedSource,
        aliases: Mapping[str, str] | None = None,
        start: Callable[[Path, str], Awaitable[HeldModel]] | None = None,
    ) -> None:
        """`models`: names or paths, as `stoker.weights.store.resolve` takes them; nothing is loaded yet.

        A name stays the model's name; of a path it is the file's stem. `aliases`: more names for them.
        `start` makes a loaded model of a file and its name, instead of a worker. Raises
        `ModelNotFoundError`, `ModelFormatError`; `RequestError` for no model, or two of one name.
        """
        self._options = options or ShelfOptions()
        self._load_options = load_options
        self._seeds = seeds
        self._start = start or self._start_worker
        self._places: dict[str, _Place] = {}
        draft = load_options.draft_model
        draft_bytes = 0 if draft is None else resolve(draft).stat().st_size
        for model in models:
            path = resolve(model)
            text = os.fspath(model)
            name = path.stem if os.sep in text or Path(text).is_file() else text
            if name in self._places:
                raise RequestError(f"two models are named {name!r}; allowed: names that differ")
            self._places[name] = _Place(name, path, load_options.kv_bytes, draft_bytes)
        if not self._places:
            raise RequestError("no model is given; allowed: one or more")
        self._aliases = dict(aliases or {})
        for alias, name in self._aliases.items():
            if name not in self._places or alias in self._places:
                raise RequestError(
                    f"alias {alias!r} means {name!r}; allowed: a new name for one of the models"
                )
        self._uses = 0
        self._room = asyncio.Lock()  # one at a time makes room and begins to load
        self._left = asyncio.Event()  # set when a model is out of use
        self._closing = False

    # --- ModelHost ---

    def cards(self) -> tuple[ModelCard, ...]:
        """All models on offer, loaded or not, in the order they were named."""
        return tuple(place.card for place in self._places.values())

    def loaded(self) -> tuple[ServedModel, ...]:
        """The models that are loaded now."""
        return tuple(place.model for place in self._places.values() if place.model is not None)

    @property
    def taken_bytes(self) -> int:
        """What the cap is compared with."""
        return sum(place.taken_bytes for place in self._places.values())

    @asynccontextmanager
    async def use(self, name: str, *, keep_alive_s: float | None = None) -> AsyncIterator[ServedModel]:
        """The model, loaded if need be; see `stoker.api.protocols.ModelHost`."""
        place = self._place(name)
        if keep_alive_s is None:
            keep_alive_s = self._options.keep_alive_s
        check_keep_alive(keep_alive_s)
        if self._closing:
            raise UnavailableError("the server is shutting down; it takes no new requests")
        self._enter(place)
        try:
            yield await self._model(place)
        finally:
            self._leave(place, keep_alive_s)

    async def close(self, *, drain_s: float) -> None:
        """Refuse new work, let open requests finish for at most `drain_s`, end every engine."""
        self._closing = True
        for place in self._places.values():
            self._forget_timer(place)
            if (loading := place.loading) is not None:
                loading.cancel()
                await asyncio.wait([loading])
        await asyncio.gather(
            *(self._unload(place, drain_s=drain_s) for place in self._places.values()), return_exceptions=True
        )

    # --- uses ---

    def _place(self, name: str) -> _Place:
        place = self._places.get(self._aliases.get(name, name))
        if place is None:
            known = ", ".join([*self._places, *self._aliases])
            raise ModelNotFoundError(f"model {name!r:.80} is not served here; known names: {known}")
        return place

    def _enter(self, place: _Place) -> None:
        self._forget_timer(place)
        self._uses += 1
        place.users += 1
        place.last_use = self._uses

    def _leave(self, place: _Place, keep_alive_s: float) -> None:
        self._uses += 1
        place.users -= 1
        place.last_use = self._uses
        place.keep_alive_s = keep_alive_s
        if not place.users:
            self._left.set()
        self._rest(place)

    def _rest(self, place: _Place) -> None:
        """If nobody uses it, let its time run."""
        if place.users or place.model is None or self._closing or not 0 <= place.keep_alive_s < math.inf:
            return
        # Also for 0 through the loop: whoever leaves need not wait for the worker's end.
        loop = asyncio.get_running_loop()
        place.unload_at = loop.call_later(place.keep_alive_s, self._unload_soon, place)

    def _forget_timer(self, place: _Place) -> None:
        if place.unload_at is not None:
            place.unload_at.cancel()
            place.unload_at = None

    def _unload_soon(self, place: _Place) -> None:
        place.unload_at = None
        if not place.users and place.model is not None:
            self._begin_unload(place, drain_s=0.0)

    # --- loading ---

    async def _model(self, place: _Place) -> HeldModel:
        """The loaded model; all that come while it loads wait for the same worker."""
        if place.model is not None and not place.model.is_down:
            return place.model
        if place.loading is None:
            place.loading = asyncio.create_task(self._load(place))
        loading = place.loading
        # Whoever is cancelled here does not take the others' load with them.
        await asyncio.wait([loading])
        if loading.cancelled():
            raise UnavailableError("the server is shutting down; it takes no new requests")
        return loading.result()

    async def _load(self, place: _Place) -> HeldModel:
        try:
            if place.model is not None:  # given up: its worker could not be started again
                await self._unload(place, drain_s=0.0)
            async with self._room:
                await self._make_room(place)
                place.starting = True
                model = await self._start(place.path, place.name)
            place.model = model
            place.expected_bytes = model.memory_bytes
            place.last_card = model.card
            return model
        finally:
            place.starting = False
            place.loading = None
            self._rest(place)  # those who wanted it may have left

    async def _make_room(self, place: _Place) -> None:
        """Unload idle models, the least recently used first, until this one fits. Raises `CapacityError`."""
        cap_bytes = self._options.memory_bytes
        if place.closing is not None:
            await asyncio.wait([place.closing])
        if cap_bytes is None:
            return
        needed = place.expected_bytes
        if needed > cap_bytes:
            raise CapacityError(
                f"{place.name} may take {_mb(needed)} MB; allowed: {_mb(cap_bytes)} MB for all models",
                hint="raise the memory cap, or lower the cap of the KV cache",
            )
        others = [other for other in self._places.values() if other is not place]
        end_s = asyncio.get_running_loop().time() + self._options.room_wait_s
        while sum(other.taken_bytes for other in others) + needed > cap_bytes:
            idle = [other for other in others if other.model is not None and not other.users]
            leaving = [other.closing for other in others if other.closing is not None]
            if not leaving and not idle:
                await self._wait_for_leavers(place, end_s)
                continue
            if not leaving:
                oldest = min(idle, key=lambda other: other.last_use)
                leaving = [self._begin_unload(oldest, drain_s=0.0)]
            await asyncio.wait(leaving)

    async def _wait_for_leavers(self, place: _Place, end_s: float) -> None:
        """Until a model is out of use. Raises `CapacityError` if none is by then (of the loop's clock)."""
        self._left.clear()
        try:
            async with asyncio.timeout_at(end_s):
                await self._left.wait()
        except TimeoutError:
            busy = ", ".join(other.name for other in self._places.values() if other.model and other.users)
            raise CapacityError(
                f"{place.name} may take {_mb(place.expected_bytes)} MB, and {busy} is in use; "
                f"allowed: {_mb(self._options.memory_bytes or 0)} MB for all models",
                hint="try again later, or raise the memory cap",
            ) from None

    def _begin_unload(self, place: _Place, *, drain_s: float) -> asyncio.Task[None]:
        """From now on it is not there; the task is done when its worker has ended."""
        self._forget_timer(place)
        model, place.model = place.model, None
        assert model is not None
        assert place.closing is None

        async def close() -> None:
            try:
                await model.close(drain_s=drain_s)
            finally:
                place.closing = None

        place.closing = asyncio.create_task(close())
        return place.closing

    async def _unload(self, place: _Place, *, drain_s: float) -> None:
        closing = place.closing
        if place.model is not None:
            closing = self._begin_unload(place, drain_s=drain_s)
        if closing is not None:
            await asyncio.wait([closing])

    async def _start_worker(self, path: Path, name: str) -> HeldModel:
        try:
            return await ProcessEndpoint.start(
                path, self._load_options, self._options.process, seeds=self._seeds, name=name
            )
        except OSError as error:
            raise UnavailableError(f"{name} cannot be started: {error}") from error


def _mb(size_bytes: int) -> int:
    return -(-size_bytes // 1_000_000)
