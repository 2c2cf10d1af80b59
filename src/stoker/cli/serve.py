"""`stoker serve`: the OpenAI-compatible server."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stoker.api.errors import RequestError
from stoker.cli.options import ContextOption, DraftModelOption, ThreadsOption, parse_bytes, parse_seconds

if TYPE_CHECKING:
    from stoker.cli.compose import Access, Logs, Models, Storage

DEFAULT_MODEL = "smollm2"

ModelsArgument = Annotated[
    list[str] | None,
    typer.Argument(
        metavar="[MODEL]...",
        help="Models to serve, as in `stoker run`; the first is loaded at once, the others when they are "
        f"asked for. [default: {DEFAULT_MODEL}]",
        show_default=False,
    ),
]
HostOption = Annotated[
    str,
    typer.Option(
        "--host", envvar="STOKER_HOST", help="Address to listen on; beyond this machine an API key is needed."
    ),
]
PortOption = Annotated[
    int, typer.Option("--port", "-p", min=0, max=65535, envvar="STOKER_PORT", help="0: any free port.")
]
KeyFileOption = Annotated[
    Path | None,
    typer.Option(
        "--api-key-file",
        envvar="STOKER_API_KEY_FILE",
        help="File of API keys, one a line; requests without one of them are refused.",
    ),
]
KvBytesOption = Annotated[
    int | None,
    typer.Option(
        "--kv-bytes",
        parser=parse_bytes,
        metavar="SIZE",
        envvar="STOKER_KV_BYTES",
        help="Most memory of each model's KV cache. [default: 2GiB]",
    ),
]
KvTypeOption = Annotated[
    str, typer.Option("--kv-type", envvar="STOKER_KV_TYPE", help="Numbers in the KV cache: int8 or f16.")
]
MaxWaitingOption = Annotated[
    int,
    typer.Option(
        "--max-waiting",
        min=1,
        max=1 << 20,
        envvar="STOKER_MAX_WAITING",
        help="Most requests of a model that wait for their first token; more get 429.",
    ),
]
MaxMemoryOption = Annotated[
    int | None,
    typer.Option(
        "--max-memory",
        parser=parse_bytes,
        metavar="SIZE",
        envvar="STOKER_MAX_MEMORY",
        help="Most memory of all loaded models, KV caches included; beyond it the least recently used one is "
        "unloaded. [default: no limit]",
    ),
]
KeepAliveOption = Annotated[
    float,
    typer.Option(
        "--keep-alive",
        parser=parse_seconds,
        metavar="TIME",
        envvar="STOKER_KEEP_ALIVE",
        help="How long an unused model stays loaded: seconds, 5m, 1h; -1: for ever.",
    ),
]
DrainOption = Annotated[
    float,
    typer.Option(
        "--drain-seconds",
        min=0,
        max=86400,
        envvar="STOKER_DRAIN_SECONDS",
        help="How long open requests may go on after SIGTERM or Ctrl-C.",
    ),
]
SpeculationOption = Annotated[
    str,
    typer.Option(
        "--speculation",
        envvar="STOKER_SPECULATION",
        help="Who guesses tokens that are then verified many at once: auto, off, or names of drafters "
        "joined by commas. No token of an answer depends on it.",
    ),
]
DraftHeadOption = Annotated[
    Path | None,
    typer.Option(
        "--draft-head",
        metavar="FILE",
        dir_okay=False,
        envvar="STOKER_DRAFT_HEAD",
        help="A draft head from `stoker train-draft`.  [default: the one for the model, if there is one]",
        show_default=False,
    ),
]
TargetOption = Annotated[
    float | None,
    typer.Option(
        "--target-itl-ms",
        min=0.001,
        envvar="STOKER_TARGET_ITL_MS",
        help="Milliseconds between two tokens of a stream that prompts of others may not lengthen. "
        "[default: twice what the streams take alone]",
    ),
]
DiskCacheOption = Annotated[
    int,
    typer.Option(
        "--disk-cache-bytes",
        parser=parse_bytes,
        metavar="SIZE",
        envvar="STOKER_DISK_CACHE_BYTES",
        help="Most disk for prefixes that are kept over restarts, for each model.",
    ),
]
NoDiskCacheOption = Annotated[
    bool, typer.Option("--no-disk-cache", envvar="STOKER_NO_DISK_CACHE", help="Keep no prefixes on disk.")
]
MaxBodyOption = Annotated[
    int,
    typer.Option(
        "--max-body-bytes",
        parser=parse_bytes,
        metavar="SIZE",
        envvar="STOKER_MAX_BODY_BYTES",
        help="Largest body of a request; larger ones get 413.",
    ),
]
OriginOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-origin",
        envvar="STOKER_ALLOW_ORIGIN",
        help="Origin of web pages that may use the server (CORS), or *; may be repeated.",
    ),
]
HostNameOption = Annotated[
    list[str] | None,
    typer.Option(
        "--allow-host",
        envvar="STOKER_ALLOW_HOST",
        help="A further name that requests may use for a server on loopback; may be repeated.",
    ),
]
StateOption = Annotated[
    str | None,
    typer.Option(
        "--state",
        metavar="URL|PATH|none",
        envvar="STOKER_STATE",
        help="Where files, batches and stored answers are kept: a path of an SQLite file, "
        "postgresql://USER@HOST/DATABASE, or none. [default: state.db in Stoker's data folder]",
    ),
]
MaxFileOption = Annotated[
    int,
    typer.Option(
        "--max-file-bytes",
        parser=parse_bytes,
        metavar="SIZE",
        envvar="STOKER_MAX_FILE_BYTES",
        help="Largest file that may be uploaded.",
    ),
]
MaxStoredOption = Annotated[
    int,
    typer.Option(
        "--max-stored-bytes",
        parser=parse_bytes,
        metavar="SIZE",
        envvar="STOKER_MAX_STORED_BYTES",
        help="Most disk for files; while they have more, uploads are refused.",
    ),
]
LogLevelOption = Annotated[
    str,
    typer.Option("--log-level", envvar="STOKER_LOG_LEVEL", help="debug, info, warning or error."),
]
LogFormatOption = Annotated[
    str | None,
    typer.Option(
        "--log-format",
        envvar="STOKER_LOG_FORMAT",
        help="json or text. [default: text on a terminal, else json]",
    ),
]
LogPromptsOption = Annotated[
    bool,
    typer.Option("--log-prompts", envvar="STOKER_LOG_PROMPTS", help="Log prompts and answers as well."),
]
TracesOption = Annotated[
    str | None,
    typer.Option(
        "--traces",
        metavar="URL",
        envvar="STOKER_TRACES",
        help="Send OpenTelemetry traces to this OTLP/HTTP collector; needs stoker[telemetry].",
    ),
]


def serve(
    models: ModelsArgument = None,
    host: HostOption = "127.0.0.1",
    port: PortOption = 8000,
    api_key_file: KeyFileOption = None,
    threads: ThreadsOption = None,
    context: ContextOption = None,
    kv_bytes: KvBytesOption = None,
    kv_type: KvTypeOption = "int8",
    max_waiting: MaxWaitingOption = 1024,
    max_memory: MaxMemoryOption = None,
    keep_alive: KeepAliveOption = "-1",  # type: ignore[assignment]  # parsed, as a default of the user's would be
    drain_seconds: DrainOption = 30.0,
    target_itl_ms: TargetOption = None,
    speculation: SpeculationOption = "auto",
    draft_head: DraftHeadOption = None,
    draft_model: DraftModelOption = None,
    disk_cache_bytes: DiskCacheOption = "2GiB",  # type: ignore[assignment]
    no_disk_cache: NoDiskCacheOption = False,
    max_body_bytes: MaxBodyOption = "32MiB",  # type: ignore[assignment]
    allow_origin: OriginOption = None,
    allow_host: HostNameOption = None,
    state: StateOption = None,
    max_file_bytes: MaxFileOption = "512MiB",  # type: ignore[assignment]
    max_stored_bytes: MaxStoredOption = "16GiB",  # type: ignore[assignment]
    log_level: LogLevelOption = "info",
    log_format: LogFormatOption = None,
    log_prompts: LogPromptsOption = False,
    traces: TracesOption = None,
) -> None:
    """Serve models over HTTP, as OpenAI does.

    A known model that is not on this machine is fetched first. Prints one line when the first model is ready.
    SIGTERM or Ctrl-C ends it: open requests may finish; a second one does not wait for them.
    docs/guides/serve.md has the paths, the fields and how to use it from other programs.
    """
    from stoker.cli.compose import Access, Logs, Models, Storage

    served = Models(
        tuple(models or [DEFAULT_MODEL]), threads, context, kv_bytes, kv_type, max_waiting, max_memory,
        keep_alive, target_itl_ms, 0 if no_disk_cache else disk_cache_bytes,
        speculation, None if draft_head is None else str(draft_head), draft_model,
    )  # fmt: skip
    access = Access(
        host,
        port,
        api_keys=_api_keys(api_key_file),
        allowed_origins=tuple(allow_origin or ()),
        more_hosts=tuple(allow_host or ()),
        max_body_bytes=max_body_bytes,
        drain_s=drain_seconds,
    )
    logs = Logs(log_level, log_format, log_prompts=log_prompts, traces_url=traces)
    _serve(served, access, Storage(state, max_file_bytes, max_stored_bytes), logs)


def _serve(models: Models, access: Access, storage: Storage, logs: Logs) -> None:
    from stoker.cli.compose import serve_models
    from stoker.cli.pull import fetch_if_missing

    storage.check()
    with access.listen() as listener:  # first: a port in use should not cost a download
        for name in (*models.names, *([] if models.draft_model is None else [models.draft_model])):
            fetch_if_missing(name)
        serve_models(models, access, storage, logs, listener)


def _api_keys(file: Path | None) -> tuple[str, ...]:
    """The keys of STOKER_API_KEY and of the file. No option holds one: others can read a command line."""
    keys = [os.environ["STOKER_API_KEY"].strip()] if os.environ.get("STOKER_API_KEY", "").strip() else []
    if file is not None:
        try:
            lines = file.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise RequestError(f"cannot read the API keys in {file}: {error}") from error
        found = [line.strip() for line in lines if line.strip() and not line.lstrip().startswith("#")]
        if not found:
            raise RequestError(f"{file} has no API key; allowed: one a line")
        keys += found
    return tuple(keys)
