"""Names and paths to model files, with invented folders of every tool that is looked at."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from stoker.api.errors import ModelFormatError, ModelNotFoundError
from stoker.tokenizer.tokenizer import default_cache_dir
from stoker.weights.places import Places, gguf_files, model_stem, quant_label
from stoker.weights.sources import KNOWN_MODELS
from stoker.weights.store import list_models, resolve

SMOLLM2 = KNOWN_MODELS["smollm2"]


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(
        models=tmp_path / "own",
        huggingface=(tmp_path / "hf",),
        ollama=(tmp_path / "ollama",),
        lmstudio=(tmp_path / "lmstudio", tmp_path / "lmstudio-old"),
    )


def make(path: Path, size_bytes: int = 10) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with open(path, "wb") as handle:
        handle.truncate(size_bytes)  # sparse: a model's size costs no disk
    return path


def make_hf(
    places: Places, repository: str, *files: str, revision: str = "abc", main: bool = True
) -> list[Path]:
    """As the hub library lays it out: blobs, and a snapshot of links to them."""
    folder = places.huggingface[0] / ("models--" + repository.replace("/", "--"))
    links = []
    for file in files:
        blob = make(folder / "blobs" / f"{revision}-{file.replace('/', '-')}", 20 + len(links))
        link = folder / "snapshots" / revision / file
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(os.path.relpath(blob, link.parent))
        links.append(link)
    if main:
        (folder / "refs").mkdir(exist_ok=True)
        (folder / "refs" / "main").write_text(revision)
    return links


def make_ollama(places: Places, name: str, digest: str, manifest: object = None) -> Path:
    host, namespace, model, tag = name.split("/")
    path = places.ollama[0] / "manifests" / host / namespace / model / tag
    path.parent.mkdir(parents=True, exist_ok=True)
    layers = [
        {"mediaType": "application/vnd.ollama.image.license", "digest": "sha256:" + "0" * 64},
        {"mediaType": MODEL_LAYER, "digest": f"sha256:{digest}"},
    ]
    path.write_text(json.dumps({"layers": layers} if manifest is None else manifest))
    return make(places.ollama[0] / "blobs" / f"sha256-{digest}", 30)


def test_paths_come_before_names(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = make(tmp_path / "some.gguf")
    assert resolve(path, places=places) == path
    assert resolve("some.gguf", places=places) == Path("some.gguf")
    assert resolve("./some.gguf", places=places) == Path("some.gguf")
    make(places.models / "some.gguf")
    assert resolve("some.gguf", places=places) == Path("some.gguf")
    assert resolve("some", places=places) == places.models / "some.gguf"


def test_home_is_expanded(places, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    path = make(tmp_path / "m.gguf")
    assert resolve("~/m.gguf", places=places) == path


def test_folders_and_missing_paths(places, tmp_path):
    make(tmp_path / "models" / "a.gguf")
    with pytest.raises(ModelFormatError, match=r"is a folder.*it holds a\.gguf"):
        resolve(tmp_path / "models", places=places)
    with pytest.raises(ModelFormatError, match=r"holds no \.gguf"):
        resolve(tmp_path, places=places)
    with pytest.raises(ModelNotFoundError, match="no such file"):
        resolve(tmp_path / "b.gguf", places=places)
    for name in ("", "a\0b"):
        with pytest.raises(ModelNotFoundError):
            resolve(name, places=places)


def test_known_names_need_the_right_size(places, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "smollm2").mkdir()  # a folder of that name must not stand in the way
    with pytest.raises(ModelNotFoundError, match="stoker pull smollm2"):
        resolve("smollm2", places=places)
    path = make(places.models / SMOLLM2.file_name, 5)
    with pytest.raises(ModelNotFoundError):
        resolve("smollm2", places=places)
    assert resolve(SMOLLM2.file_name, places=places) == path  # by its stem it is just a file
    make(path, SMOLLM2.size_bytes)
    assert resolve("smollm2", places=places) == path
    assert list_models(places=places)[0].name == "smollm2"


def test_known_models_that_another_tool_has(places):
    path = make(places.lmstudio[0] / "someone" / "SmolLM2-GGUF" / SMOLLM2.file_name, SMOLLM2.size_bytes)
    assert resolve("smollm2", places=places) == path


def test_huggingface(places):
    (q4, q8) = make_hf(places, "User/Some-GGUF", "some-Q4_K_M.gguf", "some-Q8_0.gguf")
    make_hf(places, "User/Some-GGUF", "mmproj-some-f16.gguf")
    for name in ("hf:User/Some-GGUF", "hf:user/some-gguf:q4_k_m", "User/Some-GGUF:Q4_K_M", "some-Q4_K_M"):
        assert resolve(name, places=places) == q4
    assert resolve("hf:User/Some-GGUF:Q8_0", places=places) == q8
    assert resolve("hf:User/Some-GGUF:some-Q8_0", places=places) == q8
    assert resolve("some-q8_0.gguf", places=places) == q8
    with pytest.raises(ModelNotFoundError):
        resolve("hf:User/Some-GGUF:Q5_0", places=places)
    with pytest.raises(ModelNotFoundError, match="hf download some/other"):
        resolve("hf:some/other:Q4_0", places=places)


def test_huggingface_prefers_the_revision_of_main(places):
    make_hf(places, "u/r", "m-Q4_0.gguf", revision="a-old", main=False)
    (new,) = make_hf(places, "u/r", "m-Q4_0.gguf", revision="b-new")
    make_hf(places, "u/r", "m-Q4_0.gguf", revision="c-other", main=False)
    (only_old,) = make_hf(places, "u/r", "m-Q8_0.gguf", revision="a-old", main=False)
    assert resolve("hf:u/r:Q4_0", places=places) == new
    assert resolve("hf:u/r:Q8_0", places=places) == only_old


def test_huggingface_with_no_preferred_file(places):
    make_hf(places, "u/r", "a-Q5_0.gguf", "b-Q6_K.gguf")
    with pytest.raises(ModelFormatError, match=r"2 different files.*hf:u/r:Q5_0, hf:u/r:Q6_K"):
        resolve("hf:u/r", places=places)


def test_split_models_are_their_first_part(places):
    names = [f"BF16/m-BF16-0000{i}-of-00003.gguf" for i in (1, 2, 3)]
    links = make_hf(places, "u/split", *names)
    entry = next(entry for entry in list_models(places=places))
    assert (entry.name, entry.path, entry.size_bytes) == ("hf:u/split:BF16", links[0], 20 + 21 + 22)
    assert resolve("hf:u/split", places=places) == resolve("m-BF16", places=places) == links[0]
    links[1].unlink()
    assert list_models(places=places) == []  # not whole


def test_ollama(places):
    one = make_ollama(places, "registry.ollama.ai/library/llama3.2/1b", "1" * 64)
    latest = make_ollama(places, "registry.ollama.ai/library/llama3.2/latest", "2" * 64)
    other = make_ollama(places, "registry.ollama.ai/someone/tuned/q4", "3" * 64)
    hub = make_ollama(places, "hf.co/user/repo-GGUF/Q4_K_M", "4" * 64)
    assert resolve("llama3.2:1b", places=places) == one
    assert resolve("llama3.2", places=places) == resolve("llama3.2:latest", places=places) == latest
    assert resolve("someone/tuned:q4", places=places) == other
    assert resolve("someone/tuned", places=places) == other
    assert resolve("hf.co/user/repo-GGUF:Q4_K_M", places=places) == hub
    with pytest.raises(ModelNotFoundError, match=r"did you mean 'llama3\.2:1b'"):
        resolve("llama3.2:1bb", places=places)


MODEL_LAYER = "application/vnd.ollama.image.model"


@pytest.mark.parametrize(
    "manifest",
    [
        [],
        {},
        {"layers": 3},
        {"layers": [{}]},
        {"layers": [{"mediaType": MODEL_LAYER, "digest": "sha256:../../etc/passwd"}]},
        {"layers": [{"mediaType": MODEL_LAYER, "digest": 5}]},
        {"layers": [{"mediaType": MODEL_LAYER, "digest": "sha256:" + "9" * 64}]},
    ],
)
def test_broken_ollama_manifests_are_left_out(places, manifest):
    make_ollama(places, "registry.ollama.ai/library/bad/1b", "1" * 64, manifest)
    good = make_ollama(places, "registry.ollama.ai/library/good/1b", "2" * 64)
    assert [entry.path for entry in list_models(places=places)] == [good]


def test_lmstudio(places):
    path = make(places.lmstudio[0] / "publisher" / "Model-GGUF" / "model-Q4_0.gguf")
    old = make(places.lmstudio[1] / "publisher" / "Older-GGUF" / "older-Q8_0.gguf")
    assert resolve("publisher/Model-GGUF", places=places) == path
    assert resolve("publisher/model-gguf:q4_0", places=places) == path
    assert resolve("model-Q4_0", places=places) == path
    assert resolve("older-Q8_0", places=places) == old
    with pytest.raises(ModelNotFoundError):
        resolve("hf:publisher/Model-GGUF", places=places)


def test_every_listed_name_resolves_to_its_path(places):
    make(places.models / SMOLLM2.file_name, SMOLLM2.size_bytes)
    make(places.models / "sub" / "mine.gguf")
    make(places.models / ".partial" / "half.gguf")
    make_hf(places, "u/many", "a-Q4_0.gguf", "b-Q4_0.gguf", "c.gguf", "x/d-UD-Q4_K_XL.gguf")
    make_hf(places, "u/one", "one.gguf")
    make_ollama(places, "registry.ollama.ai/library/m/1b", "1" * 64)
    make_ollama(places, "registry.ollama.ai/library/m/latest", "2" * 64)
    make(places.lmstudio[0] / "p" / "r" / "mine.gguf", 99)
    entries = list_models(places=places)
    assert len(entries) == 2 + 4 + 1 + 2 + 1
    assert {entry.origin for entry in entries} == {"stoker", "huggingface", "ollama", "lmstudio"}
    for entry in entries:
        assert resolve(entry.name, places=places) == entry.path
        assert entry.size_bytes == entry.path.stat().st_size


def test_the_same_stem_in_two_places_is_asked_back(places):
    make(places.lmstudio[0] / "p" / "r" / "same.gguf", 10)
    make(places.lmstudio[0] / "q" / "r" / "same.gguf", 11)
    with pytest.raises(ModelFormatError, match="choose one of p/r:same, q/r:same"):
        resolve("same", places=places)


def test_copies_of_one_file_are_not_asked_about(places):
    first = make(places.lmstudio[0] / "p" / "r" / "same.gguf", 10)
    make(places.lmstudio[0] / "q" / "r" / "same.gguf", 10)
    assert resolve("same", places=places) == first
    make(places.lmstudio[0] / "p" / "s" / "a-Q5_0.gguf", 10)
    make(places.lmstudio[0] / "p" / "s" / "b-Q5_0.gguf", 10)
    with pytest.raises(ModelFormatError, match="2 different files"):
        resolve("p/s", places=places)


def test_the_error_says_where_was_looked(places):
    with pytest.raises(ModelNotFoundError) as caught:
        resolve("smollm3", places=places)
    text = str(caught.value)
    for folder in (places.models, *places.huggingface, *places.ollama, *places.lmstudio):
        assert str(folder) in text
    assert "smollm2, gemma3-270m" in text
    assert "did you mean 'smollm2'?" in text


def test_places_from_the_environment(tmp_path):
    home = tmp_path

    def made(platform: str = "linux", **environ: str) -> Places:
        return Places.from_environment(environ, home, platform)

    assert made().models == home / ".cache" / "stoker" / "models"
    assert made(STOKER_HOME="/s").models == Path("/s/models")
    assert made(XDG_CACHE_HOME="/c").models == Path("/c/stoker/models")
    assert made("darwin").models == home / "Library" / "Caches" / "stoker" / "models"
    assert made("win32", LOCALAPPDATA="/l").models == Path("/l/stoker/models")
    assert made().huggingface == (home / ".cache" / "huggingface" / "hub",)
    assert made(HF_HOME="/h").huggingface == (Path("/h/hub"),)
    assert made(HF_HOME="/h", HF_HUB_CACHE="/b").huggingface == (Path("/b"),)
    assert made().ollama[0] == home / ".ollama" / "models"
    assert made(OLLAMA_MODELS="/o").ollama == (Path("/o"),)
    assert made().lmstudio == (home / ".lmstudio" / "models", home / ".cache" / "lm-studio" / "models")


def test_places_without_a_home_folder(tmp_path, monkeypatch):
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(ModelNotFoundError, match="set STOKER_HOME"):
        Places.from_environment({})
    places = Places.from_environment({"STOKER_HOME": str(tmp_path)})
    assert (places.models, places.huggingface, places.lmstudio) == (tmp_path / "models", (), ())
    assert Places.from_environment({"XDG_CACHE_HOME": "/c"}).models == Path("/c/stoker/models")


def test_stokers_folder_holds_models_and_tokenizers(tmp_path, monkeypatch):
    monkeypatch.delenv("STOKER_HOME", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_cache_dir() == Places.from_environment().models.parent


def test_known_names_in_any_case(places):
    path = make(places.models / SMOLLM2.file_name, SMOLLM2.size_bytes)
    for name in ("smollm2", "SmolLM2", "SMOLLM2"):
        assert resolve(name, places=places) == path
    with pytest.raises(ModelNotFoundError, match="stoker pull gemma3-270m"):
        resolve("Gemma3-270M", places=places)


def test_unreadable_and_strange_folders_hold_nothing(tmp_path):
    assert gguf_files(tmp_path / "none") == []
    (tmp_path / "loop").symlink_to(tmp_path)
    (tmp_path / "dangling.gguf").symlink_to(tmp_path / "gone")
    (tmp_path / "folder.gguf").mkdir()
    path = make(tmp_path / "a.gguf")
    assert [found for found, _ in gguf_files(tmp_path, depth=0)] == [path]
    make(tmp_path / "x-00001-of-99999.gguf")
    assert [found for found, _ in gguf_files(tmp_path, depth=0)] == [path]


@pytest.mark.parametrize(
    ("name", "label"),
    [
        ("m.Q4_1", "Q4_1"),
        ("gemma-3-270m-q4_k_m", "Q4_K_M"),
        ("m-IQ4_NL", "IQ4_NL"),
        ("m-UD-Q4_K_XL", "Q4_K_XL"),
        ("m-f16", "F16"),
        ("m-BF16-00001-of-00002", "BF16"),
        ("qwen3", None),
        ("m-Q4_0-imat", None),
    ],
)
def test_quant_labels(name, label):
    assert quant_label(Path(f"{name}.gguf")) == label
    assert model_stem(Path("m-00001-of-00002.gguf")) == "m"
