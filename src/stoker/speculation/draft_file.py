"""From a file to a draft model beside a target: the same vocabulary, the same blocks, the same threads."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Final

from stoker import _native
from stoker.api.errors import ModelFormatError, StokerError
from stoker.kernels.native import KvType
from stoker.models.load import load_on
from stoker.models.registry import program_from_gguf
from stoker.sampling.native import native_sampler
from stoker.speculation.draft_model import DraftModel
from stoker.weights.gguf import GGUFFile
from stoker.weights.store import resolve

_TOKENS: Final = "tokenizer.ggml.tokens"
# Of a run: what was said before the draft model was asked is read in parts, beside running streams.
_BATCH_TOKENS = 128


class DraftFile:
    """An open file of a model that may draft for another. Close it, or use it as a context manager."""

    def __init__(self, model: str | os.PathLike[str], target: GGUFFile) -> None:
        """`model`: a name or a path, as `stoker.weights.store.resolve` takes it.

        Raises `ModelNotFoundError`, and `ModelFormatError`, which names the file, for what is wrong with it
        and for another vocabulary than the target's.
        """
        with _named(os.fspath(model)):
            self.path = resolve(model)
        with _named(str(self.path)):
            self._file = GGUFFile.open(self.path)
            try:
                _check_vocabulary(self._file, target)
                self.program = program_from_gguf(self._file.metadata, self._file.tensors)
                _check_rows(self.program.vocabulary, len(_tokens_of(target)))
            except BaseException:
                self._file.close()
                raise

    def __enter__(self) -> DraftFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let go of the file; what `load` gave does not need it."""
        self._file.close()

    def load(self, pool: _native.ThreadPool, *, num_blocks: int, kv_type: KvType) -> DraftModel:
        """Pack its weights, and make room for as many KV blocks as the target has; `pool` computes both, one
        after the other. Raises `ModelFormatError`, `CapacityError`."""
        with _named(str(self.path)):
            interpreter = load_on(
                pool,
                self._file,
                self.program,
                num_blocks=num_blocks,
                batch_tokens=_BATCH_TOKENS,
                kv_type=kv_type,
            )
        return DraftModel(interpreter, native_sampler(pool), interpreter.context_tokens, _BATCH_TOKENS)


@contextmanager
def _named(name: str) -> Iterator[None]:
    try:
        yield
    except StokerError as error:
        message = error.message if name in error.message else f"{name}: {error.message}"
        raise type(error)(f"draft model {message}", hint=error.hint) from error


def _check_vocabulary(draft: GGUFFile, target: GGUFFile) -> None:
    """Token by token: an id must mean the same to both."""
    ours, theirs = _tokens_of(draft), _tokens_of(target)
    for token_id, (our, their) in enumerate(zip(ours, theirs, strict=False)):
        if our != their:
            raise ModelFormatError(
                f"token {token_id} is {our!r:.60}, and {their!r:.60} in {target.path.name}; "
                "allowed: a draft model of the same vocabulary"
            )
    if len(ours) != len(theirs):
        raise ModelFormatError(
            f"has {len(ours)} tokens, and {target.path.name} {len(theirs)}; "
            "allowed: a draft model of the same vocabulary"
        )


def _check_rows(rows: int, tokens: int) -> None:
    """What it samples must be a token: padded rows are none."""
    if rows != tokens:
        raise ModelFormatError(
            f"scores {rows} tokens, but names {tokens}; allowed: a draft model without padded rows"
        )


def _tokens_of(file: GGUFFile) -> list[Any]:
    tokens = file.metadata.get(_TOKENS)
    tolist = getattr(tokens, "tolist", None)
    if tolist is None:
        raise ModelFormatError(f"{file.path}: {_TOKENS} is missing, or no array")
    found: list[Any] = tolist()
    return found
