"""From a name or a path to a model file on this machine."""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterator, Mapping
from itertools import chain
from pathlib import Path

from stoker.api.errors import ModelFormatError, ModelNotFoundError, RequestError
from stoker.weights.places import (
    ModelEntry,
    Places,
    expand_home,
    huggingface_models,
    lmstudio_models,
    model_stem,
    ollama_models,
    own_models,
    quant_label,
)
from stoker.weights.sources import KNOWN_MODELS, KnownModel, known_model

# What a repository's name alone means when it holds several files; the customary choice elsewhere too.
PREFERRED_QUANTS = ("Q4_K_M", "Q4_0", "Q8_0")


def resolve(
    name_or_path: str | os.PathLike[str],
    *,
    places: Places | None = None,
    known: Mapping[str, KnownModel] = KNOWN_MODELS,
) -> Path:
    """The model file that ``name_or_path`` means; nothing is downloaded.

    In this order: a path to a file; a known name (``smollm2``); ``hf:user/repo`` with an optional
    ``:QUANT``; a name of Ollama's (``llama3.2:1b``) or LM Studio's (``publisher/repo``); the stem of
    a file in any of the folders. Upper and lower case are the same in names. Raises
    ModelNotFoundError (says where was looked, and what is close), ModelFormatError (a folder, or a
    name that means several files), RequestError for what is neither text nor a path.
    """
    name = _checked_name(name_or_path)
    path = expand_home(name)
    if name not in known:
        if _is_file(path):
            return path
        if _is_explicit_path(name):
            raise _not_a_file(path)
    places = Places.from_environment() if places is None else places
    meant = known_model(name, known)
    if meant is not None:
        found = _find_known(meant, places)
        if found is not None:
            return found
        raise ModelNotFoundError(
            f"model {name!r} ({meant.description}) is not on this machine; looked in"
            f" {'; '.join(places.described())}",
            hint=f"stoker pull {meant.name}",
        )
    entries = list(_entries(places))
    matches = [entry for entry in entries if entry.name == name][:1]
    matches = matches or _match_repository(name, entries) or _match_stem(name, entries)
    if not matches and path.is_dir():
        raise _not_a_file(path)
    if not matches:
        raise _not_found(name, places, known, entries)
    paths = {os.path.realpath(entry.path): entry for entry in matches}
    # Copies of one file, as far as name and size tell, are no reason to ask.
    if len(paths) > 1 and len({(model_stem(entry.path), entry.size_bytes) for entry in matches}) > 1:
        names = ", ".join(sorted(entry.name for entry in matches))
        raise ModelFormatError(f"{name!r} means {len(paths)} different files", hint=f"choose one of {names}")
    return matches[0].path


def _checked_name(name_or_path: object) -> str:
    name = os.fspath(name_or_path) if isinstance(name_or_path, os.PathLike) else name_or_path
    if not isinstance(name, str):
        raise RequestError(f"the model is {name!r:.80}; allowed: a name or a path, as text")
    if not name or "\0" in name:
        raise ModelNotFoundError(f"the model name {name!r:.80} is empty or holds a zero byte")
    return name


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:  # a name too long for the system, or a folder that may not be searched
        shown = str(path) if len(str(path)) <= 200 else f"{str(path)[:200]}..."
        raise ModelNotFoundError(f"{shown}: cannot be looked at: {error.strerror}") from error


def list_models(
    *, places: Places | None = None, known: Mapping[str, KnownModel] = KNOWN_MODELS
) -> list[ModelEntry]:
    """All models found on this machine, Stoker's own first; known ones under their known names."""
    places = Places.from_environment() if places is None else places
    names = {(model.file_name, model.size_bytes): model.name for model in known.values()}
    found: dict[str, ModelEntry] = {}
    for entry in _entries(places):
        if entry.origin == "stoker":
            name = names.get((entry.path.name, entry.size_bytes), entry.name)
            entry = ModelEntry(name, entry.path, entry.size_bytes, entry.origin)
        found.setdefault(entry.name, entry)
    return list(found.values())


def _entries(places: Places) -> Iterator[ModelEntry]:
    return chain(
        own_models(places), huggingface_models(places), ollama_models(places), lmstudio_models(places)
    )


def _is_explicit_path(name: str) -> bool:
    return name.startswith((".", "~", os.sep)) or os.path.isabs(name)


def _not_a_file(path: Path) -> ModelFormatError | ModelNotFoundError:
    if path.is_dir():
        files = sorted(child.name for child in path.glob("*.gguf"))
        inside = f"it holds {', '.join(files[:5])}" if files else "it holds no .gguf file"
        return ModelFormatError(f"{path} is a folder, allowed: a .gguf file or a model name; {inside}")
    if path.exists():
        return ModelFormatError(f"{path} is not a regular file, allowed: a .gguf file or a model name")
    return ModelNotFoundError(f"{path}: no such file")


def _find_known(model: KnownModel, places: Places) -> Path | None:
    """The pulled file, or a file of the same name and size that another tool has."""
    own = places.models / model.file_name
    if own.is_file() and own.stat().st_size == model.size_bytes:
        return own
    for entry in _entries(places):
        if entry.path.name == model.file_name and entry.size_bytes == model.size_bytes:
            return entry.path
    return None


def _match_repository(name: str, entries: list[ModelEntry]) -> list[ModelEntry]:
    """Entries meant by ``[hf:]user/repo[:LABEL]`` or by an Ollama name without its tag."""
    repository, _, label = name.removeprefix("hf:").partition(":")
    with_hf = name.startswith("hf:")
    candidates = []
    for entry in entries:
        their_repository, _, their_label = entry.name.removeprefix("hf:").rpartition(":")
        if their_repository.lower() != repository.lower() or entry.origin == "stoker":
            continue
        if with_hf and entry.origin != "huggingface":
            continue
        labels = (their_label, model_stem(entry.path), quant_label(entry.path) or "")
        if not label or label.lower() in (known_label.lower() for known_label in labels):
            candidates.append(entry)
    if label:
        return candidates
    latest = [entry for entry in candidates if entry.origin == "ollama" and entry.name.endswith(":latest")]
    if latest:
        return latest
    for quant in PREFERRED_QUANTS:
        preferred = [entry for entry in candidates if quant_label(entry.path) == quant]
        if preferred:
            return preferred
    return candidates


def _match_stem(name: str, entries: list[ModelEntry]) -> list[ModelEntry]:
    stem = name.removesuffix(".gguf").lower()
    return [
        entry
        for entry in entries
        if entry.origin != "ollama" and stem in (entry.path.stem.lower(), model_stem(entry.path).lower())
    ]


def _not_found(
    name: str, places: Places, known: Mapping[str, KnownModel], entries: list[ModelEntry]
) -> ModelNotFoundError:
    names = list(known) + [entry.name for entry in entries]
    stems = [model_stem(entry.path) for entry in entries if entry.origin != "ollama"]
    # A repository that is not here is more likely to be missing than to be misspelt.
    cutoff = 0.9 if name.startswith("hf:") else 0.6
    close = difflib.get_close_matches(name, [*names, *stems], n=1, cutoff=cutoff)
    hint = f"did you mean {close[0]!r}?" if close else None
    if hint is None and name.startswith("hf:"):
        hint = f"hf download {name.removeprefix('hf:').partition(':')[0]}"
    listed = ", ".join(names[:12]) + (f" and {len(names) - 12} more" if len(names) > 12 else "")
    return ModelNotFoundError(
        f"no model {name!r}: not a file, and not in {'; '.join(places.described())}. Known names: {listed}",
        hint=hint,
    )
