"""From a model's name to an engine that speaks text: the one place where file, kernels and tokenizer meet."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING

from stoker.api.chat import Chat
from stoker.api.errors import CapacityError, ModelFormatError, RequestError, StokerError
from stoker.api.protocols import SeedSource
from stoker.api.request import SamplingParams, check_int
from stoker.cache.disk import OpenedTier, open_disk_tier
from stoker.engine.budget import BudgetOptions
from stoker.engine.engine import Engine, EngineOptions
from stoker.engine.heads import choose_heads, load_heads
from stoker.engine.scheduler import SchedulerOptions
from stoker.engine.text import EncodeChat, GuidesOf, TextEngine
from stoker.grammar.guide import Guides
from stoker.kernels.cores import physical_cores
from stoker.kernels.native import KvType, NativeInterpreter
from stoker.kernels.numerics import NUMERICS
from stoker.models.load import load_native
from stoker.models.pooling import pooling_from_gguf
from stoker.sampling.native import native_sampler
from stoker.speculation import AUTO, DRAFT_MODEL, drafter_names, drafters_of
from stoker.speculation.draft_file import DraftFile
from stoker.speculation.draft_model import DraftModel, DraftModelDrafters
from stoker.speculation.head_format import KINDS
from stoker.tokenizer import Tokenizer, load_tokenizer
from stoker.weights.digest import weights_digest
from stoker.weights.gguf import GGUFFile
from stoker.weights.places import home_folder, own_folder
from stoker.weights.store import resolve

if TYPE_CHECKING:
    from stoker.grammar.compiler import GrammarCompiler
    from stoker.tokenizer.chat import ChatTemplate

# Address space, not memory: blocks are backed when they are first written. In int8, 2 GiB hold about 90 000
# tokens of SmolLM2-135M or 200 000 of Gemma 3 270M, and still leave a small machine its room.
DEFAULT_KV_BYTES = 2 << 30
MAX_KV_BYTES = 1 << 47  # what a process on x86-64 can address
ClockMs = Callable[[], float]
MAX_THREADS = 256  # as the native thread pool has it


@dataclass(frozen=True, slots=True)
class LoadOptions:
    """How to load a model."""

    threads: int | None = None  # none: one for each physical core
    context_tokens: int | None = None  # none: what the model was made for
    kv_bytes: int = DEFAULT_KV_BYTES  # most memory of the KV cache
    kv_type: KvType = "int8"
    scheduler: SchedulerOptions = field(default_factory=SchedulerOptions)
    disk_cache_bytes: int = 0  # most bytes of prefixes kept on disk over restarts; 0: none
    speculation: str = AUTO  # drafters: "auto", "off", or names; no token depends on it
    draft_model: str | None = None  # name or path of a smaller model of the same vocabulary, which drafts
    draft_may_fail: bool = False  # where that does not fit or load: say why in a note, and go on without
    draft_head: str | None = None  # a draft head's file; none: the one that comes with the model, if any
    target_itl_ms: float | None = None  # between two tokens of a stream; none: twice what streams alone take

    def __post_init__(self) -> None:
        if self.threads is not None:
            check_int("threads", self.threads, 1, MAX_THREADS)
        if self.context_tokens is not None:
            check_int("context_tokens", self.context_tokens, 1, (1 << 31) - 1)
        check_int("kv_bytes", self.kv_bytes, 1, MAX_KV_BYTES)
        check_int("disk_cache_bytes", self.disk_cache_bytes, 0, MAX_KV_BYTES, note="0 keeps none")
        BudgetOptions(self.target_itl_ms)
        drafts = DRAFT_MODEL in drafter_names(self.speculation)
        if self.draft_model is None and drafts and self.speculation != AUTO:
            raise RequestError(
                f"speculation is {self.speculation!r:.80}, but no draft model is given",
                hint="--draft-model, or draft_model, names its file",
            )
        if self.draft_model is not None and not drafts:
            raise RequestError(
                f"draft_model is {self.draft_model!r:.80}, but speculation is {self.speculation!r:.80}; "
                f"allowed: {AUTO}, or names with {DRAFT_MODEL} among them"
            )
        if self.draft_head is not None and not set(KINDS).intersection(drafter_names(self.speculation)):
            raise RequestError(
                f"draft_head is {self.draft_head!r:.80}, but speculation is {self.speculation!r:.80}; "
                f"allowed: {AUTO}, or names with {' or '.join(KINDS)} among them"
            )
        if self.kv_type not in ("int8", "f16"):
            raise RequestError(f"kv_type is {self.kv_type!r}; allowed: int8, f16")


def load_text_engine(
    model: str | os.PathLike[str],
    options: LoadOptions,
    *,
    seeds: SeedSource,
    clock_ms: ClockMs | None = None,
) -> TextEngine:
    """Load the model that a name or path means (see `stoker.weights.store.resolve`; nothing is downloaded).

    `clock_ms` times drafters that run models, so that they are asked only while they pay; the engine has no
    clock of its own.

    Raises `ModelNotFoundError`, `ModelFormatError` (both name the file), `CapacityError` if the KV cap holds
    not one block or memory or threads are refused, `RequestError` for an option the model does not allow.
    """
    path = resolve(model)
    # A name stays as it was given; of a path the last part says enough.
    name = path.stem if os.sep in os.fspath(model) or Path(model).is_file() else os.fspath(model)
    try:
        return _load(path, name, options, seeds, clock_ms)
    except ModelFormatError as error:
        if error.message.startswith((str(path), "draft model")):
            raise
        raise ModelFormatError(f"{path}: {error.message}", hint=error.hint) from error
    except MemoryError as error:
        raise CapacityError(
            f"not enough memory to load {path}", hint="close other programs, or take a smaller model"
        ) from error


def _load(
    path: Path, name: str, options: LoadOptions, seeds: SeedSource, clock_ms: ClockMs | None
) -> TextEngine:
    notes: list[str] = []
    with ExitStack() as files:
        file = files.enter_context(GGUFFile.open(path))
        draft = None
        with _refusal_noted(options, notes):
            draft = _draft_file(options, file, files)
        paths = file.paths
        header_digest = file.header_digest()  # before the header's pages are let go
        chosen = choose_heads(file, options.speculation, options.draft_head)
        interpreter = load_native(
            file,
            threads=options.threads or min(physical_cores(), MAX_THREADS),
            kv_bytes=options.kv_bytes,
            kv_type=options.kv_type,
            batch_tokens=options.scheduler.batch_tokens,
            beside=None if draft is None else draft.program,
            draft_layers=chosen.layers,
        )
        tokenizer = load_tokenizer(file.metadata, header_digest)
        pooling = pooling_from_gguf(file.metadata)
        sampler = native_sampler(interpreter.pool)
        heads = load_heads(chosen, file, interpreter, sampler)
        bound = dict(heads.drafters)
        notes += heads.notes
        if draft is not None:
            with _refusal_noted(options, notes):
                bound[DRAFT_MODEL] = DraftModelDrafters(_loaded(draft, interpreter))
    opened, identity = _disk_tier(paths, interpreter.block_bytes, options)
    if opened.reason is not None:
        notes.append(f"prefixes are not kept on disk: {opened.reason}")
    engine = Engine(
        interpreter,
        sampler,
        EngineOptions(
            _context_tokens(options, interpreter),
            frozenset(tokenizer.stop_ids),
            options.scheduler,
            BudgetOptions(options.target_itl_ms),
            spare_core=physical_cores() > interpreter.pool.threads,
            # Without a tier the tree dies with the process, and needs no name that outlives it.
            identity=identity or header_digest.encode(),
        ),
        tier=opened.tier,
        drafters=drafters_of(options.speculation, bound),
        clock_ms=clock_ms,
    )
    return TextEngine(
        engine,
        tokenizer,
        seeds=seeds,
        name=name,
        encode_chat=_chat_encoder(tokenizer),
        guides_of=_guides_of(tokenizer, interpreter.vocabulary),
        pooling=pooling,
        notes=tuple(notes),
    )


def _context_tokens(options: LoadOptions, interpreter: NativeInterpreter) -> int:
    most = interpreter.context_tokens
    if options.context_tokens is not None and options.context_tokens > most:
        raise RequestError(
            f"context_tokens is {options.context_tokens}; allowed: at most {most}, which the model was "
            "made for"
        )
    return options.context_tokens or most


@contextmanager
def _refusal_noted(options: LoadOptions, notes: list[str]) -> Iterator[None]:
    """Where a draft model may fail: say why, and go on without it."""
    try:
        yield
    except StokerError as error:
        if not options.draft_may_fail:
            raise
        notes.append(f"no drafts by a draft model: {error}")


def _draft_file(options: LoadOptions, target: GGUFFile, files: ExitStack) -> DraftFile | None:
    if options.draft_model is None:
        return None
    return files.enter_context(DraftFile(options.draft_model, target))


def _loaded(draft: DraftFile, target: NativeInterpreter) -> DraftModel:
    return draft.load(target.pool, num_blocks=target.num_blocks, kv_type=target.kv_type)


def _disk_tier(paths: tuple[Path, ...], block_bytes: int, options: LoadOptions) -> tuple[OpenedTier, bytes]:
    """The tier or why there is none, and the name of what its blocks' bytes depend on."""
    folder = own_folder(os.environ, home_folder())
    if not options.disk_cache_bytes:
        return OpenedTier(None, None), b""
    if folder is None:
        return OpenedTier(None, "no folder of its own: neither STOKER_HOME nor a home folder is known"), b""
    digest = weights_digest(paths, remembered_in=folder / "digests")
    identity = f"{digest} {options.kv_type} numerics {NUMERICS}".encode()
    return open_disk_tier(
        folder / "prefixes", identity=identity, block_bytes=block_bytes, cap_bytes=options.disk_cache_bytes
    ), identity


def _chat_encoder(tokenizer: Tokenizer) -> EncodeChat | None:
    if not tokenizer.chat_template:
        return None

    @cache  # imported and compiled when the first chat comes: not everybody chats, and Jinja takes 25 ms
    def template() -> ChatTemplate:
        from stoker.tokenizer.chat import ChatTemplate

        return ChatTemplate(tokenizer)

    def encode(chat: Chat) -> list[int]:
        from stoker.tokenizer.chat import chat_values

        return template().encode(**chat_values(chat))

    return encode


def _guides_of(tokenizer: Tokenizer, vocabulary: int) -> GuidesOf:
    lock = Lock()  # two first constraints may come at once, in threads

    @cache  # its table of the vocabulary takes memory and a moment: made when the first constraint comes
    def compiler() -> GrammarCompiler:
        from stoker.grammar.compiler import GrammarCompiler

        return GrammarCompiler(tokenizer, vocabulary=vocabulary)

    def guides_of(params: SamplingParams) -> Guides | None:
        with lock:
            grammars = compiler()
        return grammars.guides(params)

    return guides_of
