"""Where options become objects. The only place that knows both a flag's value and what it is for."""

from __future__ import annotations

import asyncio
import dataclasses
import importlib
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from stoker.api.chat import Message
from stoker.api.errors import RequestError
from stoker.api.request import SamplingParams
from stoker.cli.talk import Talker

if TYPE_CHECKING:
    from stoker.api.protocols import ModelHost
    from stoker.process import ModelShelf
    from stoker.server.run import HttpServer
    from stoker.server.service import Service
    from stoker.state import StateSource
    from stoker.telemetry import Tracing

# A base model seldom ends by itself; without a bound `stoker run` would fill the whole context.
PLAIN_MAX_TOKENS = 256


def sampling_params(
    *,
    max_tokens: int | None,
    temperature: float,
    top_p: float,
    top_k: int,
    min_p: float,
    seed: int | None,
) -> SamplingParams:
    """Sampling parameters as the options say; raises RequestError for a value out of range."""
    return SamplingParams(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, min_p=min_p, seed=seed
    )


def open_talker(
    model: str,
    *,
    sampling: SamplingParams,
    threads: int | None,
    context_tokens: int | None,
    draft_model: str | None,
    system: str | None,
    raw: bool,
) -> Talker:
    """Load `model` for a conversation, or for plain completion if it has no chat template or `raw` is given.

    Raises RequestError for a system message that nothing would read.
    """
    from stoker.llm import LLM, Piece

    started = time.perf_counter()
    llm = LLM(model, threads=threads, context_tokens=context_tokens, draft_model=draft_model)
    load_s = time.perf_counter() - started
    has_template = llm.text_engine.tokenizer.chat_template is not None
    is_chat = has_template and not raw
    if system is not None and not is_chat:
        why = "--raw leaves the chat template out" if has_template else f"{llm.name} has no chat template"
        raise RequestError(f"--system is given, but {why}", hint="put the text into the prompt")
    if not is_chat and sampling.max_tokens is None:
        sampling = dataclasses.replace(sampling, max_tokens=PLAIN_MAX_TOKENS)

    def generate(prompt: str | tuple[Message, ...]) -> Iterator[Piece]:
        return llm.stream(prompt, sampling)

    facts = (f"context {llm.context_tokens} tokens", f"loaded in {load_s:.2f} s", f"target {native_target()}")
    return Talker(llm.name, generate, is_chat=is_chat, system=system, facts=facts)


def native_target() -> str:
    """The instruction set that the kernels use here, as `STOKER_TARGET` names it."""
    from stoker.bench.machine import kernel_target

    return kernel_target()


def bench_model(
    model: str, *, threads: int | None, runs: int, progress: Callable[[int, int, str], None]
) -> dict[str, Any]:
    """Everything `stoker bench` prints, in its order; see docs/guides/measure.md."""
    from stoker.bench.model import measure_model
    from stoker.weights.store import resolve

    return measure_model(resolve(model), threads=threads, runs=runs, progress=progress)


# --- stoker serve ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Models:
    """Which models are served, and with how much of the machine."""

    names: tuple[str, ...]
    threads: int | None
    context_tokens: int | None
    kv_bytes: int | None
    kv_type: str
    max_waiting: int
    max_memory_bytes: int | None
    keep_alive_s: float
    target_itl_ms: float | None
    disk_cache_bytes: int
    speculation: str
    draft_head: str | None
    draft_model: str | None

    def shelf(self) -> ModelShelf:
        """The models, none of them loaded. Raises `RequestError`, `ModelNotFoundError`."""
        from stoker.engine.load import DEFAULT_KV_BYTES, LoadOptions
        from stoker.engine.scheduler import SchedulerOptions
        from stoker.llm import RandomSeeds
        from stoker.process import ModelShelf, ProcessOptions, ShelfOptions

        load_options = LoadOptions(
            threads=self.threads,
            context_tokens=self.context_tokens,
            kv_bytes=DEFAULT_KV_BYTES if self.kv_bytes is None else self.kv_bytes,
            kv_type=self.kv_type,  # type: ignore[arg-type]  # checked there
            disk_cache_bytes=self.disk_cache_bytes,
            target_itl_ms=self.target_itl_ms,
            # Requests have n choices each; the queue of the process is the one that refuses first.
            scheduler=SchedulerOptions(max_waiting=max(self.max_waiting, SchedulerOptions().max_waiting)),
            speculation=self.speculation,
            draft_head=self.draft_head,
            draft_model=self.draft_model,
            draft_may_fail=True,  # one of the models may have another vocabulary; serving goes on
        )
        return ModelShelf(
            self.names,
            load_options,
            ShelfOptions(
                memory_bytes=self.max_memory_bytes,
                keep_alive_s=self.keep_alive_s,
                process=ProcessOptions(max_waiting=self.max_waiting),
            ),
            seeds=RandomSeeds(),
        )


@dataclass(frozen=True, slots=True)
class Access:
    """Where the server listens, and to whom."""

    host: str
    port: int
    api_keys: tuple[str, ...]
    allowed_origins: tuple[str, ...]
    more_hosts: tuple[str, ...]
    max_body_bytes: int
    drain_s: float

    def listen(self) -> socket.socket:
        """The listening socket. Raises `RequestError` for an address that needs a key, `UnavailableError`."""
        from stoker.server import check_exposure, open_socket

        check_exposure(self.host, has_keys=bool(self.api_keys))
        return open_socket(self.host, self.port)


@dataclass(frozen=True, slots=True)
class Storage:
    """Where files, batches and stored answers are kept."""

    state: str | None  # as --state has it
    max_file_bytes: int
    max_stored_bytes: int

    def source(self) -> StateSource | None:
        """The state, not opened. Raises `RequestError` for a place that is none."""
        from stoker.state import StateSource, locate_state

        location = locate_state(self.state)
        return None if location is None else StateSource(location)

    def check(self) -> None:
        """Raise what `source` raises, before anything is loaded."""
        self.source()


@dataclass(frozen=True, slots=True)
class Logs:
    """What the server writes down."""

    level: str
    format: str | None  # none: text for a terminal, JSON for a file
    log_prompts: bool
    traces_url: str | None


def serve_models(
    models: Models, access: Access, storage: Storage, logs: Logs, listener: socket.socket
) -> None:
    """Serve until a signal; see `stoker serve`. Raises what loading the first model raises."""
    import uvloop

    uvloop.run(_serve(models, access, storage, logs, listener))


async def _serve(
    models: Models, access: Access, storage: Storage, logs: Logs, listener: socket.socket
) -> None:
    started = time.perf_counter()
    shelf = models.shelf()
    first = asyncio.create_task(_load(shelf, shelf.cards()[0].name))
    # The worker's process starts now, and loads while the server's modules are imported here.
    await asyncio.sleep(0)
    for module in ("stoker.server.app", "stoker.server.run", "stoker.telemetry"):
        await asyncio.to_thread(importlib.import_module, module)
    from stoker.server import url_of
    from stoker.server.run import run_until_signal

    server, service, tracing = _server(shelf, access, storage, logs, listener)
    serving = asyncio.create_task(run_until_signal(server, on_listening=lambda: None))
    await asyncio.wait({first, serving}, return_when=asyncio.FIRST_COMPLETED)
    was_told_to_stop = service.draining  # then that the model could not be loaded is no error
    if first.done() and first.exception() is None:
        seconds = time.perf_counter() - started
        service.warm = True
        names = ", ".join(card.name for card in shelf.cards())
        print(f"{url_of(listener, access.host)} serves {names} (ready after {seconds:.2f} s)", flush=True)
    elif not serving.done():
        server.stop()
    else:
        first.cancel()
    await serving
    if tracing is not None:
        await asyncio.to_thread(tracing.close)
    if first.done() and not first.cancelled() and not was_told_to_stop:
        first.result()


async def _load(host: ModelHost, name: str) -> None:
    async with host.use(name):
        return


def _server(
    shelf: ModelShelf, access: Access, storage: Storage, logs: Logs, listener: socket.socket
) -> tuple[HttpServer, Service, Tracing | None]:
    """The server around `shelf`, observed, its state, and its traces if they are asked for."""
    from stoker import telemetry
    from stoker.server import ServerOptions, is_loopback, loopback_names
    from stoker.server.app import build_app
    from stoker.server.run import HttpServer
    from stoker.server.service import Views

    telemetry.configure_logging(
        format=logs.format or ("text" if sys.stderr.isatty() else "json"),  # type: ignore[arg-type]
        level=logs.level,
    )
    metrics = telemetry.Metrics()
    tracing = None if logs.traces_url is None else telemetry.open_tracing(logs.traces_url)
    observers = [telemetry.RequestLog(log_prompts=logs.log_prompts)] + (
        [] if tracing is None else [tracing.observe]
    )
    host = telemetry.ObservedHost(shelf, metrics.measures, observers=observers, keep_texts=logs.log_prompts)
    options = ServerOptions(
        api_keys=access.api_keys,
        allowed_origins=access.allowed_origins,
        allowed_hosts=loopback_names(access.host, access.more_hosts) if is_loopback(access.host) else None,
        max_body_bytes=access.max_body_bytes,
        max_bodies_bytes=4 * access.max_body_bytes,
        drain_s=access.drain_s,
        max_file_bytes=storage.max_file_bytes,
        max_stored_bytes=storage.max_stored_bytes,
    )
    views = Views(
        metrics=lambda: metrics.exposition(host),
        metrics_content_type=telemetry.METRICS_CONTENT_TYPE,
        stats=lambda: telemetry.stats_json(host),
    )
    app, service = build_app(host, options, views=views, state=storage.source())
    app = metrics.middleware(app if tracing is None else tracing.middleware(app))
    return HttpServer(app, service, listener), service, tracing
