"""Folders where model files may lie: Stoker's own, and those of other tools, which are only read.

Every ``*_models`` function lists what one kind of folder holds as ``ModelEntry`` values. Missing or
unreadable folders hold nothing; a broken entry of another tool is left out, since it is not ours.
"""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from stoker.api.errors import ModelNotFoundError

_SPLIT_NAME = re.compile(r"(.+)-(\d{5})-of-(\d{5})")
# Quantisation labels in file names: Q4_K_M, IQ4_NL, BF16, MXFP4, also after UD- and between dots.
_QUANT_LABEL = re.compile(r"(?:^|[-._])((?:I?Q\d(?:_[0-9A-Z]+)*)|BF16|F16|F32|FP16|MXFP4|TQ[12]_0)$", re.I)
_DIGEST = re.compile(r"sha256:([0-9a-f]{64})")
_OLLAMA_REGISTRY = "registry.ollama.ai"
_MAX_MANIFEST_BYTES = 1 << 20  # an Ollama manifest has about 1 KB
# Nothing here is nested deeper than snapshots/REVISION/QUANT/FILE; a bound keeps a home folder that
# was given by mistake from being searched whole.
_MAX_DEPTH = 4


@dataclass(frozen=True)
class ModelEntry:
    """A model that lies on this machine; ``resolve(entry.name)`` gives ``entry.path``."""

    name: str
    path: Path  # the file, or the first part of a split model
    size_bytes: int  # of all parts
    origin: str  # "stoker", "huggingface", "ollama" or "lmstudio"


@dataclass(frozen=True)
class Places:
    """Where to look. Built from the environment once; tests and embedders pass their own."""

    models: Path  # Stoker's own folder, the only one that is written
    huggingface: tuple[Path, ...] = ()
    ollama: tuple[Path, ...] = ()
    lmstudio: tuple[Path, ...] = ()

    @classmethod
    def from_environment(
        cls, environ: Mapping[str, str] | None = None, home: Path | None = None, platform: str = sys.platform
    ) -> Places:
        """The folders that the environment variables and the platform's customs name.

        Raises ModelNotFoundError where they do not say where Stoker's own is.
        """
        environ = os.environ if environ is None else environ
        home = home_folder() if home is None else home
        own = own_folder(environ, home, platform)
        if own is None:
            raise ModelNotFoundError(
                "the folder of models is unknown: this user has no home folder, and HOME is not set",
                hint="set STOKER_HOME to a folder, or give the path of a model file",
            )
        huggingface = _huggingface_folder(environ, home)
        return cls(
            models=own / "models",
            huggingface=() if huggingface is None else (huggingface,),
            ollama=_ollama_folders(environ, home),
            lmstudio=()
            if home is None
            else (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models"),
        )

    def described(self) -> list[str]:
        """One line for each folder, for the error that says where was looked."""
        rows = [("stoker", (self.models,)), ("Hugging Face", self.huggingface)]
        rows += [("Ollama", self.ollama), ("LM Studio", self.lmstudio)]
        return [f"{name} {folder}" for name, folders in rows for folder in folders]


def home_folder() -> Path | None:
    """The user's home folder; none where nobody knows it (a user id without an account, and no HOME)."""
    try:
        return Path.home()
    except RuntimeError:
        return None


def expand_home(path: str) -> Path:
    """The path with a leading ~ replaced, or as it is where the home folder meant is unknown."""
    return Path(os.path.expanduser(path))


def own_folder(environ: Mapping[str, str], home: Path | None, platform: str = sys.platform) -> Path | None:
    """Stoker's folder, of models and tokenizers: $STOKER_HOME, else one in the system's cache folder.

    None where `home` is needed for it and is not known.
    """
    if environ.get("STOKER_HOME"):
        return expand_home(environ["STOKER_HOME"])
    if platform == "win32" and environ.get("LOCALAPPDATA"):
        return Path(environ["LOCALAPPDATA"]) / "stoker"
    if platform == "darwin":
        return None if home is None else home / "Library" / "Caches" / "stoker"
    cache = _cache_folder(environ, home)
    return None if cache is None else cache / "stoker"


def _cache_folder(environ: Mapping[str, str], home: Path | None) -> Path | None:
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"])
    return None if home is None else home / ".cache"


def _huggingface_folder(environ: Mapping[str, str], home: Path | None) -> Path | None:
    for variable in ("HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        if environ.get(variable):
            return expand_home(environ[variable])
    if environ.get("HF_HOME"):
        return expand_home(environ["HF_HOME"]) / "hub"
    cache = _cache_folder(environ, home)
    return None if cache is None else cache / "huggingface" / "hub"


def _ollama_folders(environ: Mapping[str, str], home: Path | None) -> tuple[Path, ...]:
    if environ.get("OLLAMA_MODELS"):
        return (expand_home(environ["OLLAMA_MODELS"]),)
    # Where the Linux service keeps its models, readable by its group.
    service = Path("/usr/share/ollama/.ollama/models")
    return (service,) if home is None else (home / ".ollama" / "models", service)


def gguf_files(folder: Path, depth: int = _MAX_DEPTH) -> list[tuple[Path, int]]:
    """Model files under ``folder`` with their sizes in bytes, sorted by path.

    Split models appear once, as their first part, and only when no part is missing. Vision towers
    (``mmproj`` files) are no models of their own and are left out.
    """
    found = {path: size for path, size in _walk(folder, depth) if "mmproj" not in path.name.lower()}
    models = []
    for path, size in sorted(found.items()):
        split = _SPLIT_NAME.fullmatch(path.stem)
        if split is None:
            models.append((path, size))
        elif int(split[2]) == 1 and int(split[3]) <= len(found):
            names = [f"{split[1]}-{n:05d}-of-{split[3]}.gguf" for n in range(1, int(split[3]) + 1)]
            parts = [path.with_name(name) for name in names]
            if all(part in found for part in parts):
                models.append((path, sum(found[part] for part in parts)))
    return models


def _walk(folder: Path, depth: int) -> Iterator[tuple[Path, int]]:
    for path in _children(folder):
        try:
            if path.name.endswith(".gguf") and path.is_file():
                yield path, path.stat().st_size
            elif depth > 0 and not path.name.startswith(".") and path.is_dir():
                yield from _walk(path, depth - 1)
        except OSError:  # a dangling link or a folder of somebody else: not a model we can read
            continue


def _children(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []


def model_stem(path: Path) -> str:
    """The file name without .gguf and without the number of its part."""
    split = _SPLIT_NAME.fullmatch(path.stem)
    return split[1] if split else path.stem


def quant_label(path: Path) -> str | None:
    """The quantisation that the file name ends in, in capitals: "Q4_K_M"."""
    match = _QUANT_LABEL.search(model_stem(path))
    return match[1].upper() if match else None


def _named_by_repository(
    prefix: str, repository: str, files: list[tuple[Path, int]], origin: str
) -> Iterator[ModelEntry]:
    """Entries ``prefix + repository:LABEL``; the label is the whole stem where quantisations repeat."""
    labels = [quant_label(path) for path, _ in files]
    for (path, size), label in zip(files, labels, strict=True):
        unique = label if label is not None and labels.count(label) == 1 else model_stem(path)
        yield ModelEntry(f"{prefix}{repository}:{unique}", path, size, origin)


def own_models(places: Places) -> Iterator[ModelEntry]:
    """Files in Stoker's folder, named by their stem."""
    for path, size in gguf_files(places.models):
        yield ModelEntry(model_stem(path), path, size, "stoker")


def huggingface_models(places: Places) -> Iterator[ModelEntry]:
    """GGUF files of the Hugging Face cache, named ``hf:user/repo:QUANT``, newest snapshot of each."""
    for cache in places.huggingface:
        for folder in _children(cache):
            if folder.name.startswith("models--") and folder.name.count("--") >= 2:
                repository = folder.name.removeprefix("models--").replace("--", "/", 1)
                files = _snapshot_files(folder)
                yield from _named_by_repository("hf:", repository, files, "huggingface")


def _snapshot_files(folder: Path) -> list[tuple[Path, int]]:
    """Files of the snapshot that refs/main names, and those that only other snapshots have."""
    try:
        main = (folder / "refs" / "main").read_text(errors="replace").strip()
    except OSError:
        main = ""
    snapshots = sorted(_children(folder / "snapshots"), key=lambda path: path.name != main)
    chosen: dict[Path, tuple[Path, int]] = {}
    for snapshot in snapshots:
        for path, size in gguf_files(snapshot):
            chosen.setdefault(path.relative_to(snapshot), (path, size))
    return [chosen[key] for key in sorted(chosen)]


def lmstudio_models(places: Places) -> Iterator[ModelEntry]:
    """GGUF files of LM Studio, which keeps them as publisher/repository/file."""
    for root in places.lmstudio:
        for publisher in _children(root):
            for repository in _children(publisher):
                name = f"{publisher.name}/{repository.name}"
                yield from _named_by_repository("", name, gguf_files(repository, depth=1), "lmstudio")


def ollama_models(places: Places) -> Iterator[ModelEntry]:
    """Models that Ollama has pulled, under the names that Ollama prints."""
    for root in places.ollama:
        manifests = root / "manifests"
        for path in sorted(_manifest_files(manifests, depth=3)):
            entry = _ollama_entry(root, path, path.relative_to(manifests).parts)
            if entry is not None:
                yield entry


def _manifest_files(folder: Path, depth: int) -> Iterator[Path]:
    for path in _children(folder):
        if depth > 0 and path.is_dir():
            yield from _manifest_files(path, depth - 1)
        elif depth == 0 and path.is_file():
            yield path


def _ollama_entry(root: Path, manifest: Path, parts: tuple[str, ...]) -> ModelEntry | None:
    host, namespace, model, tag = parts
    try:
        if manifest.stat().st_size > _MAX_MANIFEST_BYTES:
            return None
        layers = json.loads(manifest.read_bytes())["layers"]
        digests = [
            _DIGEST.fullmatch(layer["digest"])
            for layer in layers
            if layer["mediaType"] == "application/vnd.ollama.image.model"
        ]
        if len(digests) != 1 or digests[0] is None:
            return None
        blob = root / "blobs" / f"sha256-{digests[0][1]}"
        size = blob.stat().st_size
    except (OSError, ValueError, KeyError, TypeError, RecursionError):  # half-pulled, or not a manifest
        return None
    shown = "" if namespace == "library" and host == _OLLAMA_REGISTRY else f"{namespace}/"
    registry = "" if host == _OLLAMA_REGISTRY else f"{host}/"
    return ModelEntry(f"{registry}{shown}{model}:{tag}", blob, size, "ollama")
